from typing import Any

import pytest

from kserve.errors import InvalidInput
from xgbserver.iterations import Rounds


@pytest.mark.parametrize(
    ("value", "expected"),
    [("all", (0, 0)), ("best", (0, 4)), ("0:10", (0, 10)), ("9:10", (9, 10))],
)
def test_reads_which_rounds_count(value: str, expected: tuple[int, int]) -> None:
    assert Rounds(10, 3).parse(value, "it") == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1:11", "it: expected BEGIN < END <= 10, as the model has 10 rounds, got 1:11"),
        ("3:3", "it: expected BEGIN < END <= 10, as the model has 10 rounds, got 3:3"),
        ("-1:3", "it: expected all, best or BEGIN:END, got '-1:3'"),
        ("first", "it: expected all, best or BEGIN:END, got 'first'"),
        (7, "it: expected all, best or BEGIN:END, got 7"),
        (
            "best",
            "it: the model was trained without early stopping, so no round is best",
        ),
    ],
)
def test_names_what_is_no_range(value: Any, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Rounds(10, None).parse(value, "it")

    assert str(caught.value) == reason
