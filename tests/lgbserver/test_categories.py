from typing import Any

import numpy as np
import pytest

from kserve.errors import InvalidInput
from lgbserver.categories import Categories, find_categories

TEXTS = Categories({"x": 0.0, "y": 1.0}, {})
NUMBERS = Categories({}, {10.0: 0.0, 20.0: 1.0})
MIXED = Categories({"x": 0.0}, {20.0: 1.0})
NAN = float("nan")


def objects(*values: Any) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize(
    ("categories", "array", "expected"),
    [
        pytest.param(TEXTS, objects("y", b"x", None, "z"), [1, 0, NAN, NAN], id="texts"),
        pytest.param(TEXTS, np.array([1, 0, 5]), [1, 0, 5], id="codes"),
        pytest.param(NUMBERS, np.array([20, 10, 1]), [1, 0, NAN], id="numbers"),
        pytest.param(NUMBERS, np.array([20.0, NAN]), [1, NAN], id="floats"),
        pytest.param(NUMBERS, objects("20", None), [NAN, NAN], id="texts for numbers"),
        pytest.param(MIXED, objects("x", None), [0, NAN], id="texts of both"),
        pytest.param(MIXED, np.array([20]), [1], id="numbers of both"),
    ],
)
def test_values_become_codes(categories: Categories, array: Any, expected: list[float]) -> None:
    np.testing.assert_array_equal(categories.encode(array, "a"), expected)


def test_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(InvalidInput, match="^input 'a': expected UTF-8 text"):
        TEXTS.encode(objects(b"\xff"), "a")


def test_columns_have_their_categories_in_order() -> None:
    infos = ["[0:1]", "0:1", "none", "-1:0:1:2"]

    found = find_categories(infos, [["x", "y"], [10, True]], "m")

    assert found == {1: TEXTS, 3: Categories({}, {10.0: 0.0, 1.0: 1.0})}


def test_without_categories_there_are_none() -> None:
    assert find_categories(["[0:1]", "0:1"], None, "m") == {}
    assert find_categories(["[0:1]"], [], "m") == {}


def test_columns_that_are_not_known_have_none(caplog: pytest.LogCaptureFixture) -> None:
    assert find_categories(["[0:1]", "0:1"], [["x"], ["y"]], "m") == {}
    assert caplog.messages == [
        "m was trained on 2 categorical columns and has 1 categorical features, so it is not known "
        "which are which: send codes for categories"
    ]
