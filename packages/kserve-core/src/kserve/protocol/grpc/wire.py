"""Serialized messages whose raw tensors pass by protobuf without being copied.

Parsing copies every `bytes` field, and so does serializing; a request of 40 MB would be in memory
seven times on its way through. So the raw tensors are cut out of a request's bytes, and put behind
the bytes of the rest of a response.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final

from google.protobuf.message import DecodeError

from kserve.errors import InvalidInput
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse
from kserve.protocol.grpc.varint import decode_varint, encode_varint
from kserve.protocol.tensor import RawData

Data = bytes | memoryview

# Fields 7 and 6, length-delimited: `raw_input_contents`, `raw_output_contents`.
_RAW_INPUT: Final = 0x3A
_RAW_OUTPUT: Final = b"\x32"

# Below this many bytes protobuf's copy is cheaper than a look at the fields in Python.
_CUT_BYTES: Final = 64 << 10
# A message of more top-level fields is left to protobuf: Python would take seconds over millions.
_MAX_FIELDS: Final = 1000

# Source: https://protobuf.dev/programming-guides/encoding/#structure
_VARINT, _I64, _LENGTH_DELIMITED, _I32 = 0, 1, 2, 5


def split_request(data: Data) -> tuple[ModelInferRequest, Sequence[RawData]]:
    """Parse a request.

    Returns:
        The message, and the raw tensors, which need not be in the message: views of large data.

    Raises:
        InvalidInput: The data is no such message.
    """
    if len(data) >= _CUT_BYTES:
        rest, raws = _cut(data)
        if raws:
            return parse_request(rest), raws
    message = parse_request(data)
    return message, message.raw_input_contents


def parse_request(data: Data) -> ModelInferRequest:
    """Parse a request by protobuf alone.

    Raises:
        InvalidInput: The data is no such message.
    """
    try:
        return ModelInferRequest.FromString(bytes(data))
    except DecodeError as exc:
        raise InvalidInput(f"expected a ModelInferRequest message: {exc}") from exc


def join_response(message: ModelInferResponse, raws: Iterable[RawData]) -> bytes:
    """Serialize a response, with these raw tensors after those that it holds."""
    tensors = ((_RAW_OUTPUT, encode_varint(_n_bytes(raw)), raw) for raw in raws)
    return b"".join([message.SerializeToString(), *chain.from_iterable(tensors)])


def _n_bytes(raw: RawData) -> int:
    return raw.nbytes if isinstance(raw, memoryview) else len(raw)


def _cut(data: Data) -> tuple[bytes, list[memoryview]]:
    """Part the raw tensors from the rest; gives none where protobuf has to look itself."""
    view = memoryview(data)
    rest: list[memoryview] = []
    raws: list[memoryview] = []
    end = 0
    for _ in range(_MAX_FIELDS):
        start = end
        if start == len(data):
            return b"".join(rest), raws
        try:
            tag, content, end = _field(data, start)
        except (IndexError, ValueError):
            break
        if tag == _RAW_INPUT:
            raws.append(view[content:end])
        else:
            rest.append(view[start:end])
    return b"", []


def _field(data: Data, start: int) -> tuple[int, int, int]:
    """Give the tag of a field, and where its content begins and ends.

    Raises:
        IndexError: The data ends inside a number.
        ValueError: A number or a type that no message of proto3 has.
    """
    tag, content = decode_varint(data, start)
    wire_type = tag & 7
    if wire_type == _LENGTH_DELIMITED:
        length, content = decode_varint(data, content)
        return tag, content, content + length
    if wire_type == _VARINT:
        return tag, content, decode_varint(data, content)[1]
    if wire_type == _I32:
        return tag, content, content + 4
    if wire_type == _I64:
        return tag, content, content + 8
    raise ValueError(f"wire type {wire_type}")
