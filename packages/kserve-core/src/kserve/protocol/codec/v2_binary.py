"""V2 requests and responses whose body is a JSON part and then tensors in binary form.

Source: Open Inference Protocol v2, "Binary tensor data", and Triton's "Binary Tensor Data
Extension", which adds the raw form: a body that is the only input, with no JSON part at all.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import orjson

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec import outputs, v2_json
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.codec.v1_json import InputSpec
from kserve.protocol.codec.v2_json import InputHeader
from kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse
from kserve.protocol.tensor import BINARY_DATA_SIZE, RawData

_HEADER: Final = "Inference-Header-Content-Length"

# More digits than any length has; int() refuses 4,300 of them with an error of its own.
_MAX_DIGITS: Final = 18


@dataclass(slots=True)
class EncodedBinary:
    """A response with at least one tensor in binary form.

    Attributes:
        parts: The JSON part, then the tensors; the body is all of them in this order.
        json_length: Length in bytes of the JSON part.
        n_nulled: How many NaN and infinities became null in the JSON part.
    """

    parts: list[RawData]
    json_length: int
    n_nulled: int


def read_json_length(value: bytes) -> int:
    """Read the header `Inference-Header-Content-Length`.

    Raises:
        InvalidInput: It is no number from 0.
    """
    # int() would read "+5", "1_000" and " 5 " too.
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise InvalidInput(
            f"{_HEADER}: expected a number of bytes, got {value[:64].decode('latin-1')!r}"
        )
    return int(value)


def decode(
    body: RawData, json_length: int, model_name: str, *, may_be_empty: bool = False
) -> InferRequest:
    """Read a request: the tensors in binary form are views of the body, the others are JSON.

    Args:
        body: The whole body, not compressed.
        json_length: Length in bytes of the JSON part.
        model_name: Goes into the request.
        may_be_empty: A request without inputs is one: the model needs none.

    Raises:
        InvalidInput: The body is no request, or its binary data disagrees with the lengths, shapes
            and datatypes in the JSON part; the message names the input.
    """
    view = memoryview(body)
    if json_length > len(view):
        raise InvalidInput(
            f"{_HEADER}: expected at most {len(view)}, the bytes of the body, got {json_length}"
        )
    tail = view[json_length:]
    return v2_json.read_json(
        bytes(view[:json_length]),
        lambda value: _read_request(value, tail, model_name, may_be_empty),
    )


def decode_raw(body: RawData, model_name: str, inputs: Sequence[InputSpec]) -> InferRequest:
    """Read a body that is the data of the model's only input.

    Datatype and shape are those of the model; one axis may be of any length and follows from the
    number of bytes. A BYTES input is one element, without the length that precedes elements
    elsewhere. The outputs are asked for in binary form, as Triton answers.

    Args:
        body: The whole body, not compressed.
        model_name: Goes into the request.
        inputs: What the model takes, as its metadata says.

    Raises:
        InvalidInput: The model has not exactly one input, or its shape does not follow from the
            number of bytes.
    """
    if len(inputs) != 1:
        raise InvalidInput(
            f"{_HEADER}: 0 says that the body is the only input, the model's metadata has "
            f"{len(inputs)} inputs"
        )
    tensor = _raw_input(inputs[0], memoryview(body))
    return InferRequest(model_name, [tensor], parameters={"binary_data_output": True})


def encode(response: InferResponse, request: InferRequest) -> EncodedBinary | None:
    """Write a response whose outputs, or some of them, go in binary form.

    What the request says of an output wins over what it says of all, `binary_data_output`. Where
    a user's model says itself which outputs to send and how, that holds.

    Returns:
        The response, or None if no output goes in binary form.

    Raises:
        InvalidInput: A requested output is not there, or is FP16 or bytes that are not UTF-8 and
            was not asked for in binary form.
        InferenceError: An output has no data, or data that disagrees with its shape or datatype;
            or a parameter cannot be written as JSON.
    """
    # Nobody has said anything, as in most requests.
    if not (
        request.parameters
        or request.request_outputs
        or response.use_binary_outputs
        or response._requested_outputs
    ):
        return None
    forms = _forms(response, request)
    if not any(as_binary for _, as_binary in forms):
        return None
    entries: list[dict[str, Any]] = []
    raws: list[RawData] = []
    n_nulled = 0
    for output, as_binary in forms:
        if as_binary:
            entry, raw = outputs.binary_entry(output)
            raws.append(raw)
        else:
            entry, n_here = v2_json.json_entry(output)
            n_nulled += n_here
        entries.append({key: value for key, value in entry.items() if value is not None})
    head = _json_part(response, entries)
    return EncodedBinary([head, *raws], len(head), n_nulled)


class _Tail:
    """The bytes after the JSON part, given to the inputs in their order."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def read_input(self, header: InputHeader) -> InferInput:
        size = (header.parameters or {}).get(BINARY_DATA_SIZE)
        if size is None:
            return v2_json.read_json_input(header)
        owner = f"input {header.name!r}"
        if header.data is not None:
            raise InvalidInput(f"{owner}: expected 'data' or {BINARY_DATA_SIZE!r}, got both")
        if type(size) is not int or size < 0:
            raise InvalidInput(
                f"{owner}: expected {BINARY_DATA_SIZE!r} to be a number of bytes, got {size!r}"
            )
        left = len(self._data) - self._position
        if size > left:
            raise InvalidInput(f"{owner}: expected {size} bytes of binary data, got {left}")
        raw = self._data[self._position : self._position + size]
        self._position += size
        return _binary_input(header, raw)

    def check_end(self) -> None:
        if self._position != len(self._data):
            raise InvalidInput(
                f"expected {self._position} bytes of binary data after the JSON part, "
                f"got {len(self._data)}"
            )


