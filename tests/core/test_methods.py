from typing import Any

import numpy as np
import pytest

from kserve.errors import InvalidInput
from kserve.methods import Methods, spec_of
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
