"""The ids of requests."""

import uuid

import pytest

from kserve.request_ids import request_id_of


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("a b", id="a space"),
        pytest.param("a\nb", id="a line break"),
        pytest.param("é", id="not ASCII"),
        pytest.param("x" * 129, id="too long"),
    ],
)
def test_an_id_that_cannot_be_logged_is_replaced(given: str | None) -> None:
    made = [request_id_of(given) for _ in range(100)]

    parsed = [uuid.UUID(text) for text in made]
    assert [str(each) for each in parsed] == made
    assert {(each.version, each.variant) for each in parsed} == {(4, uuid.RFC_4122)}
    assert len(set(made)) == 100


@pytest.mark.parametrize("given", ["a", "x" * 128, "!~:/-"])
def test_an_id_that_can_be_logged_is_kept(given: str) -> None:
    assert request_id_of(given) == given
