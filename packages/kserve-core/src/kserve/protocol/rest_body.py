"""The REST form of V2 requests and responses: a JSON document, then tensors in binary form.

Source: Open Inference Protocol v2, "Binary tensor data": the size of each tensor is its parameter
`binary_data_size`, and the data follows in the order of the tensors.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from collections.abc import Iterable
from typing import Any, Self, TypeVar

import numpy as np
import orjson

from kserve.errors import InvalidInput
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.codec.json_body import parse
from kserve.protocol.tensor import BINARY_DATA_SIZE, RawData, RequestedOutput, Tensor

AnyTensor = TypeVar("AnyTensor", bound=Tensor)


class RestBody:
    """A body to read: the fields of its document, and the bytes after it, taken in order.

    Args:
        body: The whole body; tensors in binary form are views of it.
        json_length: Length in bytes of the JSON part.

    Raises:
        InvalidInput: The length does not fit the body, or the part is no JSON object.
    """

    def __init__(self, body: RawData, json_length: int) -> None:
        view = memoryview(body)
        if not 0 <= json_length <= len(view):
            raise InvalidInput(
                f"expected a JSON part of 0 to {len(view)} bytes, got a length of {json_length}"
            )
        self._document = _object(parse(view[:json_length]), "the body")
        self._tail = view[json_length:]
        self._position = 0

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> Self:
        """Make a body of a parsed document, with no bytes after it."""
        body = cls(b"{}", 2)
        body._document = _object(document, "the body")
        return body

    def field(self, key: str, kind: type) -> Any:
        """Give a field of the document, None if it is missing or null.

        Raises:
            InvalidInput: The field is of another type.
        """
        return _optional(self._document, key, kind, "the body")

    def tensors(self, kind: type[AnyTensor], key: str) -> list[AnyTensor]:
        """Read the tensors listed under `key`, and all bytes after the document.

        Raises:
            InvalidInput: A field is missing or of another type, a name occurs twice, a datatype is
                unknown, or binary data disagrees with sizes, shapes or datatypes.
        """
        entries = _required(self._document, key, list, "the body")
        tensors = [self._tensor(kind, entry, f"{key}[{i}]") for i, entry in enumerate(entries)]
        if self._position != len(self._tail):
            raise InvalidInput(
                f"expected {self._position} bytes of binary data, got {len(self._tail)}"
            )
        _check_unique(tensors)
        return tensors

    def requested_outputs(self) -> list[RequestedOutput] | None:
        """Read the outputs that a request asks for; None if it does not say.

        Raises:
            InvalidInput: A field is missing or of another type.
        """
        entries = self.field("outputs", list)
        if entries is None:
            return None
        return [_requested_output(entry, f"outputs[{i}]") for i, entry in enumerate(entries)]

    def _tensor(self, kind: type[AnyTensor], entry: object, where: str) -> AnyTensor:
        fields = _object(entry, where)
        parameters = _optional(fields, "parameters", dict, where)
        tensor = kind(
            name=_required(fields, "name", str, where),
            shape=_shape(fields, where),
            datatype=_required(fields, "datatype", str, where),
            data=_data(fields, where),
            parameters=parameters,
        )
        if tensor.datatype not in NUMPY_DTYPES:
            raise InvalidInput(
                f"{tensor.label}: unknown datatype {tensor.datatype!r}, "
                f"expected {', '.join(NUMPY_DTYPES)}"
            )
        if parameters and BINARY_DATA_SIZE in parameters:
            self._take_binary(tensor, parameters[BINARY_DATA_SIZE])
        elif not tensor.has_data:
            raise InvalidInput(f"'data' field is missing for {tensor.label}")
        return tensor

    def _take_binary(self, tensor: Tensor, size: object) -> None:
        if tensor.has_data:
            raise InvalidInput(f"{tensor.label}: expected 'data' or {BINARY_DATA_SIZE!r}, got both")
        if type(size) is not int or size < 0:
            raise InvalidInput(
                f"{tensor.label}: expected {BINARY_DATA_SIZE!r} to be a number of bytes, "
                f"got {size!r}"
            )
        left = len(self._tail) - self._position
        if size > left:
            raise InvalidInput(f"{tensor.label}: expected {size} bytes of binary data, got {left}")
        tensor.set_raw_data(self._tail[self._position : self._position + size])
        self._position += size


def join_body(
    document: dict[str, Any], raws: Iterable[RawData | None]
) -> tuple[dict[str, Any] | bytes, int | None]:
    """Put a document and the tensors in binary form together.

    Args:
        document: What becomes the JSON part.
        raws: The binary form of each tensor, None for those that are in the document.

    Returns:
        The document and None if nothing is in binary form, otherwise the body and the length in
        bytes of its JSON part.
    """
    binary = [raw for raw in raws if raw is not None]
    if not binary:
        return document, None
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([head, *binary]), len(head)


def _requested_output(entry: object, where: str) -> RequestedOutput:
    fields = _object(entry, where)
    name = _required(fields, "name", str, where)
    return RequestedOutput(name, _optional(fields, "parameters", dict, where))


def _shape(fields: dict[str, Any], where: str) -> list[int]:
    if isinstance(fields.get("shape"), tuple):
        # That of an array, in a document that user code made.
        fields = {**fields, "shape": list(fields["shape"])}
    shape: list[int] = _required(fields, "shape", list, where)
    if not all(type(axis) is int and axis >= 0 for axis in shape):
        raise InvalidInput(f"{where}: expected 'shape' as whole numbers from 0, got {shape}")
    return shape


def _data(fields: dict[str, Any], where: str) -> Any:
    # As above: an array, which a parser never gives.
    data = fields.get("data")
    return data if isinstance(data, np.ndarray) else _optional(fields, "data", list, where)


def _check_unique(tensors: Iterable[Tensor]) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise InvalidInput(f"{tensor.label}: expected each name once, got it twice")
        names.add(tensor.name)


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"expected {where} to be an object, got {type(value).__name__}")
    return value


def _required(fields: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = _optional(fields, key, kind, where)
    if value is None:
        raise InvalidInput(f"'{key}' field is missing in {where}")
    return value


def _optional(fields: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = fields.get(key)
    if value is not None and not isinstance(value, kind):
        raise InvalidInput(
            f"{where}: expected {key!r} to be a {kind.__name__}, got {type(value).__name__}"
        )
    return value
