"""The gRPC side of the tensor types, as methods of theirs; gRPC is imported by the first call.

KServe's SDK has these names on the types and beside them.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from kserve.errors import InvalidInput

if TYPE_CHECKING:
    from kserve.protocol.grpc.grpc_predict_v2_pb2 import (
        InferParameter,
        InferTensorContents,
        ModelInferRequest,
        ModelInferResponse,
    )
    from kserve.protocol.infer_type import InferRequest, InferResponse

T = TypeVar("T")


class FromGrpc(Generic[T]):
    """Two things of one name: the class reads a message, an object says whether it came by gRPC.

    Args:
        read: Makes an object of a message.
    """

    def __init__(self, read: Callable[[Any], T]) -> None:
        self._read = read

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[[Any], T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> bool: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        return self._read if instance is None else instance.__dict__["from_grpc"]

    def __set__(self, instance: Any, value: bool) -> None:
        instance.__dict__["from_grpc"] = value


def read_request(message: "ModelInferRequest") -> "InferRequest":
    """Read a request; see `kserve.protocol.grpc.codec.decode_request`."""
    from kserve.protocol.grpc import codec

    return codec.decode_request(message)


def read_response(message: "ModelInferResponse") -> "InferResponse":
    """Read a response; see `kserve.protocol.grpc.codec.decode_response`."""
    from kserve.protocol.grpc import codec

    return codec.decode_response(message)


def write_request(request: "InferRequest") -> "ModelInferRequest":
    """Give the message of a request; see `kserve.protocol.grpc.codec.encode_request`."""
    from kserve.protocol.grpc import codec

    return codec.encode_request(request)


def write_response(response: "InferResponse") -> "ModelInferResponse":
    """Give the message of a response; see `kserve.protocol.grpc.codec.encode_response`."""
    from kserve.protocol.grpc import codec

    return codec.join_raw(*codec.encode_response(response))


def get_content(datatype: str, data: "InferTensorContents") -> list[Any]:
    """Give the elements in the field of a datatype; FP16 has none, so its list is empty.

    Raises:
        InvalidInput: The datatype is unknown.
    """
    from kserve.protocol.grpc.contents import CONTENT_FIELDS

    if datatype == "FP16":
        return []
    if datatype not in CONTENT_FIELDS:
        raise InvalidInput(f"invalid content type {datatype!r}")
    return list(getattr(data, CONTENT_FIELDS[datatype]))


def to_grpc_parameters(parameters: Mapping[str, Any]) -> "dict[str, InferParameter]":
    """Give the messages of parameters.

    Raises:
        InvalidInput: A value is no bool, int, float or str, or an int of more than 64 bits.
    """
    from kserve.protocol.grpc.parameters import encode_parameters

    return encode_parameters(parameters)


def to_http_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values of parameter messages; other values stay."""
    from kserve.protocol.grpc.parameters import decode_parameters

    return decode_parameters(parameters)
