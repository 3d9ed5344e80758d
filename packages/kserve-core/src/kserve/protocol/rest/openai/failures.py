"""What a client of the OpenAI routes gets for an exception."""

from collections.abc import Mapping
from typing import Final

from starlette.exceptions import HTTPException

from kserve.errors import (
    InferenceServerError,
    ModelNotFound,
    ModelNotReady,
    describe,
)
from kserve.protocol.compression import RawHeaders
from kserve.protocol.rest.exchange import JSON_HEADERS, encode_headers
from kserve.protocol.rest.openai.encoding import encode_chunk
from kserve.protocol.rest.openai.error_object import CODES, type_of
from kserve.protocol.rest.openai.errors import OpenAIError
from kserve.protocol.rest.openai.types import Error, ErrorResponse

# OpenAI's clients try 500 and above again unless they are told not to: what takes longer than it
# may would take as long again, and what is not there is not there later either.
_FINAL: Final = (501, 504)


def error_response(exc: Exception) -> tuple[int, bytes, RawHeaders]:
    """Give the status, the body and the headers of the response to a request that failed.

    Raises:
        ValueError: A header of the user's cannot be sent.
    """
    status, response, headers = _failure(exc)
    return status, encode_chunk(response), [*JSON_HEADERS, *encode_headers(headers)]


def _failure(exc: Exception) -> tuple[int, ErrorResponse, Mapping[str, str]]:
    if isinstance(exc, OpenAIError):
        return exc.http_status, exc.response, exc.http_headers
    if isinstance(exc, HTTPException):
        error = _error(exc.status_code, str(exc.detail))
        return exc.status_code, error, exc.headers or {}
    status, _, text = describe(exc)
    headers = dict(exc.http_headers) if isinstance(exc, InferenceServerError) else {}
    if status in _FINAL:
        headers["x-should-retry"] = "false"
    if isinstance(exc, ModelNotFound):
        return status, _error(status, text, "model", "model_not_found"), headers
    if isinstance(exc, ModelNotReady):
        return status, _error(status, text, "model", "model_not_ready"), headers
    return status, _error(status, text), headers


def _error(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> ErrorResponse:
    code = code or CODES.get(status)
    return ErrorResponse(error=Error(message=message, type=type_of(status), param=param, code=code))
