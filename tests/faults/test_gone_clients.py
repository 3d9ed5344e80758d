"""Clients that vanish: their work is cancelled, counted once, and nothing of theirs stays."""

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, BinaryIO

import pytest
from prometheus_client import REGISTRY
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from kserve import Model, model_server
from kserve.protocol.rest.app import Application
from kserve.testing import request, serving

WAIT_S = 40
MEBIBYTE = 1 << 20
INFLIGHT_BYTES = 4 * MEBIBYTE


class Waiting(Model):
    """Its async `predict` waits until it is cancelled, or answers once it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.is_released = False

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self.entered.set()
        try:
            if not self.is_released:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {"predictions": ["late"]}


class Blocking(Model):
    """Its plain `predict` blocks its thread until it is let go; notes whom it was called for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.released = threading.Event()
        self.called: list[Any] = []

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self.called.append(payload["instances"])
        self.entered.set()
        self.released.wait(WAIT_S)
        return {"predictions": payload["instances"]}


class Large(Model):
    """Answers with 50 MB."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return bytes(50_000_000)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """Give the application of the process, as new."""
    monkeypatch.setattr(model_server, "_app", None)
    yield model_server.app


def _head(name: str, n_bytes: int) -> bytes:
    return b"POST /v1/models/%b:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (
        name.encode(),
        n_bytes,
    )


def _predict(name: str, body: bytes = b'{"instances":[1]}') -> bytes:
    return _head(name, len(body)) + body


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), WAIT_S)


def _finish(client: socket.socket) -> None:
    client.close()


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


LEAVING = [pytest.param(_finish, id="FIN"), pytest.param(_reset, id="RST")]


def _read_answer(stream: BinaryIO) -> tuple[int, bytes]:
    status, length = int(stream.readline().split(b" ")[1]), 0
    while (line := stream.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, stream.read(length)


def _read_all(client: socket.socket) -> None:
    """Read to the end, which may be a reset."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(MEBIBYTE):
            pass


def _counted(model_name: str, status: int) -> float:
    labels = {"model_name": model_name, "protocol": "v1", "status": str(status)}
    return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0


