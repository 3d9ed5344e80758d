from typing import Any

import numpy as np
import pytest

from kserve.errors import InvalidInput, ModelLoadError
from kserve.methods import Methods, spec_of, try_methods
from kserve.model import PredictOptions
from kserve.signature import TensorSpec


class Calls:
    """Counts how often each method was called."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.methods = Methods(
            {name: self._method(name) for name in ("predict", "margin", "leaf")},
            "predict",
            {"margin": "margin", "leaf": "leaf"},
        )

    def _method(self, name: str) -> Any:
        def call(features: int) -> Any:
            self.called.append(name)
            return np.array([f"{name} of {features}"])

        return call

    def predict(self, *outputs: str, **parameters: Any) -> dict[str, list[str]]:
        tensors = self.methods.predict(7, PredictOptions(parameters, outputs))
        return {name: array.tolist() for name, array in tensors.items()}


@pytest.mark.parametrize(
    ("outputs", "parameters", "expected", "called"),
    [
        pytest.param([], {}, {"output-0": ["predict of 7"]}, ["predict"], id="the default"),
        pytest.param(
            [], {"method": "margin"}, {"output-0": ["margin of 7"]}, ["margin"], id="a parameter"
        ),
        pytest.param(
            ["leaf", "output-0"],
            {},
            {"leaf": ["leaf of 7"], "output-0": ["predict of 7"]},
            ["leaf", "predict"],
            id="outputs",
        ),
        pytest.param(
            ["leaf", "output-0"],
            {"method": "leaf"},
            {"leaf": ["leaf of 7"], "output-0": ["leaf of 7"]},
            ["leaf"],
            id="one method, called once",
        ),
    ],
)
def test_a_request_chooses_methods(
    outputs: list[str], parameters: Any, expected: Any, called: list[str]
) -> None:
    calls = Calls()

    assert (calls.predict(*outputs, **parameters), calls.called) == (expected, called)


@pytest.mark.parametrize("method", ["fit", 3, None, ["leaf"]])
def test_an_unknown_method_is_refused(method: Any) -> None:
    calls = Calls()

    with pytest.raises(InvalidInput) as caught:
        calls.predict(method=method)

    assert str(caught.value) == (
        f"parameter 'method': the model has no method {method!r}, it has predict, margin, leaf"
    )
    assert calls.methods.cost_kind(PredictOptions({"method": method})) is None


def test_the_methods_that_a_request_calls_are_its_kind() -> None:
    kind = Calls().methods.cost_kind

    assert kind(PredictOptions()) == "predict"
    assert kind(PredictOptions({"method": "leaf"})) == "leaf"
    assert kind(PredictOptions({}, ("margin", "output-0"))) == frozenset({"margin", "predict"})


def test_an_output_is_described_by_what_it_was() -> None:
    array = np.zeros((2, 3), np.float32)

    assert spec_of("margin", array) == TensorSpec("margin", "FP32", (-1, 3))


class Refused(Exception):
    pass


def double(features: Any) -> Any:
    if np.isinf(features).any():
        raise Refused("no infinities")
    return np.repeat(features, 2, axis=1).astype(np.float32)


def refuse(features: Any) -> Any:
    raise Refused("no such thing")


CALLS = {"predict": lambda features: features[:, 0], "double": double, "none": refuse}
ROWS = np.array([[1.0, 2.0], [3.0, 4.0]])


def test_the_methods_that_work_are_those_of_the_model() -> None:
    tried = try_methods(CALLS, ROWS, "double", Refused, "m")

    assert tried.outputs == (TensorSpec("output-0", "FP32", (-1, 4)),)
    assert tried.optional_outputs == (
        TensorSpec("predict", "FP64", (-1,)),
        TensorSpec("double", "FP32", (-1, 4)),
    )
    answer = tried.methods.predict(ROWS, PredictOptions({}, ("predict", "output-0")))
    assert {name: array.tolist() for name, array in answer.items()} == {
        "predict": [1.0, 3.0],
        "output-0": [[1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0]],
    }


def test_no_rows_are_answered_with_none() -> None:
    tried = try_methods(CALLS, ROWS, "double", Refused, "m")

    answer = tried.methods.predict(ROWS[:0], PredictOptions())["output-0"]

    assert (answer.shape, answer.dtype.name) == ((0, 4), "float32")


def test_what_a_framework_refuses_is_the_clients() -> None:
    tried = try_methods(CALLS, ROWS, "double", Refused, "m")

    with pytest.raises(InvalidInput, match="^no infinities$"):
        tried.methods.predict(ROWS * np.inf, PredictOptions())


@pytest.mark.parametrize(
    ("calls", "method", "reason"),
    [
        (CALLS, "fit", "m: has no method fit; it has predict, double"),
        (CALLS, "none", "m: has no method none (no such thing); it has predict, double"),
        ({"none": refuse}, "none", "m: has no method none (no such thing)"),
    ],
)
def test_a_default_method_has_to_work(calls: Any, method: str, reason: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        try_methods(calls, ROWS, method, Refused, "m")

    assert str(caught.value) == reason
