"""Bodies beyond a limit: refused unread, at no cost in memory, and the client reads it."""

import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from prometheus_client import REGISTRY
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from kserve import Model, model_server
from kserve.protocol import compression
from kserve.protocol.rest.app import Application
from kserve.testing import ServerProcess, request, serving

WAIT_S = 40
KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20
MAX_REQUEST_BYTES = 64 * KIBIBYTE
MAX_INFLIGHT_BYTES = 100 * KIBIBYTE
TOO_LARGE = b'{"error":"the body is larger than 65536 bytes (--max_request_bytes)"}'
NO_ROOM = (
    b'{"error":"there is no room for the body in the 102400 bytes that all requests in flight may '
    b'hold (--max_inflight_bytes)"}'
)


class Echo(Model):
    """Answers with the number of its instances."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": len(payload["instances"])}


class Blocking(Model):
    """Blocks its thread until it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.released = threading.Event()

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self.entered.set()
        self.released.wait(WAIT_S)
        return {"predictions": []}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(
        Echo("large-echo"),
        max_request_bytes=MAX_REQUEST_BYTES,
        max_inflight_bytes=MAX_INFLIGHT_BYTES,
    ) as port:
        yield port


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), WAIT_S)


def _head(*fields: bytes, name: bytes = b"large-echo", version: bytes = b"1.1") -> bytes:
    lines = [b"POST /v1/models/%b:predict HTTP/%b" % (name, version), b"Host: x", *fields]
    return b"\r\n".join([*lines, b"", b""])


def _length(n_bytes: int) -> bytes:
    return b"Content-Length: %d" % n_bytes