def _wait_for(condition: Callable[[], bool]) -> bool:
    """Poll until a condition holds; False if it never does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize(
    "n_bytes",
    [pytest.param(17, id="small body"), pytest.param(MEBIBYTE, id="body of several reads")],
)
def test_the_work_for_a_gone_client_is_cancelled_and_counted_once(
    leave: Callable[[socket.socket], None], n_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = Waiting("gone-waiting")
    before = _counted(model.name, 499)

    with serving(model) as port:
        client = _connect(port)
        client.sendall(_predict(model.name, b'{"instances":[1]}'.ljust(n_bytes)))
        assert model.entered.wait(WAIT_S)
        leave(client)

        assert model.cancelled.wait(WAIT_S)
        assert _wait_for(lambda: _counted(model.name, 499) > before)
        model.is_released = True
        after = request(port, "POST", f"/v1/models/{model.name}:predict", {"instances": [1]})

    assert (after.status, after.json()) == (200, {"predictions": ["late"]})
    assert _counted(model.name, 499) == before + 1
    labels = {"model_name": model.name}
    assert REGISTRY.get_sample_value("kserve_requests_in_flight", labels) == 0
    assert _errors(caplog) == []


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"POST /v1/models/gone-large:predict HTTP/1.1\r\nHost", id="in the head"),
        pytest.param(_head("gone-large", INFLIGHT_BYTES), id="before the body"),
        pytest.param(_head("gone-large", INFLIGHT_BYTES) + b"{" * MEBIBYTE, id="in the body"),
        pytest.param(_predict("gone-large", b"{}".ljust(INFLIGHT_BYTES)), id="while answered"),
        pytest.param(
            _head("gone-large", INFLIGHT_BYTES).replace(b"1.1", b"1.0"), id="in a body of HTTP/1.0"
        ),
        pytest.param(
            _head("gone-large", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            + b"300000\r\n"
            + b"{" * (3 * MEBIBYTE),
            id="in a chunked body",
        ),
    ],
)
def test_what_a_gone_client_held_is_free_for_the_next_one(
    leave: Callable[[socket.socket], None], sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    statuses: list[int] = []

    def is_admitted() -> bool:
        body = b"{}".ljust(INFLIGHT_BYTES)
        answer = request(port, "POST", "/v1/models/gone-large:predict", body)
        statuses.append(answer.status)
        return answer.status == 200

    with serving(Large("gone-large"), max_inflight_bytes=INFLIGHT_BYTES) as port:
        client = _connect(port)
        client.sendall(sent)
        # A later connection that is answered: what the first one sent has been read.
        request(port, "GET", "/")
        leave(client)

        assert _wait_for(is_admitted)

    assert set(statuses) <= {200, 429}
    assert _errors(caplog) == []


@pytest.mark.parametrize("leave", LEAVING)
def test_a_gone_client_in_the_queue_of_the_thread_is_never_called_for(
    leave: Callable[[socket.socket], None],
) -> None:
    model = Blocking("gone-blocking")
    before = _counted(model.name, 499)

    with serving(model) as port:
        first, second, third = (_connect(port) for _ in range(3))
        first.sendall(_predict(model.name, b'{"instances":["first"]}'))
        assert model.entered.wait(WAIT_S)
        second.sendall(_predict(model.name, b'{"instances":["second"]}'))
        third.sendall(_predict(model.name, b'{"instances":["third"]}'))
        labels = {"model_name": model.name}
        assert _wait_for(
            lambda: REGISTRY.get_sample_value("kserve_requests_in_flight", labels) == 3
        )
        leave(first)
        leave(second)
        assert _wait_for(lambda: _counted(model.name, 499) == before + 2)
        model.released.set()
        with third, third.makefile("rb") as stream:
            answer = _read_answer(stream)

    assert answer == (200, b'{"predictions":["third"]}')
    # The first one's call had begun: a thread cannot be interrupted.
    assert model.called == [["first"], ["third"]]


@pytest.mark.parametrize("leave", LEAVING)
def test_requests_behind_the_one_of_a_gone_client_do_not_start(
    leave: Callable[[socket.socket], None],
) -> None:
    blocking, waiting = Blocking("gone-behind"), Waiting("gone-first")

    with serving([blocking, waiting]) as port:
        client = _connect(port)
        client.sendall(_predict(waiting.name))
        assert waiting.entered.wait(WAIT_S)
        client.sendall(_predict(blocking.name))
        # A later connection that is answered: the second request has been read.
        request(port, "GET", "/")
        leave(client)
        assert waiting.cancelled.wait(WAIT_S)
        blocking.released.set()
        answer = request(port, "POST", f"/v1/models/{blocking.name}:predict", {"instances": [2]})

    assert answer.json() == {"predictions": [2]}
    assert blocking.called == [[2]]


@pytest.mark.parametrize("leave", LEAVING)
def test_what_a_request_that_never_started_held_is_free_too(
    leave: Callable[[socket.socket], None],
) -> None:
    model = Waiting("gone-held")

    with serving(model, max_inflight_bytes=1000) as port:
        client = _connect(port)
        client.sendall(_predict(model.name))
        assert model.entered.wait(WAIT_S)
        client.sendall(_head(model.name, 900))
        # A later connection that is answered: the second head has been read.
        request(port, "GET", "/")
        path, body = f"/v1/models/{model.name}:predict", b'{"instances":[1]}'.ljust(900)
        refused = request(port, "POST", path, body)
        leave(client)
        assert model.cancelled.wait(WAIT_S)
        model.is_released = True

        assert _wait_for(lambda: request(port, "POST", path, body).status == 200)

    assert refused.status == 429


def test_a_request_behind_the_last_one_of_its_connection_does_not_start() -> None:
    last, behind = Blocking("gone-last"), Blocking("gone-behind-last")
    behind.released.set()

    with serving([last, behind]) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            head = _head(last.name, 17).replace(b"Host", b"Connection: close\r\nHost")
            client.sendall(head)
            request(port, "GET", "/")
            client.sendall(b'{"instances":[1]}')
            assert last.entered.wait(WAIT_S)
            client.sendall(_predict(behind.name))
            request(port, "GET", "/")
            last.released.set()
            answer, rest = _read_answer(stream), stream.read()
        request(port, "POST", f"/v1/models/{behind.name}:predict", {"instances": [2]})

    assert (answer, rest) == ((200, b'{"predictions":[1]}'), b"")
    assert behind.called == [[2]]


def test_a_client_that_only_ends_its_sending_is_taken_for_gone() -> None:
    model = Waiting("gone-half")

    with serving(model) as port, _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(_predict(model.name))
        assert model.entered.wait(WAIT_S)
        client.shutdown(socket.SHUT_WR)
        rest = stream.read()

    assert rest == b""
    assert model.cancelled.is_set()


class Noting(BaseHTTPMiddleware):
    """Notes the status of each response, or what is raised in its place."""

    seen: list[object] = []

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        try:
            response = await call_next(request)
        except BaseException as exc:
            self.seen.append(exc)
            raise
        self.seen.append(response.status_code)
        return response


@pytest.mark.parametrize("leave", LEAVING)
def test_a_middleware_sees_a_response_for_a_gone_client_and_no_exception(
    leave: Callable[[socket.socket], None],
    app: Application,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Noting, "seen", [])
    app.add_middleware(Noting)
    model = Waiting("gone-under")

    with serving(model) as port:
        client = _connect(port)
        client.sendall(_predict(model.name))
        assert model.entered.wait(WAIT_S)
        leave(client)
        assert model.cancelled.wait(WAIT_S)
        assert _wait_for(lambda: len(Noting.seen) > 0)

    assert Noting.seen == [499]
    assert _errors(caplog) == []


def test_a_handler_that_ignores_its_cancellation_is_counted_as_gone() -> None:
    class Stubborn(Waiting):
        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            try:
                await super().predict(payload)
            except asyncio.CancelledError:
                return {"predictions": ["all the same"]}

    model = Stubborn("gone-stubborn")
    before = _counted(model.name, 499)

    with serving(model) as port:
        client = _connect(port)
        client.sendall(_predict(model.name))
        assert model.entered.wait(WAIT_S)
        client.close()

        assert _wait_for(lambda: _counted(model.name, 499) == before + 1)

    assert _counted(model.name, 200) == 0


class Endless(Model):
    """Streams without ever waiting for anything, until it is closed or told to end."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.closed = threading.Event()
        self.ended = threading.Event()

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            while not self.ended.is_set():
                yield b"chunk"
        finally:
            self.closed.set()


