"""Names in error texts."""

import pytest

from kserve.errors import ModelNotFound
from kserve.listing import brief, listing, quoted, shortened


@pytest.mark.parametrize(
    ("n_names", "expected"),
    [
        pytest.param(0, "nothing", id="none"),
        pytest.param(2, "0, 1", id="two"),
        pytest.param(10, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9", id="ten"),
        pytest.param(5000, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4990 more", id="many"),
    ],
)
def test_lists_ten_names(n_names: int, expected: str) -> None:
    assert listing([str(index) for index in range(n_names)]) == expected


def test_quotes_ten_names() -> None:
    assert quoted([str(index) for index in range(11)]) == (
        "'0', '1', '2', '3', '4', '5', '6', '7', '8', '9' and 1 more"
    )


def test_shortens_what_is_no_name() -> None:
    assert [shortened("m" * 128), shortened("m" * 129)] == ["m" * 128, "m" * 125 + "..."]


def test_a_model_that_is_not_found_is_named_in_short() -> None:
    error = ModelNotFound("m" * 5000)

    assert (str(error), error.model_name) == (
        f"Model with name {'m' * 125}... does not exist.",
        "m" * 5000,
    )


@pytest.mark.parametrize("value", [None, True, 1.5, "it's", [1, "a"], {"a": [{"b": None}]}])
def test_writes_a_small_value_as_python_does(value: object) -> None:
    assert brief(value) == repr(value)


def test_writes_only_the_begin_of_a_large_value() -> None:
    class Untouched(str):
        def __repr__(self) -> str:
            raise AssertionError("it was written out")

    texts = ["a"] * 10 + [Untouched()] * 1000

    assert brief(texts) == "[" + "'a', " * 10 + "...]"
    for large in ("a" * 10_000, 2**63, {str(n): "a" * 100 for n in range(1000)}, [[[[[1]]]]]):
        assert len(brief(large)) <= 128
