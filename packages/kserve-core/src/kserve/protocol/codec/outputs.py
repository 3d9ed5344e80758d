"""The content of a response's outputs, for codecs that write it."""

from typing import Any

from numpy.typing import NDArray

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.infer_type import InferOutput
from kserve.protocol.tensor import RawData


def as_array(output: InferOutput) -> NDArray[Any]:
    """Give the content of an output as an array in its shape.

    Raises:
        InferenceError: The model's output has no data, an unknown datatype, or data that disagrees
            with shape or datatype.
    """
    try:
        return output.as_numpy()
    except InvalidInput as error:
        # A tensor does not know whose it is, and takes itself for the client's.
        raise InferenceError(error.reason) from error


def binary_entry(output: InferOutput) -> tuple[dict[str, Any], RawData]:
    """Give the entry of an output in the JSON part, and its binary form.

    Raises:
        InferenceError: As for `as_array`.
    """
    try:
        entry, raw = output.to_entry(as_binary=True)
    except InvalidInput as error:
        raise InferenceError(error.reason) from error
    assert raw is not None
    return entry, raw