@pytest.mark.parametrize("leave", LEAVING)
def test_a_stream_that_never_waits_ends_with_its_client(
    leave: Callable[[socket.socket], None],
) -> None:
    model = Endless("gone-endless")
    before = _counted(model.name, 499)

    with serving(model) as port:
        client = _connect(port)
        try:
            client.sendall(_predict(model.name))
            begun = client.recv(12)
            leave(client)
            was_closed = model.closed.wait(WAIT_S)
        finally:
            model.ended.set()
        is_counted = _wait_for(lambda: _counted(model.name, 499) == before + 1)

    assert (begun, was_closed, is_counted) == (b"HTTP/1.1 200", True, True)


def test_a_stream_that_ends_after_its_client_is_counted_as_gone() -> None:
    class Finite(Model):
        left = threading.Event()

        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            return self._chunks()

        async def _chunks(self) -> AsyncIterator[bytes]:
            yield b"first"
            # Blocks the loop, so that the client leaves unseen.
            self.left.wait(WAIT_S)
            for _ in range(100):
                yield b"chunk"

    model = Finite("gone-finite")
    before = _counted(model.name, 499)

    with serving(model) as port:
        client = _connect(port)
        client.sendall(_predict(model.name))
        begun = client.recv(12)
        client.close()
        model.left.set()
        is_counted = _wait_for(lambda: _counted(model.name, 499) == before + 1)

    assert (begun, is_counted, _counted(model.name, 200)) == (b"HTTP/1.1 200", True, 0)


def test_a_stream_that_never_waits_lets_others_be_answered() -> None:
    model = Endless("gone-endless-read")
    live = None

    with serving(model) as port, _connect(port) as client:
        client.sendall(_predict(model.name))
        reader = threading.Thread(target=_read_all, args=(client,))
        reader.start()
        try:
            live = request(port, "GET", "/v2/health/live")
        finally:
            was_closed = model.closed.is_set()
            model.ended.set()
            client.shutdown(socket.SHUT_RDWR)
            reader.join(WAIT_S)

    assert (live.status, was_closed) == (200, False)
