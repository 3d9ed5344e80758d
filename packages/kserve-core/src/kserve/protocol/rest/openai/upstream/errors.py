"""What a client reads where the server behind a proxy fails, refuses, or is not there."""

from collections.abc import Mapping
from typing import Any, Final

import httpx2
import orjson

from kserve.listing import shortened
from kserve.protocol.rest.openai.error_object import CODES, type_of
from kserve.protocol.rest.openai.errors import OpenAIError
from kserve.protocol.rest.openai.types import Error, ErrorResponse

# They tell a client when to come back.
_PASSED_ON: Final = ("retry-after", "retry-after-ms", "x-should-retry")

# Nothing says so but the text, in vLLM, SGLang and llama.cpp.
_OVERFLOW: Final = ("maximum context length", "context size", "context length")

# A gateway in front of the server answers so, in a form of its own.
_GATEWAYS: Final = {
    429: "the upstream server has too much to do",
    503: "the upstream server is unavailable",
    504: "the upstream server did not answer in time",
}

# A proxy has been told the wrong address, or the server does not do that.
_NO_ROUTE: Final = (404, 405)


def gateway_error(
    status: int, message: str, code: str | None = None, *, is_final: bool = False
) -> OpenAIError:
    """Give the error of a proxy that has no answer to pass on.

    Args:
        status: 501 to 504.
        message: For people; has no address in it.
        code: For programs; None is that of the status.
        is_final: Whether it would be no use to ask again.
    """
    error = Error(message=message, type=type_of(status), param=None, code=code or CODES.get(status))
    return _openai_error(status, error, {"x-should-retry": "false"} if is_final else {})


def transport_error(exc: httpx2.HTTPError) -> OpenAIError:
    """Give the error for a connection that failed."""
    if isinstance(exc, httpx2.ConnectTimeout):
        return gateway_error(
            504, "the upstream server did not accept a connection in time", "upstream_timeout"
        )
    if isinstance(exc, httpx2.ConnectError):
        return gateway_error(503, "the upstream server cannot be reached", "upstream_unavailable")
    if isinstance(exc, httpx2.TimeoutException):
        # It may still work on it.
        return gateway_error(
            504,
            "the upstream server sent nothing for too long",
            "upstream_timeout",
            is_final=True,
        )
    if isinstance(exc, httpx2.NetworkError | httpx2.ProtocolError):
        return gateway_error(502, "the upstream server broke off its answer")
    return gateway_error(502, "the upstream server cannot be understood")


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, route: str, *, has_own_key: bool = False
) -> OpenAIError:
    """Give the error for a response that is none of success.

    An error of the server's own goes to the client as it is, but for its form.

    Args:
        status: The status of the response.
        headers: Its headers.
        body: Its body.
        route: What was asked, such as `POST /v1/embeddings`.
        has_own_key: The proxy has shown a key of its own, so that the client has nothing to do
            with a refusal of it.
    """
    kept = {name: headers[name] for name in _PASSED_ON if name in headers}
    if has_own_key and status in (401, 403):
        return gateway_error(502, f"the upstream server refuses the proxy's key ({status})")
    error = read_error(status, body)
    if error is not None and 400 <= status <= 599:
        return _openai_error(status, error, kept)
    if status in _NO_ROUTE:
        return gateway_error(
            501,
            f"the upstream server answers {status} to {route}: it does not have that, or is not "
            "at this address",
            is_final=True,
        )
    if status in _GATEWAYS:
        error = Error(message=_GATEWAYS[status], type=type_of(status), code=CODES.get(status))
        return _openai_error(status, error, kept)
    return gateway_error(
        502, f"the upstream server answers {status}, and with no error of OpenAI's"
    )


def failure(document: Any) -> OpenAIError:
    """Give the error for an answer of success that is an error, as a stream may have amid it."""
    # What is said after a 200 is no refusal of what the client has sent.
    error = error_of(502, document)
    if error is None:
        return gateway_error(502, "the upstream server failed, and does not say why")
    return _openai_error(502, error, {})


def read_error(status: int, body: bytes) -> Error | None:
    """Give the error in a body, whatever server wrote it; None if there is none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return error_of(status, document)


def error_of(status: int, document: Any) -> Error | None:
    """Give the error in a document, whatever server wrote it; None if there is none.

    OpenAI's object, the same without the `error` around it, as SGLang and older vLLM have it, a
    text, as KServe and TGI do, and what FastAPI says of a request that it cannot read.
    """
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    if isinstance(error, str) and error:
        error = {"message": error, "type": document.get("error_type")}
    elif not error and document.get("object") == "error":
        error = document
    elif not error and status not in _NO_ROUTE and document.get("detail"):
        error = {"message": _detail(document["detail"])}
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    kind, param = error.get("type"), error.get("param")
    return Error(
        message=error["message"],
        type=kind if isinstance(kind, str) else type_of(status),
        param=param if isinstance(param, str) else None,
        code=_code(status, error),
    )


def _code(status: int, error: Mapping[str, Any]) -> str | None:
    code = error.get("code")
    # vLLM and llama.cpp have the status in its place.
    if isinstance(code, str) and code and not code.isdigit():
        return code
    if status == 400 and any(words in error["message"].lower() for words in _OVERFLOW):
        return "context_length_exceeded"
    return CODES.get(status)


def _detail(detail: Any) -> str:
    if isinstance(detail, str):
        return detail
    if isinstance(detail, list) and all(isinstance(each, dict) for each in detail):
        return "; ".join(
            f"{'.'.join(map(str, each.get('loc') or ()))}: {each.get('msg')}" for each in detail
        )
    return shortened(repr(detail))


def _openai_error(status: int, error: Error, headers: Mapping[str, str]) -> OpenAIError:
    response = ErrorResponse(error=error)
    vars(response)["_http_status"] = status
    failed = OpenAIError(response, headers)
    failed.is_ours = False
    return failed
