"""One request and its response: ids, log lines, headers, errors, streams, clients that go away."""

import asyncio
import logging
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.client import HTTPConnection, IncompleteRead
from typing import Any

import numpy as np
import orjson
import pytest
from prometheus_client import REGISTRY
from starlette.exceptions import HTTPException
from starlette.types import Message

from kserve import InferenceVerb, Model
from kserve.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    ModelLoadError,
    ModelNotReady,
)
from kserve.logging import JSONFormatter, logger
from kserve.metrics import AnswerMetrics
from kserve.model import append_forwardable_headers
from kserve.protocol.rest.exchange import ClientDisconnected, Exchange, encode_headers
from kserve.testing import request, serving

MADE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
WAIT_S = 15


class Entries(logging.Handler):
    """The lines of the log, as the JSON format has them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())
        self.lines: list[dict[str, Any]] = []
        self.arrived = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.arrived:
            self.lines.append(orjson.loads(self.format(record)))
            self.arrived.notify_all()

    def wait_for(self, **fields: Any) -> dict[str, Any]:
        """Wait for a line that has the fields."""

        def found() -> dict[str, Any] | None:
            return next((line for line in self.lines if fields.items() <= line.items()), None)

        with self.arrived:
            line = self.arrived.wait_for(found, WAIT_S)
        assert line, f"no line with {fields} in {self.lines}"
        return line

    def of_requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["logger"] == "kserve.trace"]


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Entries:
    handler = Entries()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # levels are cached
    return handler


class Calling(Model):
    """Answers with what a function gives; with one that takes headers, it may set some."""

    def __init__(self, predict: Callable[..., Any], name: str = "calling") -> None:
        super().__init__(name, return_response_headers=True)
        self._predict = predict

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        return self._predict(payload, response_headers)


def _raising(error: Exception) -> Calling:
    def predict(payload: Any, response_headers: dict[str, str]) -> Any:
        raise error

    return Calling(predict)


def _answering(value: Any, **headers: Any) -> Calling:
    def predict(payload: Any, response_headers: dict[str, Any]) -> Any:
        response_headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        return value

    return Calling(predict)


def _headers_of(port: int, **headers: str) -> list[tuple[str, str]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.request("POST", "/v1/models/calling:predict", b"{}", headers)
        response = connection.getresponse()
        response.read()
        return response.getheaders()
    finally:
        connection.close()


def test_the_clients_request_id_comes_back() -> None:
    with serving(_answering({})) as port:
        headers = _headers_of(port, **{"X-Request-ID": "!id-1~"})

    assert [value for name, value in headers if name == "x-request-id"] == ["!id-1~"]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("a b", id="with a space"),
        pytest.param("é", id="not ASCII"),
        pytest.param("a\tb", id="with a tab"),
        pytest.param("x" * 129, id="long"),
    ],
)
def test_an_id_is_made_where_the_client_gives_none_that_can_be_logged(given: str | None) -> None:
    with serving(_answering({})) as port:
        headers = _headers_of(port, **({} if given is None else {"x-request-id": given}))

    ids = [value for name, value in headers if name == "x-request-id"]
    assert len(ids) == 1
    assert MADE_ID.fullmatch(ids[0])


@pytest.mark.parametrize("path", ["/", "/nope", "/metrics", "/v1/models/no:predict"])
def test_every_response_has_an_id(path: str) -> None:
    with serving(_answering({})) as port:
        response = request(port, "GET", path, headers={"x-request-id": "id-1"})

    assert response.headers["x-request-id"] == "id-1"


def test_an_inference_request_leaves_one_line(entries: Entries) -> None:
    with serving(_answering({})) as port:
        request(port, "POST", "/v1/models/calling:predict", {}, {"x-request-id": "id-1"})
        request(port, "GET", "/v1/models/calling")

    (line,) = entries.of_requests()
    assert line.pop("duration_ms") >= 0
    assert line.pop("time")
    assert line == {
        "level": "INFO",
        "logger": "kserve.trace",
        "message": "request",
        "request_id": "id-1",
        "model": "calling",
        "protocol": "v1",
        "status": 200,
    }


def test_the_line_can_be_turned_off(entries: Entries) -> None:
    with serving(_answering({}), enable_latency_logging=False) as port:
        request(port, "POST", "/v1/models/calling:predict", {})

    assert entries.of_requests() == []


def test_a_request_for_an_unknown_model_leaves_a_line_too(entries: Entries) -> None:
    with serving(_answering({})) as port:
        request(port, "POST", "/v2/models/a%0Ab/infer", {})

    (line,) = entries.of_requests()
    assert (line["model"], line["protocol"], line["status"]) == ("a\nb", "v2", 404)


def test_the_line_names_a_model_in_short(entries: Entries) -> None:
    with serving(_answering({})) as port:
        request(port, "POST", f"/v2/models/{'m' * 129}/infer", {})

    (line,) = entries.of_requests()
    assert line["model"] == "m" * 125 + "..."


class Logging(Model):
    """Says something on its thread, and on the loop."""

    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        logger.info("on %s", threading.current_thread().name)
        return payload

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        logger.info("on the loop")
        return {}


def test_lines_of_a_models_own_code_carry_the_request_id(entries: Entries) -> None:
    with serving(Logging("logging")) as port:
        request(port, "POST", "/v1/models/logging:predict", {}, {"x-request-id": "id-1"})

    own = {line["message"]: line["request_id"] for line in entries.lines if "request_id" in line}
    assert own == {"on logging-0": "id-1", "on the loop": "id-1", "request": "id-1"}


class Forwarding(Model):
    """Answers with the request id that it would pass on to a predictor."""

    def predict(  # type: ignore[override]
        self, payload: Any, headers: dict[str, str] | None = None
    ) -> Any:
        return append_forwardable_headers(headers or {}, {})


@pytest.mark.parametrize("given", [None, "id-1", "not\tprintable"])
def test_handlers_see_the_request_id_that_the_answer_carries(given: str | None) -> None:
    sent = {} if given is None else {"x-request-id": given}

    with serving(Forwarding("forwarding")) as port:
        answer = request(port, "POST", "/v1/models/forwarding:predict", {}, sent)

    assert answer.json() == {"x-request-id": answer.headers["x-request-id"]}


def test_an_unexpected_error_shows_nothing_and_is_logged_under_its_id(entries: Entries) -> None:
    with serving(_raising(KeyError("secret"))) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {}, {"x-request-id": "id-1"})

    assert (response.status, response.body) == (500, b'{"error":"Internal server error"}')
    line = entries.wait_for(message="Request failed")
    assert (line["level"], line["request_id"]) == ("ERROR", "id-1")
    assert line["exception"].endswith("KeyError: 'secret'")


@pytest.mark.parametrize(
    ("error", "status", "body", "is_logged"),
    [
        pytest.param(InvalidInput("bad"), 400, b'{"error":"bad"}', False, id="InvalidInput"),
        pytest.param(
            ModelNotReady("m"),
            503,
            b'{"error":"Model with name m is not ready."}',
            False,
            id="ModelNotReady",
        ),
        pytest.param(
            InferenceError("boom", status="7"),
            500,
            b'{"error":"[7] boom"}',
            True,
            id="InferenceError",
        ),
        pytest.param(
            DeadlineExceeded("too late"), 504, b'{"error":"too late"}', False, id="DeadlineExceeded"
        ),
        pytest.param(
            NotImplementedError("later"), 501, b'{"error":"later"}', False, id="NotImplementedError"
        ),
        pytest.param(
            ModelLoadError("/secret"),
            500,
            b'{"error":"Internal server error"}',
            True,
            id="ModelLoadError",
        ),
        pytest.param(
            HTTPException(418), 418, b'{"detail":"I\'m a Teapot"}', False, id="HTTPException"
        ),
        pytest.param(
            HTTPException(429, "slow down"), 429, b'{"detail":"slow down"}', False, id="its detail"
        ),
        pytest.param(
            HTTPException(422, {"loc": ["a"]}),  # type: ignore[arg-type]  # FastAPI's may be any
            422,
            b'{"detail":{"loc":["a"]}}',
            False,
            id="its detail as an object",
        ),
        pytest.param(HTTPException(204), 204, b"", False, id="a status without a body"),
        pytest.param(
            HTTPException(502, "upstream"), 502, b'{"detail":"upstream"}', True, id="5xx of its own"
        ),
        pytest.param(
            HTTPException(400, "a\udc80"),
            500,
            b'{"error":"Internal server error"}',
            True,
            id="a detail that is not UTF-8",
        ),
        pytest.param(
            InvalidInput("a\udc80"),
            500,
            b'{"error":"Internal server error"}',
            True,
            id="a text that is not UTF-8",
        ),
        pytest.param(
            HTTPException(400, headers={"x-a": "b\r\nx-forged: 1"}),
            500,
            b'{"error":"Internal server error"}',
            True,
            id="headers that cannot be sent",
        ),
    ],
)
def test_an_error_of_a_model_has_its_status_and_text(
    error: Exception, status: int, body: bytes, is_logged: bool, entries: Entries
) -> None:
    with serving(_raising(error)) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {})

    assert (response.status, response.body) == (status, body)
    assert [line["message"] for line in entries.lines if line["level"] == "ERROR"] == (
        ["Request failed"] if is_logged else []
    )


def test_details_for_the_log_stay_in_the_log(entries: Entries) -> None:
    with serving(_raising(InferenceError("boom", debug_details="weights: nan"))) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {})

    assert response.body == b'{"error":"boom"}'
    assert entries.wait_for(message="Request failed")["exception"].endswith(
        "InferenceError: boom\nweights: nan"
    )


def test_an_http_exception_keeps_its_headers() -> None:
    error = HTTPException(429, headers={"Retry-After": "7", "Content-Type": "text/html"})

    with serving(_raising(error)) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {})

    assert (response.headers["retry-after"], response.headers["content-type"]) == (
        "7",
        "application/json",
    )


def test_a_connection_serves_on_after_an_error_with_an_unread_body() -> None:
    with serving(_answering({"predictions": [1]})) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("POST", "/v1/models/no:predict", b"x" * 300_000)
        first = connection.getresponse()
        first_body = first.read()
        connection.request("POST", "/v1/models/calling:predict", b"{}")
        second_body = connection.getresponse().read()
        connection.close()

    assert (first.status, first_body) == (
        404,
        b'{"error":"Model with name no does not exist."}',
    )
    assert second_body == b'{"predictions":[1]}'


def test_response_headers_of_a_model_are_sent_but_for_the_servers_own() -> None:
    model = _answering(
        {},
        X_Number=7,
        X_Latin="é",
        Content_Type="text/html",
        Content_Encoding="gzip",
        Content_Length="999",
        Transfer_Encoding="chunked",
        Connection="close",
        Keep_Alive="1",
        Date="yesterday",
        Server="predictor",
        X_Request_ID="predictor",
    )

    with serving(model) as port:
        headers = _headers_of(port, **{"x-request-id": "id-1"})

    assert sorted(pair for pair in headers if pair[0] != "date") == [
        ("content-length", "2"),
        ("content-type", "application/json"),
        ("x-latin", "é"),
        ("x-number", "7"),
        ("x-request-id", "id-1"),
    ]
    assert [value for name, value in headers if name == "date"] != ["yesterday"]


def test_a_body_of_bytes_keeps_the_models_content_type_and_encoding() -> None:
    model = _answering(b"\x1f\x8b", Content_Type="image/png", Content_Encoding="gzip")

    with serving(model) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {})

    sent = (response.headers["content-type"], response.headers["content-encoding"], response.body)
    assert sent == ("image/png", "gzip", b"\x1f\x8b")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("x-a", "b\r\nx-forged: 1", id="CR LF in the value"),
        pytest.param("x-a", "b\nx-forged: 1", id="LF in the value"),
        pytest.param("x-a", "b\0", id="NUL in the value"),
        pytest.param("x-a", "…", id="not Latin-1"),
        pytest.param("x-a: b\r\nx-forged", "1", id="CR LF in the name"),
        pytest.param("x-forged: 1\tx", "1", id="colon in the name"),
        pytest.param("x a", "1", id="space in the name"),
        pytest.param("", "1", id="no name"),
    ],
)
def test_a_response_header_that_could_forge_others_is_an_error(name: str, value: str) -> None:
    def predict(payload: Any, response_headers: dict[str, str]) -> Any:
        response_headers[name] = value
        return {}

    with serving(Calling(predict)) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {})

    assert (response.status, response.body) == (500, b'{"error":"Internal server error"}')
    assert sorted(response.headers) == ["content-length", "content-type", "date", "x-request-id"]


def test_the_error_about_a_header_names_it() -> None:
    with pytest.raises(ValueError, match=r"response header 'x-a' is not one that HTTP can carry"):
        encode_headers({"x-ok": "1", "x-a": "b\r\n"})


class Streaming(Model):
    """Draws its chunks from a plain generator."""

    def __init__(self, chunks: list[Any]) -> None:
        super().__init__("streaming")
        self.chunks = chunks

    def predict(  # type: ignore[override]  # plain
        self, payload: Any, headers: Any = None, response_headers: Any = None
    ) -> Iterator[Any]:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


class AsyncStreaming(Streaming):
    """Draws its chunks from an async generator."""

    async def predict(  # type: ignore[override]
        self, payload: Any, headers: Any = None, response_headers: Any = None
    ) -> AsyncIterator[Any]:
        for chunk in self.chunks:
            await asyncio.sleep(0)
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


FORMS = pytest.mark.parametrize(
    "form", [pytest.param(Streaming, id="plain"), pytest.param(AsyncStreaming, id="async")]
)


@FORMS
@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        pytest.param(["a", "", "é"], "aé".encode(), id="text"),
        pytest.param([b"\x00", bytearray(b"\x01"), memoryview(b"\x02")], b"\0\1\2", id="bytes"),
        pytest.param(
            [{"a": 1}, [np.float64(0.5)], np.array([1, 2])],
            b'{"a":1}\n[0.5]\n[1,2]\n',
            id="JSON lines",
        ),
        pytest.param([], b"", id="nothing"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models/streaming:predict", "/v2/models/streaming/infer"])
def test_chunks_are_the_body(
    form: type[Streaming], chunks: list[Any], body: bytes, path: str
) -> None:
    sent = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]}

    with serving(form(chunks)) as port:
        response = request(port, "POST", path, sent)

    assert (response.status, response.body) == (200, body)
    assert response.headers["transfer-encoding"] == "chunked"


@FORMS
@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        pytest.param(InvalidInput("bad"), 400, b'{"error":"bad"}', id="InvalidInput"),
        pytest.param(KeyError("secret"), 500, b'{"error":"Internal server error"}', id="any other"),
        pytest.param(
            StopIteration("x"), 500, b'{"error":"Internal server error"}', id="StopIteration"
        ),
    ],
)
def test_an_error_before_the_first_chunk_has_a_status(
    form: type[Streaming], error: Exception, status: int, body: bytes
) -> None:
    with serving(form([error])) as port:
        response = request(port, "POST", "/v1/models/streaming:predict", {})

    assert (response.status, response.body) == (status, body)


def test_a_first_chunk_that_cannot_be_sent_has_a_status() -> None:
    with serving(Streaming([object()])) as port:
        response = request(port, "POST", "/v1/models/streaming:predict", {})

    assert (response.status, response.body) == (500, b'{"error":"Internal server error"}')


@FORMS
@pytest.mark.parametrize(
    "chunk",
    [pytest.param(KeyError("secret"), id="raised"), pytest.param(object(), id="unsendable")],
)
def test_an_error_after_the_first_chunk_cuts_the_connection(
    form: type[Streaming], chunk: object, entries: Entries, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(form(["first", chunk, "never"])) as port, pytest.raises(IncompleteRead) as raised:
        request(port, "POST", "/v1/models/streaming:predict", {}, {"x-request-id": "id-1"})

    assert raised.value.partial == b"first"
    failures = [line for line in entries.lines if line["level"] == "ERROR"]
    assert [(line["message"], line["request_id"]) for line in failures] == [
        ("Request failed", "id-1")
    ]
    assert [line["status"] for line in entries.of_requests()] == [500]
    assert [r.getMessage() for r in caplog.records if r.name == "uvicorn.error"] == []


def test_a_stream_that_fails_with_the_clients_fault_is_counted_as_failed_too() -> None:
    labels = {"model_name": "streaming", "protocol": "v1", "status": "500"}
    before = REGISTRY.get_sample_value("kserve_requests_total", labels) or 0

    chunks = ["first", InvalidInput("too late for a 400")]
    with serving(Streaming(chunks)) as port, pytest.raises(IncompleteRead):
        request(port, "POST", "/v1/models/streaming:predict", {})

    assert REGISTRY.get_sample_value("kserve_requests_total", labels) == before + 1


def test_any_async_iterator_is_a_stream() -> None:
    class Chunks:
        left = 2

        def __aiter__(self) -> "Chunks":
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return b"x"

    with serving(_answering(Chunks())) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {})

    assert response.body == b"xx"


def test_an_iterator_that_holds_something_is_closed_after_an_error() -> None:
    closed = threading.Event()

    class Chunks:
        def __aiter__(self) -> "Chunks":
            return self

        async def __anext__(self) -> Any:
            return object()

        async def aclose(self) -> None:
            closed.set()

    with serving(_answering(Chunks())) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {})

    assert response.status == 500
    assert closed.is_set()


def test_response_headers_of_a_stream_are_sent() -> None:
    async def chunks() -> AsyncIterator[str]:
        yield "data: 1\n\n"

    def predict(payload: Any, response_headers: dict[str, str]) -> Any:
        response_headers["content-type"] = "text/event-stream"
        return chunks()

    with serving(Calling(predict)) as port:
        response = request(port, "POST", "/v1/models/calling:predict", {})

    assert (response.headers["content-type"], response.body) == (
        "text/event-stream",
        b"data: 1\n\n",
    )


def _read_first_chunk_and_leave(port: int, model_name: str) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    connection.request("POST", f"/v1/models/{model_name}:predict", b"{}")
    response = connection.getresponse()
    assert response.read(5) == b"first"
    response.close()
    connection.close()


def test_a_client_that_goes_away_stops_an_async_generator_that_waits() -> None:
    stopped = threading.Event()

    async def chunks() -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    with serving(Calling(lambda payload, response_headers: chunks())) as port:
        _read_first_chunk_and_leave(port, "calling")

        assert stopped.wait(WAIT_S)


class Endless(Model):
    """Gives chunks until it is closed."""

    def __init__(self) -> None:
        super().__init__("endless")
        self.stopped_on = ""
        self.stopped = threading.Event()

    def predict(  # type: ignore[override]  # plain
        self, payload: Any, headers: Any = None, response_headers: Any = None
    ) -> Iterator[str]:
        try:
            while True:
                yield "first"
        finally:
            self.stopped_on = threading.current_thread().name
            self.stopped.set()


def test_a_client_that_goes_away_stops_a_plain_generator_on_its_own_thread() -> None:
    model = Endless()

    with serving(model) as port:
        _read_first_chunk_and_leave(port, "endless")

        assert model.stopped.wait(WAIT_S)
    assert model.stopped_on == "endless-0"


def test_a_client_that_leaves_before_its_body_is_complete_is_counted_as_gone(
    entries: Entries,
) -> None:
    with serving(_answering({})) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /v1/models/calling:predict HTTP/1.1\r\nHost: x\r\n")
            client.sendall(b"Content-Length: 9\r\n\r\n{")

        line = entries.wait_for(message="request")

    assert (line["model"], line["status"]) == ("calling", 499)
    assert [entry for entry in entries.lines if entry["level"] == "ERROR"] == []


def test_a_client_that_leaves_amid_a_stream_is_counted_as_gone(entries: Entries) -> None:
    labels = {"model_name": "endless", "protocol": "v1", "status": "499"}
    before = REGISTRY.get_sample_value("kserve_requests_total", labels) or 0

    with serving(Endless()) as port:
        _read_first_chunk_and_leave(port, "endless")
        line = entries.wait_for(message="request")

    assert (line["model"], line["status"]) == ("endless", 499)
    assert REGISTRY.get_sample_value("kserve_requests_total", labels) == before + 1
    assert [entry for entry in entries.lines if entry["level"] == "ERROR"] == []


def test_nothing_waits_for_the_client_to_leave_once_a_stream_has_ended() -> None:
    ended: list[str] = []

    async def receive() -> Message:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("receive")
        raise AssertionError("the client does not leave")

    async def send(message: Message) -> None:
        ended.append(message["type"])

    async def chunks() -> AsyncIterator[str]:
        yield "only"

    async def run() -> None:
        exchange = Exchange({"type": "http", "headers": []}, receive, send, AnswerMetrics(""))
        await exchange.stream(chunks(), [])
        await asyncio.sleep(0)
        ended.append("stream")

    asyncio.run(run())

    start, body = "http.response.start", "http.response.body"
    assert ended == [start, body, body, "receive", "stream"]


def test_nan_and_infinities_become_null_and_are_counted() -> None:
    labels = {"model_name": "nonfinite"}
    predictions = np.array([np.nan, 1.0, np.inf])
    model = Calling(lambda payload, headers: {"predictions": predictions}, "nonfinite")

    with serving(model) as port:
        response = request(port, "POST", "/v1/models/nonfinite:predict", {})

    assert response.body == b'{"predictions":[null,1.0,null]}'
    assert REGISTRY.get_sample_value("kserve_nonfinite_values_total", labels) == 2


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_body_may_come_in_odd_pieces(size: int) -> None:
    body = orjson.dumps({"instances": [[1.5, 2.5], [3.5, 4.5]]})

    def predict(payload: Any, response_headers: dict[str, str]) -> Any:
        return payload

    with serving(Calling(predict)) as port:
        response = request(port, "POST", "/v1/models/calling:predict", body, chunk_bytes=size)

    assert response.body == body


def test_a_chunked_body_is_read_whole() -> None:
    with serving(Calling(lambda payload, headers: payload)) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request(
            "POST",
            "/v1/models/calling:predict",
            iter([b'{"instances"', b":[1", b"]}"]),
            {"Transfer-Encoding": "chunked"},
            encode_chunked=True,
        )
        body = connection.getresponse().read()
        connection.close()

    assert body == b'{"instances":[1]}'


def _with_exchange(
    messages: list[Message],
    headers: list[tuple[bytes, bytes]],
    use: Callable[[Exchange], Any],
) -> Any:
    """Give what `use` does with an exchange, in a context of its own."""

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError("nothing is to be sent")

    async def run() -> Any:
        scope = {"type": "http", "headers": headers}
        result = use(Exchange(scope, receive, send, AnswerMetrics("")))
        return await result if asyncio.iscoroutine(result) else result

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        pytest.param([{"type": "http.request", "body": b"ab"}], b"ab", id="whole"),
        pytest.param([{"type": "http.request"}], b"", id="empty"),
        pytest.param(
            [
                {"type": "http.request", "body": b"a", "more_body": True},
                {"type": "http.request", "more_body": True},
                {"type": "http.request", "body": b"b"},
            ],
            b"ab",
            id="in pieces",
        ),
    ],
)
def test_reads_the_body_of_any_message_sequence(messages: list[Message], body: bytes) -> None:
    assert _with_exchange(list(messages), [], Exchange.body) == body


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([{"type": "http.disconnect"}], id="at once"),
        pytest.param(
            [
                {"type": "http.request", "body": b"a", "more_body": True},
                {"type": "http.disconnect"},
            ],
            id="in the middle",
        ),
    ],
)
def test_a_body_that_does_not_come_is_a_disconnect(messages: list[Message]) -> None:
    with pytest.raises(ClientDisconnected):
        _with_exchange(list(messages), [], Exchange.body)


def test_headers_are_a_plain_dict_with_the_last_of_repeated_ones() -> None:
    headers = [(b"x-a", b"1"), (b"x-b", b"\xe9"), (b"x-a", b"2"), (b"x-request-id", b"id-1")]

    read = _with_exchange(
        [], headers, lambda exchange: (exchange.headers(), exchange.header(b"x-a"))
    )

    assert read == ({"x-a": "2", "x-b": "é", "x-request-id": "id-1"}, b"1")


def test_handlers_of_one_request_share_the_headers() -> None:
    class Sharing(Model):
        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            headers["seen"] = f"{headers['x-own']}!"
            return payload

        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            return {"seen": headers["seen"], "verb": InferenceVerb.PREDICT.name}

    with serving(Sharing("sharing")) as port:
        response = request(port, "POST", "/v1/models/sharing:predict", {}, {"X-Own": "a"})

    assert response.json() == {"seen": "a!", "verb": "PREDICT"}
