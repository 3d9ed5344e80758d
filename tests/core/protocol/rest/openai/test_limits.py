"""Limits, deadlines, clients that go away, and what is counted and logged of each request."""

import asyncio
import contextlib
import gzip
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import numpy as np
import openai
import orjson
import pytest
from prometheus_client import REGISTRY
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response as StarletteResponse

from kserve import Model, model_server
from kserve.protocol.rest.app import Application
from kserve.protocol.rest.openai import OpenAIEncoderModel, OpenAIGenerativeModel
from kserve.protocol.rest.openai.types import (
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
)
from kserve.testing import Response, request, serving

WAIT_S = 15
ASKED = {"model": "waiting", "input": "a"}
STREAMED = {"model": "waiting", "prompt": "a", "stream": True}


class Waiting(OpenAIEncoderModel, OpenAIGenerativeModel):
    """Answers once it is let, and notes that it was cancelled."""

    def __init__(self, name: str = "waiting") -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.may_answer = threading.Event()

    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        if request.input != "wait":
            return Embedding(data=np.ones((1, 2), np.float32))
        self.entered.set()
        try:
            while not self.may_answer.is_set():  # noqa: ASYNC110 - the thread of the test sets it
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Embedding(data=np.ones((1, 2), np.float32))

    async def create_completion(
        self, request: CompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        return self._chunks(request)

    async def _chunks(self, request: CompletionRequest) -> AsyncIterator[CompletionChunk]:
        try:
            if request.prompt == "never":
                await asyncio.Event().wait()
            choice = CompletionChunkChoice(index=0, text="first")
            yield CompletionChunk(model=request.model, choices=[choice])
            if request.prompt == "once":
                return
            self.entered.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


class Plain(Model):
    """A model of V1."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


def post(port: int, path: str, body: Any, **headers: str) -> Response:
    return request(port, "POST", path, orjson.dumps(body), headers)


def counted(status: int, model_name: str = "waiting") -> float:
    labels = {"model_name": model_name, "protocol": "openai", "status": str(status)}
    return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0


def in_flight() -> float | None:
    labels = {"model_name": "waiting"}
    return REGISTRY.get_sample_value("kserve_requests_in_flight", labels)


def wait_for(condition: Callable[[], bool]) -> bool:
    """Poll until a condition holds; False if it never does."""
    waiting = threading.Event()
    return any(condition() or waiting.wait(0.01) for _ in range(int(WAIT_S / 0.01)))


def error(response: Response) -> dict[str, Any]:
    assert list(response.json()) == ["error"]
    result: dict[str, Any] = response.json()["error"]
    assert list(result) == ["message", "type", "param", "code"]
    assert response.headers["x-request-id"]
    return result


@contextlib.contextmanager
def held(port: int, model: Waiting) -> Iterator[None]:
    """Keep one request in flight."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, port, "/v1/embeddings", {"model": model.name, "input": "wait"})
        assert model.entered.wait(WAIT_S)
        try:
            yield
        finally:
            model.may_answer.set()
        assert answer.result().status == 200


def test_refuses_more_requests_than_a_model_takes_at_once() -> None:
    model = Waiting()

    with serving([model, Plain("plain")], max_inflight_requests=1) as port, held(port, model):
        refused = post(port, "/v1/embeddings", ASKED)
        # It is refused before anything is made of it.
        unread = post(port, "/v1/embeddings", {"model": "waiting", "input": 5})
        of_v1 = request(port, "POST", "/v1/models/plain:predict", b'{"instances":[1]}')

    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert unread.status == 429
    assert error(refused) == {
        "message": "1 requests for this model are in flight, which is as many as it takes "
        "(--max_inflight_requests)",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert of_v1.status == 200


def test_the_client_tries_again_what_was_refused_for_now() -> None:
    model = Waiting()

    with serving(model, max_inflight_requests=1) as port:
        url = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=1) as client:
            before = counted(429)
            with held(port, model), pytest.raises(openai.RateLimitError):
                client.embeddings.create(model="waiting", input="a")

    assert counted(429) - before == 2


def test_a_deadline_ends_the_work_and_is_not_to_be_tried_again() -> None:
    model = Waiting()

    with serving(model, request_timeout_s=0.2) as port:
        late = post(port, "/v1/embeddings", {"model": "waiting", "input": "wait"})
        late_stream = post(port, "/v1/completions", {**STREAMED, "prompt": "never"})

    for response in (late, late_stream):
        assert response.status == 504
        assert response.headers["x-should-retry"] == "false"
        assert error(response) == {
            "message": "no answer within 0.2 s (--request_timeout_s)",
            "type": "server_error",
            "param": None,
            "code": "timeout",
        }
    assert model.cancelled.wait(WAIT_S)
    assert in_flight() == 0


@pytest.mark.parametrize(
    ("path", "is_openai"),
    [
        ("/v1/embeddings", True),
        ("/openai/v1/embeddings?a=b", True),
        ("/rerank", True),
        ("/v1/models/plain:predict", False),
    ],
)
def test_a_body_that_is_too_large_is_refused_in_the_form_of_its_route(
    path: str, is_openai: bool
) -> None:
    with serving([Waiting(), Plain("plain")], max_request_bytes=100) as port:
        refused = request(port, "POST", path, b"{" * 200)

    text = "the body is larger than 100 bytes (--max_request_bytes)"
    assert refused.status == 413
    if is_openai:
        assert error(refused) == {
            "message": text,
            "type": "invalid_request_error",
            "param": None,
            "code": "request_too_large",
        }
    else:
        assert refused.json() == {"error": text}


def test_the_form_of_a_refusal_is_not_that_of_the_request_before() -> None:
    with serving([Waiting()]) as port, socket.create_connection(("127.0.0.1", port)) as client:
        body = orjson.dumps(ASKED)
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        client.settimeout(WAIT_S)
        client.sendall(head % len(body) + body)
        received = b""
        while b"\r\n\r\n" not in received or not received.endswith(b"}"):
            received += client.recv(1 << 16)
        assert received.startswith(b"HTTP/1.1 200")

        client.sendall(b"\x00\x01 no HTTP\r\n\r\n")
        refused = b"".join(iter(lambda: client.recv(1 << 16), b""))

    assert refused.startswith(b"HTTP/1.1 400")
    assert b'{"error":"The request is not valid HTTP' in refused


def test_reads_compressed_bodies_up_to_their_limit() -> None:
    packed = gzip.compress(orjson.dumps(ASKED))
    headers = {"content-encoding": "gzip"}

    with serving(Waiting(), max_decompressed_bytes=100) as port:
        good = request(port, "POST", "/v1/embeddings", packed, headers)
        large = request(port, "POST", "/v1/embeddings", gzip.compress(b" " * 1000), headers)
        unknown = request(port, "POST", "/v1/embeddings", packed, {"content-encoding": "x"})

    assert good.status == 200
    assert (large.status, error(large)["code"]) == (413, "request_too_large")
    assert (unknown.status, error(unknown)["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        pytest.param("/v1/embeddings", {"model": "waiting", "input": "wait"}, id="whole"),
        pytest.param("/v1/completions", STREAMED, id="streamed"),
        pytest.param("/v1/completions", {**STREAMED, "prompt": "never"}, id="before a chunk"),
    ],
)
def test_a_client_that_goes_away_cancels_its_handler(path: str, asked: dict[str, Any]) -> None:
    model = Waiting()
    # Streams had their 200 before.
    before = counted(499)

    with serving(model) as port:
        body = orjson.dumps(asked)
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            if asked.get("prompt") != "never":
                assert model.entered.wait(WAIT_S)
            else:
                assert wait_for(lambda: in_flight() == 1)

        assert model.cancelled.wait(WAIT_S)
        assert wait_for(lambda: counted(499) == before + 1)
        assert in_flight() == 0


def test_events_come_one_by_one() -> None:
    model = Waiting()

    with serving(model) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("POST", "/v1/completions", orjson.dumps(STREAMED))
        response = connection.getresponse()

        # The model waits for ever after the first one.
        event = response.readline()

        connection.sock.close() if connection.sock else None
        response.close()
        connection.close()

    assert orjson.loads(event.removeprefix(b"data: "))["choices"][0]["text"] == "first"


def test_logs_one_line_of_each_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    with serving(Waiting()) as port:
        post(port, "/v1/embeddings", ASKED, **{"x-request-id": "good"})
        post(port, "/v1/embeddings", {**ASKED, "model": "nobody"}, **{"x-request-id": "unknown"})
        request(port, "POST", "/v1/embeddings", b"{", {"x-request-id": "bad"})
        request(port, "GET", "/v1/models", None, {"x-request-id": "list"})

    lines = [
        (fields["request_id"], fields["model"], fields["protocol"], fields["status"])
        for record in caplog.records
        if isinstance(fields := getattr(record, "fields", None), dict)
    ]
    assert lines == [
        ("good", "waiting", "openai", 200),
        ("unknown", "nobody", "openai", 404),
        ("bad", "-", "openai", 400),
    ]


def test_counts_the_answers_of_a_model_and_its_time() -> None:
    def observed() -> float:
        labels = {"model_name": "waiting"}
        return REGISTRY.get_sample_value("request_predict_seconds_count", labels) or 0

    with serving(Waiting()) as port:
        before = counted(200), counted(404, ""), counted(404, "nobody"), observed()
        post(port, "/v1/embeddings", ASKED)
        post(port, "/v1/embeddings", {**ASKED, "model": "nobody"})
    after = counted(200), counted(404, ""), counted(404, "nobody"), observed()

    changes = [new - old for new, old in zip(after, before, strict=True)]
    assert changes == [1, 1, 0, 1]


class Gated(OpenAIEncoderModel):
    """Loads once it is let."""

    may_load = threading.Event()

    def load(self) -> bool:
        self.may_load.wait(WAIT_S)
        return super().load()


def test_says_that_the_server_starts_while_its_models_load() -> None:
    model = Gated("gated")

    with serving(model, listen_early=True) as port:
        try:
            waiting = post(port, "/v1/embeddings", {"model": "gated", "input": "a"})
            listed = request(port, "GET", "/openai/v1/models")
            of_v1 = request(port, "GET", "/v1/models")
        finally:
            model.may_load.set()
        assert wait_for(lambda: request(port, "GET", "/v2/health/ready").status == 200)

    assert (waiting.status, error(waiting)["code"]) == (503, "model_not_ready")
    assert listed.json() == {"object": "list", "data": []}
    assert of_v1.json() == {"models": ["gated"]}


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """Give the application of the process, as new."""
    monkeypatch.setattr(model_server, "_app", None)
    yield model_server.app


class Marking(BaseHTTPMiddleware):
    """Marks every response."""

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> StarletteResponse:
        response = await call_next(request)
        response.headers["x-marked"] = "yes"
        return response


def test_passes_through_the_user_s_middleware(app: Application) -> None:
    app.add_middleware(Marking)
    with serving(Waiting()) as port:
        whole = post(port, "/v1/embeddings", ASKED)
        refused = post(port, "/v1/embeddings", {**ASKED, "model": "nobody"})
        streamed = post(port, "/v1/completions", {**STREAMED, "prompt": "once"})

    assert (whole.status, whole.headers["x-marked"]) == (200, "yes")
    assert (refused.status, refused.headers["x-marked"]) == (404, "yes")
    assert (streamed.status, streamed.headers["x-marked"]) == (200, "yes")
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert error(refused)["code"] == "model_not_found"


@pytest.mark.parametrize("has_middleware", [False, True])
def test_a_stop_tells_who_waits_that_the_server_shuts_down(
    app: Application, has_middleware: bool
) -> None:
    model = Waiting()
    answers: list[Response] = []
    if has_middleware:
        app.add_middleware(Marking)

    def ask(port: int) -> None:
        answers.append(post(port, "/v1/embeddings", {"model": "waiting", "input": "wait"}))

    with serving(model, grace_period_s=1) as port:
        thread = threading.Thread(target=ask, args=(port,))
        thread.start()
        assert model.entered.wait(WAIT_S)
    thread.join(WAIT_S)

    (answer,) = answers
    assert answer.status == 503
    assert error(answer) == {
        "message": "Server is not ready. The server is shutting down.",
        "type": "server_error",
        "param": None,
        "code": "unavailable",
    }
