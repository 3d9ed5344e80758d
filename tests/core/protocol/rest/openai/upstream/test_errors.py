"""What a client reads for each way in which a server refuses or fails."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import orjson
import pytest

from kserve.protocol.rest.openai.upstream.errors import transport_error
from kserve.testing import request

Serve = Callable[..., AbstractContextManager[int]]

COMPLETIONS = "/v1/completions"
REFUSED = "invalid_request_error"
NO_OBJECT = "the upstream server answers with no JSON object"
BAD = ("server_error", None, "bad_gateway")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        pytest.param(
            400,
            {"error": {"message": "m", "type": "t", "param": "p", "code": "c"}},
            (400, "m", "t", "p", "c"),
            id="OpenAI",
        ),
        pytest.param(
            404,
            {"error": {"message": "m", "type": "NotFoundError", "param": "model", "code": 404}},
            (404, "m", "NotFoundError", "model", "not_found"),
            id="vLLM",
        ),
        pytest.param(
            400,
            {"object": "error", "message": "m", "type": "BadRequestError", "code": 400},
            (400, "m", "BadRequestError", None, None),
            id="SGLang",
        ),
        pytest.param(
            400,
            {
                "error": {
                    "message": "the maximum context length is 8 tokens",
                    "code": "400",
                }
            },
            (
                400,
                "the maximum context length is 8 tokens",
                REFUSED,
                None,
                "context_length_exceeded",
            ),
            id="overflow",
        ),
        pytest.param(
            422,
            {"error": "m", "error_type": "validation"},
            (422, "m", "validation", None, None),
            id="TGI",
        ),
        pytest.param(400, {"error": "m"}, (400, "m", REFUSED, None, None), id="KServe"),
        pytest.param(
            422,
            {"detail": [{"loc": ["body", "a", 0], "msg": "bad"}, {"msg": "worse"}]},
            (422, "body.a.0: bad; : worse", REFUSED, None, None),
            id="FastAPI",
        ),
        pytest.param(400, {"detail": "m"}, (400, "m", REFUSED, None, None), id="a detail"),
        pytest.param(
            400, {"detail": {"a": 1}}, (400, "{'a': 1}", REFUSED, None, None), id="another detail"
        ),
        pytest.param(
            500,
            {"error": {"message": "m", "type": "InternalServerError", "code": 500}},
            (500, "m", "InternalServerError", None, "internal_error"),
            id="its fault",
        ),
        pytest.param(
            404,
            {"detail": "Not Found"},
            (
                501,
                "the upstream server answers 404 to POST /v1/completions: it does not have that, "
                "or is not at this address",
                "server_error",
                None,
                "not_implemented",
            ),
            id="no route",
        ),
        pytest.param(
            503,
            b"no healthy upstream",
            (503, "the upstream server is unavailable", "server_error", None, "unavailable"),
            id="Envoy",
        ),
        pytest.param(
            429,
            b"<html>",
            (
                429,
                "the upstream server has too much to do",
                "rate_limit_error",
                None,
                "rate_limit_exceeded",
            ),
            id="a gateway's limit",
        ),
        pytest.param(
            504,
            b"",
            (504, "the upstream server did not answer in time", "server_error", None, "timeout"),
            id="a gateway's timeout",
        ),
        *(
            pytest.param(
                status,
                body,
                (
                    502,
                    f"the upstream server answers {status}, and with no error of OpenAI's",
                    *BAD,
                ),
                id=f"{status} {body!r}",
            )
            for status, body in [
                (400, b"<html>"),
                (500, b"<html>secret"),
                (500, {"error": {"code": 1}}),
                (500, [1]),
                (307, {"error": {"message": "m"}}),
            ]
        ),
        pytest.param(
            200,
            b"<html>",
            (502, NO_OBJECT, *BAD),
            id="HTML",
        ),
        pytest.param(200, [1], (502, NO_OBJECT, *BAD), id="a list"),
        pytest.param(
            200,
            {"a": 1},
            (502, "the upstream server's answer has no 'choices'", *BAD),
            id="no choices",
        ),
        pytest.param(
            200,
            {"error": {"message": "m", "type": "t", "code": "c"}},
            (502, "m", "t", None, "c"),
            id="an error and 200",
        ),
        pytest.param(
            200,
            {"error": True},
            (502, "the upstream server failed, and does not say why", *BAD),
            id="an error of no kind",
        ),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_errors_get_openai_s_form(
    upstream: Any,
    proxied: Serve,
    status: int,
    body: Any,
    expected: tuple[Any, ...],
    is_streamed: bool,
) -> None:
    async def script(asked: Any) -> None:
        await asked.reply(body, status, retry_after="7", x_internal="1")

    upstream.scripts[COMPLETIONS] = script

    with proxied(upstream_model="a") as port:
        asked = orjson.dumps({"prompt": "a", "stream": is_streamed})
        answer = request(port, "POST", COMPLETIONS, asked)

    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (answer.status, *error.values()) == expected
    is_passed_on = status == answer.status
    assert answer.headers.get("retry-after") == ("7" if is_passed_on else None)
    assert "x-internal" not in answer.headers


def test_an_error_that_is_null_is_none(upstream: Any, proxied: Serve) -> None:
    async def script(asked: Any) -> None:
        await asked.reply({"error": None, "object": "text_completion", "choices": []})

    upstream.scripts[COMPLETIONS] = script

    with proxied() as port:
        answer = request(port, "POST", COMPLETIONS, b'{"prompt": "a"}')

    assert answer.status == 200


@pytest.mark.parametrize(
    ("exc", "status", "code", "is_final"),
    [
        (httpx2.ConnectError(""), 503, "upstream_unavailable", False),
        (httpx2.ConnectTimeout(""), 504, "upstream_timeout", False),
        (httpx2.ReadTimeout(""), 504, "upstream_timeout", True),
        (httpx2.WriteTimeout(""), 504, "upstream_timeout", True),
        (httpx2.ReadError(""), 502, "bad_gateway", False),
        (httpx2.WriteError(""), 502, "bad_gateway", False),
        (httpx2.RemoteProtocolError(""), 502, "bad_gateway", False),
        (httpx2.DecodingError(""), 502, "bad_gateway", False),
    ],
)
def test_every_failure_of_a_connection_has_a_status(
    exc: httpx2.HTTPError, status: int, code: str, is_final: bool
) -> None:
    error = transport_error(exc)

    assert (error.http_status, error.response.error.code) == (status, code)
    assert error.response.error.type == "server_error"
    assert dict(error.http_headers) == ({"x-should-retry": "false"} if is_final else {})


def test_the_log_has_the_server_and_neither_text_nor_key_of_a_request(
    upstream: Any, proxied: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def script(asked: Any) -> None:
        await asked.reply(b"<html>a private text", 502)

    upstream.scripts[COMPLETIONS] = script

    with proxied() as port:
        key = {"authorization": "Bearer private-key"}
        request(port, "POST", COMPLETIONS, b'{"prompt": "a private text"}', key)

    assert upstream.asked_of(COMPLETIONS)[0].headers["authorization"] == "Bearer private-key"
    assert f"Upstream {upstream.url} answers 502 to POST /v1/completions" in caplog.text
    assert "private" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
