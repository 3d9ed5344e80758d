"""Models with several methods: one answers by default, a request may choose another or more.

A request chooses by its parameter `method`, or asks for the outputs that are named as a method.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InvalidInput, ModelLoadError
from kserve.listing import listing
from kserve.model import PredictOptions
from kserve.protocol.codec.dtypes import from_np_dtype
from kserve.signature import Tensors, TensorSpec

# Upstream's name for what a model gives.
OUTPUT_NAME: Final = "output-0"

_PARAMETER: Final = "method"


# features -> an array, axis 0 the rows
ArrayCall = Callable[[Any], NDArray[Any]]


def name_array(result: NDArray[Any], method: str | None) -> Tensors:
    """Name a result that is one array: by its method, or as the model's own output."""
    return {method or OUTPUT_NAME: result}


def spec_of(name: str, array: NDArray[Any]) -> TensorSpec:
    """Describe an output by what it was for a few rows."""
    return TensorSpec(name, from_np_dtype(array.dtype) or "FP64", (-1, *array.shape[1:]))


@dataclass(frozen=True, slots=True)
class Methods:
    """The methods of a model.

    Attributes:
        calls: Each method, from features to its result.
        default: The name of the one that answers by default.
        owners: The method of each output that comes only on request, by the output's name.
        name_result: Names the arrays of a result; the method is None for the model's own output.
    """

    calls: Mapping[str, Callable[[Any], Any]]
    default: str
    owners: Mapping[str, str]
    name_result: Callable[[Any, str | None], Tensors] = name_array

    def predict(self, features: Any, options: PredictOptions) -> Tensors:
        """Call the methods that a request asks for, each once.

        Args:
            features: What the methods take.
            options: The parameters and requested outputs of the request.

        Raises:
            InvalidInput: There is no such method.
            Exception: Whatever a method raises.
        """
        method = self._chosen(options)
        if not options.outputs:
            return self.name_result(self.calls[method](features), None)
        results: dict[str, Any] = {}
        outputs: Tensors = {}
        for name in options.outputs:
            own = self.owners.get(name)
            called = own or method
            if called not in results:
                results[called] = self.calls[called](features)
            outputs |= self.name_result(results[called], own)
        return outputs

    def cost_kind(self, options: PredictOptions) -> Hashable:
        """Give the methods that a request calls, for `TensorModel.cost_kind`."""
        method = options.parameters.get(_PARAMETER, self.default)
        if not isinstance(method, str) or method not in self.calls:
            # It will be refused.
            return None
        if not options.outputs:
            return method
        return frozenset(self.owners.get(name, method) for name in options.outputs)

    def _chosen(self, options: PredictOptions) -> str:
        method = options.parameters.get(_PARAMETER, self.default)
        if not isinstance(method, str) or method not in self.calls:
            raise InvalidInput(
                f"parameter 'method': the model has no method {method!r}, "
                f"it has {listing(list(self.calls))}"
            )
        return method


@dataclass(frozen=True, slots=True)
class TriedMethods:
    """The methods of a model that work, each of which gives one array.

    Attributes:
        methods: The methods; `output-0` is the default one's, and each has an output of its name.
        outputs: What the model gives.
        optional_outputs: What it gives on request.
    """

    methods: Methods
    outputs: tuple[TensorSpec, ...]
    optional_outputs: tuple[TensorSpec, ...]


def try_methods(
    calls: Mapping[str, ArrayCall],
    features: Any,
    default: str,
    refusal: type[Exception],
    owner: str,
) -> TriedMethods:
    """Call each method once, to find out which a model has and what they give.

    Args:
        calls: All that a model of its framework may have; features have a length.
        features: At least two rows, which tell the axis of the rows from the others.
        default: The method that is to answer.
        refusal: What the framework raises for what the model cannot do, or will not take; that a
            request is refused is the client's fault.
        owner: What errors call the model.

    Raises:
        ModelLoadError: The model does not have the default method.
    """
    results: dict[str, NDArray[Any]] = {}
    refusals: dict[str, Exception] = {}
    for name, call in calls.items():
        try:
            results[name] = call(features)
        except refusal as exc:
            refusals[name] = exc
    if default not in results:
        because = f" ({refusals[default]})" if default in refusals else ""
        has = f"; it has {listing(list(results))}" if results else ""
        raise ModelLoadError(f"{owner}: has no method {default}{because}{has}")
    kept = {name: _served(calls[name], array, refusal) for name, array in results.items()}
    return TriedMethods(
        methods=Methods(kept, default, {name: name for name in kept}),
        outputs=(spec_of(OUTPUT_NAME, results[default]),),
        optional_outputs=tuple(spec_of(name, array) for name, array in results.items()),
    )


def _served(call: ArrayCall, example: NDArray[Any], refusal: type[Exception]) -> ArrayCall:
    # Libraries give it another shape, or fail.
    nothing = np.empty((0, *example.shape[1:]), example.dtype)

    def serve(features: Any) -> NDArray[Any]:
        if not len(features):
            return nothing
        try:
            return call(features)
        except refusal as exc:
            raise InvalidInput(str(exc)) from exc

    return serve
