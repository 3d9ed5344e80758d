"""OpenAI's error object, for what fails before a request is known; nothing else is loaded."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson

# What OpenAI calls the mistakes of a client, and its own.
INVALID_REQUEST: Final = "invalid_request_error"
RATE_LIMIT: Final = "rate_limit_error"
SERVER_ERROR: Final = "server_error"

# For programs, by the status, where nothing more is known.
CODES: Final[Mapping[int, str]] = MappingProxyType(
    {
        404: "not_found",
        405: "method_not_allowed",
        408: "request_timeout",
        413: "request_too_large",
        415: "unsupported_encoding",
        429: "rate_limit_exceeded",
        431: "request_head_too_large",
        500: "internal_error",
        501: "not_implemented",
        502: "bad_gateway",
        503: "unavailable",
        504: "timeout",
    }
)


def type_of(status: int) -> str:
    """Give the kind of an error with a status."""
    if status == 429:
        return RATE_LIMIT
    return INVALID_REQUEST if status < 500 else SERVER_ERROR


def error_object(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Give the error of a status.

    Args:
        status: The status.
        message: For people.
        param: The field of the request that is at fault.
        code: For programs; None is that of the status.
    """
    return {
        "error": {
            "message": message,
            "type": type_of(status),
            "param": param,
            "code": code or CODES.get(status),
        }
    }


def error_body(status: int, message: str) -> bytes:
    """Give the body of a response with a status."""
    return orjson.dumps(error_object(status, message))