def _read_answer(stream: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    status = int(stream.readline().split(b" ")[1])
    headers = {}
    while (line := stream.readline()) != b"\r\n":
        name, _, value = line.decode().strip().partition(": ")
        headers[name.lower()] = value
    return status, headers, stream.read(int(headers["content-length"]))


def _counted(model_name: str, protocol: str, status: int) -> float:
    labels = {"model_name": model_name, "protocol": protocol, "status": str(status)}
    return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0


def _wait_for(condition: Callable[[], bool]) -> bool:
    """Poll until a condition holds; False if it never does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _chunks(n_bytes: int, size: int) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (size, b" " * size) for _ in range(n_bytes // size))


def test_a_body_of_just_the_limit_is_read(port: int) -> None:
    body = b'{"instances":[1]}'.ljust(MAX_REQUEST_BYTES)

    answer = request(port, "POST", "/v1/models/large-echo:predict", body)

    assert (answer.status, answer.body) == (200, b'{"predictions":1}')


def test_a_body_beyond_the_limit_is_refused_before_a_byte_of_it_comes(port: int) -> None:
    before = _counted("", "", 413)

    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(_head(_length(MAX_REQUEST_BYTES + 1), b"x-request-id: large-1"))
        status, headers, body = _read_answer(stream)
        rest = stream.read()

    assert (status, body, rest) == (413, TOO_LARGE, b"")
    assert headers["connection"] == "close"
    assert headers["x-request-id"] == "large-1"
    assert _counted("", "", 413) == before + 1


def test_a_client_that_expects_a_100_gets_the_refusal_in_its_place(port: int) -> None:
    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(_head(_length(MAX_REQUEST_BYTES + 1), b"Expect: 100-continue"))
        first = stream.readline()

    assert first.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"], ids=["HTTP/1.0", "HTTP/1.1"])
def test_a_client_that_sends_everything_first_reads_the_refusal(port: int, version: bytes) -> None:
    n_bytes = 100 * MEBIBYTE

    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(_head(_length(n_bytes), version=version))
        for _ in range(100):
            client.sendall(bytes(MEBIBYTE))
        status, _, body = _read_answer(stream)
        rest = stream.read()

    assert (status, body, rest) == (413, TOO_LARGE, b"")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"], ids=["HTTP/1.0", "HTTP/1.1"])
def test_a_client_that_sends_everything_first_reads_an_early_answer(version: bytes) -> None:
    n_bytes = 50 * MEBIBYTE
    head = _head(_length(n_bytes), b"Connection: close", name=b"large-nobody", version=version)

    with serving(Echo("large-echo")) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(head)
            for _ in range(50):
                client.sendall(bytes(MEBIBYTE))
            status, headers, _ = _read_answer(stream)
            rest = stream.read()

    assert (status, headers["connection"], rest) == (404, "close", b"")


@pytest.mark.parametrize("size", [7, 1000, 60_000])
def test_a_chunked_body_is_refused_once_it_passes_the_limit(port: int, size: int) -> None:
    before = _counted("large-echo", "v1", 413)

    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(_head(b"Transfer-Encoding: chunked"))
        # More than the limit, and no end.
        client.sendall(_chunks(2 * MAX_REQUEST_BYTES, size))
        status, _, body = _read_answer(stream)

    assert (status, body) == (413, TOO_LARGE)
    assert _wait_for(lambda: _counted("large-echo", "v1", 413) == before + 1)


def test_chunked_bodies_within_the_limit_are_read(port: int) -> None:
    body = b'11\r\n{"instances":[1]}\r\n' + _chunks(MAX_REQUEST_BYTES - 17, 7) + b"0\r\n\r\n"

    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(_head(b"Transfer-Encoding: chunked") + body)
        status, _, answer = _read_answer(stream)

    assert (status, answer) == (200, b'{"predictions":1}')


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(_length(60_000), _length(60_000), id="declared"),
        pytest.param(b"Transfer-Encoding: chunked", _length(60_000), id="chunked, then declared"),
        pytest.param(_length(60_000), b"Transfer-Encoding: chunked", id="declared, then chunked"),
    ],
)
def test_bodies_that_do_not_fit_together_are_refused_with_429(
    port: int, first: bytes, second: bytes
) -> None:
    def body_of(field: bytes) -> bytes:
        return _chunks(60_000, 60_000) if b"chunked" in field else b""

    with _connect(port) as client, _connect(port) as other, other.makefile("rb") as stream:
        client.sendall(_head(first) + body_of(first))
        # A later connection that is answered: what the first one sent has been read.
        request(port, "GET", "/")
        other.sendall(_head(second) + body_of(second))
        status, headers, body = _read_answer(stream)
        rest = stream.read()

    assert (status, body, rest) == (429, NO_ROOM, b"")
    assert (headers["retry-after"], headers["connection"]) == ("1", "close")


def test_bytes_are_free_again_when_a_request_is_over(port: int) -> None:
    body = b'{"instances":[1]}'.ljust(60_000)
    path = "/v1/models/large-echo:predict"

    answers = [
        request(port, "POST", path, body),
        request(port, "POST", path, b"no JSON".ljust(60_000)),
        request(port, "POST", "/v1/models/large-nobody:predict", body),
        request(port, "POST", "/no/such/route", body),
        request(port, "POST", path, body),
    ]

    assert [answer.status for answer in answers] == [200, 400, 404, 404, 200]


class Refusing(BaseHTTPMiddleware):
    """Answers without asking the server."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return Response(status_code=403)


def test_bytes_are_free_again_when_a_middleware_has_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_server, "_app", None)
    app = model_server.app
    assert isinstance(app, Application)
    app.add_middleware(Refusing)

    with serving(Echo("large-echo"), max_inflight_bytes=MAX_INFLIGHT_BYTES) as port:
        path = "/v1/models/large-echo:predict"

        # The bytes are free a moment after the answer: the middleware still has its end to come.
        for _ in range(3):
            assert _wait_for(lambda: request(port, "POST", path, bytes(60_000)).status == 403)


def test_bytes_are_held_while_the_model_works() -> None:
    model = Blocking("large-blocking")
    body = b'{"instances":[1]}'.ljust(60_000)
    late = []

    with serving(model, max_inflight_bytes=MAX_INFLIGHT_BYTES) as port:
        path = f"/v1/models/{model.name}:predict"
        working = threading.Thread(
            target=lambda: late.append(request(port, "POST", path, body).status)
        )
        working.start()
        assert model.entered.wait(WAIT_S)
        refused = request(port, "POST", path, body)
        model.released.set()
        working.join(WAIT_S)
        admitted = request(port, "POST", path, body)

    assert (refused.status, refused.body) == (429, NO_ROOM)
    assert (late, admitted.status) == ([200], 200)


def test_a_body_that_never_fits_is_too_large() -> None:
    with serving(Echo("large-echo"), max_inflight_bytes=1000) as port:
        answer = request(port, "POST", "/v1/models/large-echo:predict", bytes(1001))

    assert (answer.status, answer.json()) == (
        413,
        {
            "error": "the body is larger than the 1000 bytes that all requests in flight may hold "
            "(--max_inflight_bytes)"
        },
    )


