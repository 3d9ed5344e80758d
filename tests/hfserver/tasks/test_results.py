"""What a request gets: by its parameters, else by the command line."""

import pytest

from hfserver.inputs import Wishes
from hfserver.options import Options
from hfserver.tasks.results import Kind, kind_of
from kserve.errors import InvalidInput

RICH = Options(rich_results=True)
PROBABILITIES = Options(return_probabilities=True)
LOGITS = Options(return_raw_logits=True)


@pytest.mark.parametrize(
    ("options", "wishes", "kind"),
    [
        (Options(), Wishes(), Kind.PLAIN),
        (RICH, Wishes(), Kind.RICH),
        (PROBABILITIES, Wishes(), Kind.PROBABILITIES),
        (LOGITS, Wishes(), Kind.RAW_LOGITS),
        (Options(), Wishes(rich_results=True), Kind.RICH),
        (RICH, Wishes(rich_results=False), Kind.PLAIN),
        (RICH, Wishes(return_probabilities=True), Kind.PROBABILITIES),
        (Options(rich_results=True, return_raw_logits=True), Wishes(), Kind.RICH),
        (
            Options(rich_results=True, return_raw_logits=True),
            Wishes(rich_results=False),
            Kind.RAW_LOGITS,
        ),
        (PROBABILITIES, Wishes(return_raw_logits=True), Kind.RAW_LOGITS),
        (PROBABILITIES, Wishes(return_probabilities=False), Kind.PLAIN),
        (LOGITS, Wishes(return_raw_logits=False), Kind.PLAIN),
        (LOGITS, Wishes(rich_results=True), Kind.RICH),
    ],
)
def test_the_request_comes_before_the_command_line(
    options: Options, wishes: Wishes, kind: Kind
) -> None:
    assert kind_of(options, wishes) is kind


def test_a_request_cannot_have_both() -> None:
    with pytest.raises(InvalidInput, match="got both as true"):
        kind_of(Options(), Wishes(return_probabilities=True, return_raw_logits=True))