def _read_request(
    value: Any, tail: memoryview, model_name: str, may_be_empty: bool
) -> InferRequest:
    binary = _Tail(tail)
    request = v2_json.read_request(value, model_name, binary.read_input, may_be_empty=may_be_empty)
    binary.check_end()
    return request


def _binary_input(header: InputHeader, raw: memoryview) -> InferInput:
    # "For BOOL type element true is a single byte with value 1 and false [...] with value 0."
    if header.datatype == "BOOL" and np.any(np.frombuffer(raw, np.uint8) > 1):
        raise InvalidInput(f"input {header.name!r}: expected BOOL bytes of 0 or 1")
    tensor = InferInput(header.name, header.shape, header.datatype, parameters=header.parameters)
    tensor.set_raw_data(raw)
    return tensor


def _raw_input(spec: InputSpec, body: memoryview) -> InferInput:
    if spec.datatype == "BYTES":
        # "If the data type is BYTES, the shape must be [1]."
        if len(spec.shape) != 1 or spec.shape[0] not in (-1, 1):
            raise InvalidInput(_no_raw_form(spec))
        element = np.array([bytes(body)], dtype=np.object_)
        return InferInput.from_array(spec.name, [1], "BYTES", element)
    # "the number of variable dimensions is not more than 1"
    if spec.shape.count(-1) > 1:
        raise InvalidInput(_no_raw_form(spec))
    row_bytes = NUMPY_DTYPES[spec.datatype].itemsize * prod(n for n in spec.shape if n != -1)
    n_any, rest = divmod(len(body), row_bytes) if row_bytes else (0, len(body))
    if rest:
        raise InvalidInput(
            f"input {spec.name!r}: expected a multiple of {row_bytes} bytes for "
            f"{spec.datatype} of shape {list(spec.shape)}, got {len(body)}"
        )
    shape = [n_any if n == -1 else n for n in spec.shape]
    return _binary_input(InputHeader(spec.name, shape, spec.datatype, None, None), body)


def _no_raw_form(spec: InputSpec) -> str:
    return (
        f"input {spec.name!r}: {spec.datatype} of shape {list(spec.shape)} does not follow from a "
        f"number of bytes, send its shape in a JSON part"
    )


def _forms(response: InferResponse, request: InferRequest) -> list[tuple[InferOutput, bool]]:
    """Give the outputs to send, and whether each goes in binary form."""
    forms = response.outputs_to_send()
    if response._requested_outputs is not None:
        return forms
    asked = {output.name: output.binary_data for output in request.request_outputs or ()}
    as_binary = request.use_binary_outputs or response.use_binary_outputs
    return [
        (output, as_binary if asked.get(output.name) is None else bool(asked[output.name]))
        for output, _ in forms
    ]


def _json_part(response: InferResponse, entries: list[dict[str, Any]]) -> bytes:
    document: dict[str, Any] = {
        "id": response.id,
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": entries,
    }
    if response.parameters:
        document["parameters"] = response.parameters
    try:
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise InferenceError(f"the response cannot be written as JSON: {error}") from error