def test_what_a_body_becomes_when_decompressed_counts_too() -> None:
    plain = b'{"instances":[1]}'.ljust(60_000)
    packed = gzip.compress(plain)
    path = "/v1/models/large-echo:predict"

    with serving(Echo("large-echo"), max_inflight_bytes=60_000 + len(packed)) as port:
        fits = request(port, "POST", path, packed, {"Content-Encoding": "gzip"})
        more = gzip.compress(plain.ljust(61_000))
        does_not = request(port, "POST", path, more, {"Content-Encoding": "gzip"})
        again = request(port, "POST", path, packed, {"Content-Encoding": "gzip"})

    assert [answer.status for answer in (fits, does_not, again)] == [200, 413, 200]


def test_a_body_is_decompressed_no_further_than_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int] = []
    inflate = compression.decompress

    def noting(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
        limits.append(max_bytes)
        return inflate(body, encoding, max_bytes)

    monkeypatch.setattr(compression, "decompress", noting)
    bomb = gzip.compress(bytes(10_000_000))
    held = b'{"instances":[1]}'.ljust(60_000)
    packed = gzip.compress(held.ljust(70_000))
    encoded = {"Content-Encoding": "gzip"}
    model = Blocking("large-blocking")
    path = "/v1/models/large-blocking:predict"

    with serving(model, max_inflight_bytes=100_000) as port:
        alone = request(port, "POST", path, bomb, encoded)
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(_head(_length(60_000), name=b"large-blocking") + held)
            assert model.entered.wait(WAIT_S)
            beside = request(port, "POST", path, packed, encoded)
            model.released.set()
            status = int(stream.readline().split(b" ")[1])

    assert [alone.status, beside.status, status] == [413, 429, 200]
    assert limits == [100_000 - len(bomb), 40_000 - len(packed)]


def test_a_refused_body_of_a_request_behind_another_leaves_that_its_answer() -> None:
    model = Blocking("large-blocking")

    with serving(model, max_request_bytes=1000) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            head = _head(_length(17), name=b"large-blocking")
            client.sendall(head + b'{"instances":[1]}')
            assert model.entered.wait(WAIT_S)
            client.sendall(_head(_length(1001)) + bytes(1001))
            request(port, "GET", "/")
            model.released.set()
            status, headers, _ = _read_answer(stream)
            rest = stream.read()

    assert (status, rest) == (200, b"")
    assert headers.get("connection") == "close"


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _push(port: int) -> int:
    """Send the head of a body of 100 MB and all of the body, then read the status."""
    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(_head(_length(100_000_000), name=b"model"))
        for _ in range(100):
            client.sendall(bytes(1_000_000))
        return _read_answer(stream)[0]


def test_uploads_that_are_refused_cost_no_memory(tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text(
        "from kserve import Model, ModelServer\n"
        "class Echo(Model):\n"
        "    async def predict(self, payload, headers=None, response_headers=None):\n"
        "        return payload\n"
        'model = Echo("model")\n'
        "model.ready = True\n"
        "ModelServer().start([model])\n"
    )
    peaks = []

    with ServerProcess(str(script), "--enable_grpc", "false") as server:
        pid = server.process.pid
        _push(server.port)
        before = _resident_bytes(pid)
        with ThreadPoolExecutor(10) as clients:
            pushes = [clients.submit(_push, server.port) for _ in range(50)]
            while not all(push.done() for push in pushes):
                peaks.append(_resident_bytes(pid))
                time.sleep(0.01)

    assert [push.result() for push in pushes] == [413] * 50
    assert max(peaks) - before < 8 * MEBIBYTE


def test_reading_pauses_while_nobody_takes_the_body() -> None:
    model = Blocking("large-blocking")

    with serving(model) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(_head(_length(17), name=b"large-blocking") + b'{"instances":[1]}')
            assert model.entered.wait(WAIT_S)
            client.sendall(_head(_length(60 * MEBIBYTE)))
            n_sent = _send_until_blocked(client, 60 * MEBIBYTE)
            model.released.set()
            first = _read_answer(stream)

    assert first[0] == 200
    # What both ends' sockets take, and what one read takes.
    assert n_sent < 40 * MEBIBYTE


def _send_until_blocked(client: socket.socket, n_bytes: int) -> int:
    client.settimeout(1)
    n_sent = 0
    try:
        while n_sent < n_bytes:
            n_sent += client.send(bytes(MEBIBYTE))
    except TimeoutError:
        return n_sent
    finally:
        client.settimeout(WAIT_S)
    return n_sent
