from typing import Any

import numpy as np
import pytest

from kserve.errors import InvalidInput
from kserve.signature import TensorSpec
from kserve.tables import as_matrix, by_feature, column_names, decode_texts, table_inputs

NUMBER = ("FP64", True)
GUESS = ("BYTES", False)


@pytest.mark.parametrize(
    ("kinds", "names", "expected"),
    [
        pytest.param(
            [NUMBER, NUMBER], None, (TensorSpec("input-0", "FP64", (-1, 2)),), id="an array"
        ),
        pytest.param(
            [NUMBER, NUMBER],
            ["a", "b"],
            (TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "FP64", (-1,))),
            id="named columns",
        ),
        pytest.param(
            [NUMBER, GUESS],
            None,
            (TensorSpec("x0", "FP64", (-1,)), TensorSpec("x1", "BYTES", (-1,), exact=False)),
            id="columns that differ, without names",
        ),
    ],
)
def test_a_table_is_columns_or_one_array(
    kinds: Any, names: list[str] | None, expected: tuple[TensorSpec, ...]
) -> None:
    assert table_inputs(kinds, names) == expected
    assert column_names(names, 2) == tuple(names or ("x0", "x1"))


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({"input-0": np.array([[1.0, 2.0], [3.0, 4.0]])}, id="one tensor"),
        pytest.param({"a": np.array([1.0, 3.0]), "b": np.array([2.0, 4.0])}, id="columns"),
    ],
)
def test_a_table_becomes_one_array(tensors: Any) -> None:
    np.testing.assert_array_equal(as_matrix(tensors), [[1.0, 2.0], [3.0, 4.0]])


def test_the_only_column_becomes_an_array_of_one() -> None:
    np.testing.assert_array_equal(as_matrix({"a": np.array([1.0, 2.0])}), [[1.0], [2.0]])


def test_texts_are_decoded() -> None:
    texts = decode_texts(np.array([[b"x", "y"], [None, "z"]], dtype=object), "a", np.nan)

    assert texts.ravel().tolist()[:2] + texts.ravel().tolist()[3:] == ["x", "y", "z"]
    assert np.isnan(texts[1, 0])


def test_plain_texts_are_not_copied() -> None:
    texts = np.array(["x", "y"], dtype=object)

    assert decode_texts(texts, "a", None) is texts


def test_what_is_not_utf_8_is_named() -> None:
    with pytest.raises(InvalidInput, match="^input 'a': expected UTF-8 text, got 'utf-8' codec"):
        decode_texts(np.array([b"\xff"], dtype=object), "a", None)


@pytest.mark.parametrize(
    ("names", "bias"),
    [(["a", "b"], "bias"), (["a", "bias"], "bias_"), (["bias_", "bias"], "bias__")],
)
def test_contributions_are_named_by_feature(names: list[str], bias: str) -> None:
    contributions = np.arange(12.0).reshape(2, 2, 3)

    named = by_feature(contributions, names)

    assert {name: array.tolist() for name, array in named.items()} == {
        names[0]: [[0, 3], [6, 9]],
        names[1]: [[1, 4], [7, 10]],
        bias: [[2, 5], [8, 11]],
    }
