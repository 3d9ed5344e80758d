"""Which models have rows that requests may put together, by a trial."""

from typing import Any

import numpy as np
import pytest

from kserve.row_trial import fixed_axis, try_rows
from kserve.signature import Signature, Tensors, TensorSpec

X = Signature(inputs=(TensorSpec("x", "FP32", (-1, -1)),))


def test_an_axis_of_any_length_is_tried_with_several_lengths() -> None:
    lengths = []

    def run(tensors: Tensors) -> Tensors:
        lengths.append(tensors["x"].shape)
        if tensors["x"].shape[1] < 50:
            raise ValueError("too short")
        return tensors

    assert try_rows(X, run)
    assert lengths == [(1, 8), (1, 1), (1, 64), (1, 64), (2, 64)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda x: x * np.nan, True, id="NaN"),
        pytest.param(lambda x: x * np.inf, True, id="infinities"),
        pytest.param(lambda x: x * (1 + 1e-4 * len(x)), True, id="the last bits"),
        pytest.param(lambda x: x * (1 + 0.1 * len(x)), False, id="more than the last bits"),
        pytest.param(lambda x: np.zeros(len(x), np.int64) + len(x), False, id="integers"),
        pytest.param(lambda x: x.T, False, id="transposed"),
        pytest.param(lambda x: x[::-1], False, id="in another order"),
        pytest.param(lambda x: x.sum(), False, id="no axes"),
    ],
)
def test_outputs_of_two_rows_are_those_of_each_alone(change: Any, expected: bool) -> None:
    assert try_rows(X, lambda tensors: {"y": change(tensors["x"])}) is expected


def test_what_takes_one_row_alone_has_no_rows() -> None:
    def run(tensors: Tensors) -> Tensors:
        if len(tensors["x"]) > 1:
            raise ValueError("expected one row")
        return tensors

    assert try_rows(X, run) is False


def test_other_outputs_for_two_rows_are_no_rows() -> None:
    def run(tensors: Tensors) -> Tensors:
        return {f"y{len(tensors['x'])}": tensors["x"]}

    assert try_rows(X, run) is False


A, B = TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "FP32", (-1,))
ANY = TensorSpec("any", "FP32", (-1,), is_ranked=False)


@pytest.mark.parametrize(
    ("signature", "fixed"),
    [
        pytest.param(Signature((A, B), (B,)), "", id="none"),
        pytest.param(Signature((A,), (ANY,)), "", id="an output of any shape"),
        pytest.param(Signature((A, ANY), (B,)), "any", id="an input of any shape"),
        pytest.param(Signature((A, TensorSpec("n", "FP32", ())), (B,)), "n", id="a scalar"),
        pytest.param(Signature((A,), (TensorSpec("n", "FP32", (1, 4)),)), "n", id="one row"),
    ],
)
def test_an_axis_0_that_cannot_be_rows_is_named(signature: Signature, fixed: str) -> None:
    expected = f"axis 0 of {fixed!r} is not of any length" if fixed else ""

    assert fixed_axis(signature) == expected
