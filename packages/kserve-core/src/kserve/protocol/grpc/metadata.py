"""Request metadata as headers, response headers as trailing metadata, and the request's id."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from kserve.request_ids import request_id_of

REQUEST_ID: Final = "x-request-id"

Metadata = tuple[tuple[str, str], ...]

# "Header-Name = 1*( %x30-39 / %x61-7A / "_" / "-" / ".")", "ASCII-Value = 1*( %x20-%x7E )".
# Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(r"[ -~]*")
_BINARY: Final = "-bin"

# They say something about the HTTP response at hand, which is not the one that the model means.
_OWN_HEADERS: Final = frozenset(
    {
        *("connection", "content-encoding", "content-length", "content-type", "date"),
        *("host", "keep-alive", "server", "te", "trailer", "transfer-encoding", "upgrade"),
        REQUEST_ID,
    }
)
_OWN_PREFIX: Final = "grpc-"


def to_headers(context: Any) -> dict[str, str]:
    """Give the metadata of a call as the headers that a model's handlers get.

    Args:
        context: The context of the call, of `grpc` or `grpc.aio`.

    Returns:
        Lower-case names; of repeated ones the last, and none of binary metadata.
    """
    return {
        key.lower(): value
        for key, value in _metadata(context)
        if not key.endswith(_BINARY) and isinstance(value, str)
    }


def request_id(context: Any) -> str:
    """Give the client's `x-request-id`, or a new one if it is missing or not fit to be logged."""
    for key, value in _metadata(context):
        if key == REQUEST_ID and isinstance(value, str):
            return request_id_of(value)
    return request_id_of(None)


def encode_headers(headers: Mapping[str, str]) -> Metadata:
    """Give a model's response headers as metadata, without those that belong to the transport.

    Raises:
        ValueError: A name or a value cannot be sent.
    """
    encoded = []
    for name, value in headers.items():
        key, text = str(name).lower(), str(value)
        if key in _OWN_HEADERS or key.startswith(_OWN_PREFIX):
            continue
        if not _NAME.fullmatch(key) or key.endswith(_BINARY) or not _VALUE.fullmatch(text):
            raise ValueError(f"response header {name!r} is not one that gRPC can carry: {value!r}")
        encoded.append((key, text))
    return tuple(encoded)


def _metadata(context: Any) -> Iterable[tuple[str, Any]]:
    return context.invocation_metadata() or ()
