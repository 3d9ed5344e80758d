"""What a client gets for each exception."""

from typing import Any

import orjson
import pytest
from starlette.exceptions import HTTPException

from kserve.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    RequestTooLarge,
    ServerNotReady,
    TooManyRequests,
)
from kserve.protocol.rest.openai import OpenAIError, create_error_response
from kserve.protocol.rest.openai.error_object import error_body
from kserve.protocol.rest.openai.failures import error_response

INVALID, SERVER = "invalid_request_error", "server_error"


@pytest.mark.parametrize(
    ("exc", "status", "kind", "param", "code", "headers"),
    [
        (InvalidInput("a"), 400, INVALID, None, None, {}),
        (ModelNotFound("m"), 404, INVALID, "model", "model_not_found", {}),
        (ModelNotReady("m"), 503, SERVER, "model", "model_not_ready", {}),
        (ServerNotReady(), 503, SERVER, None, "unavailable", {}),
        (RequestTooLarge("a"), 413, INVALID, None, "request_too_large", {}),
        (
            TooManyRequests("a", 2),
            429,
            "rate_limit_error",
            None,
            "rate_limit_exceeded",
            {b"retry-after": b"2"},
        ),
        (DeadlineExceeded("a"), 504, SERVER, None, "timeout", {b"x-should-retry": b"false"}),
        (
            NotImplementedError("a"),
            501,
            SERVER,
            None,
            "not_implemented",
            {b"x-should-retry": b"false"},
        ),
        (InferenceError("a"), 500, SERVER, None, "internal_error", {}),
        (HTTPException(405), 405, INVALID, None, "method_not_allowed", {}),
        (KeyError("secret"), 500, SERVER, None, "internal_error", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_has_a_status_a_kind_and_a_code(
    exc: Exception,
    status: int,
    kind: str,
    param: str | None,
    code: str | None,
    headers: dict[bytes, bytes],
) -> None:
    got_status, body, got_headers = error_response(exc)

    error: dict[str, Any] = orjson.loads(body)["error"]
    assert got_status == status
    assert (error["type"], error["param"], error["code"]) == (kind, param, code)
    assert b"secret" not in body
    assert dict(got_headers) == {b"content-type": b"application/json", **headers}


def test_an_error_of_a_handler_s_own_is_given_as_it_is() -> None:
    response = create_error_response("busy", "Busy", None, 503, "try_later")

    status, body, headers = error_response(OpenAIError(response, {"retry-after": "7"}))

    assert (status, dict(headers)[b"retry-after"]) == (503, b"7")
    assert orjson.loads(body) == {
        "error": {"message": "busy", "type": "Busy", "param": None, "code": "try_later"}
    }


def test_a_connection_s_own_refusal_reads_as_one_of_the_routes() -> None:
    expected = error_response(RequestTooLarge("too large"))[1]

    assert error_body(413, "too large") == expected
