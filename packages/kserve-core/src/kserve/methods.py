"""Models with several methods: one answers by default, a request may choose another or more.

A request chooses by its parameter `method`, or asks for the outputs that are named as a method.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from kserve.errors import InvalidInput
from kserve.listing import listing
from kserve.model import PredictOptions
from kserve.protocol.codec.dtypes import from_np_dtype
from kserve.signature import Tensors, TensorSpec

# Upstream's name for what a model gives.
OUTPUT_NAME: Final = "output-0"

_PARAMETER: Final = "method"


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
