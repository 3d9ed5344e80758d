"""Requests that come while a REST server drains: over kept connections, by halves, at its end."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import uvloop

from kserve import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.app import Application
from kserve.protocol.rest.server import RESTServer
from kserve.testing import ServerProcess

WAIT_S = 40
ROOT = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ALIVE = ("200 OK", b'{"status":"alive"}')
DRAINING = b'{"error":"Server is not ready. The server is shutting down."}'
LONG = ("--drain_delay_s", "60", "--grace_period_s", "120")
Run = Callable[[Coroutine[Any, Any, None]], None]

STREAMING = """\
import asyncio, kserve
from starlette.responses import PlainTextResponse

gate = asyncio.Event()

class Streaming(kserve.Model):
    async def predict(self, payload):
        if payload["instances"] == ["end"]:
            gate.set()
            return {"predictions": []}
        return self.chunks()

    async def chunks(self):
        yield "first "
        await gate.wait()
        yield "last"

async def hello(request):
    return PlainTextResponse("hello")

kserve.model_server.app.add_route("/hello", hello)
kserve.ModelServer(enable_grpc=False).start([Streaming("model")])
"""


def _predict(instance: bytes) -> bytes:
    body = b'{"instances":["%b"]}' % instance
    head = b"POST /v1/models/model:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def _read_head(stream: IO[bytes]) -> tuple[str, dict[str, str]]:
    status = stream.readline().decode().strip().partition(" ")[2]
    fields = iter(lambda: stream.readline().decode().strip(), "")
    return status, dict(field.lower().split(": ", 1) for field in fields)


def _read_answer(stream: IO[bytes]) -> tuple[str, bytes, str]:
    """Give the status, the body, and what the Connection field says."""
    status, fields = _read_head(stream)
    body = stream.read(int(fields["content-length"]))
    return status, body, fields.get("connection", "")


@contextlib.contextmanager
def _connected(port: int) -> Iterator[tuple[socket.socket, IO[bytes]]]:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as client,
        client.makefile("rb") as stream,
    ):
        yield client, stream


def _drain(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + WAIT_S
    while server.request("GET", "/v2/health/ready").status != 503:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """Give a server whose delay never ends."""
    script = tmp_path / "serve.py"
    script.write_text(STREAMING)
    with ServerProcess(str(script), *LONG) as process:
        yield process
        # The second signal: ends at once.
        process.stop()


def test_an_idle_connection_stays_open_until_its_next_request_is_answered(
    server: ServerProcess,
) -> None:
    with _connected(server.port) as (client, stream):
        client.sendall(ROOT)
        before = _read_answer(stream)
        _drain(server)
        client.sendall(ROOT)
        after = _read_answer(stream)
        rest = stream.read()

    assert (before, after, rest) == ((*ALIVE, ""), (*ALIVE, "close"), b"")


def test_a_connection_that_has_sent_nothing_stays_open_too(server: ServerProcess) -> None:
    with _connected(server.port) as (client, stream):
        _drain(server)
        client.sendall(ROOT)
        answer = _read_answer(stream)

    assert answer == (*ALIVE, "close")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(ROOT, (*ALIVE, "close"), id="a route"),
        pytest.param(
            b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n",
            ("404 Not Found", b'{"detail":"Not Found"}', "close"),
            id="no route",
        ),
        pytest.param(
            b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n",
            ("200 OK", b"hello", "close"),
            id="a route of the user's",
        ),
        pytest.param(
            b"FOO / HTTP/1.1\r\n\r\n",
            (
                "400 Bad Request",
                b'{"error":"The request is not valid HTTP: Invalid method encountered"}',
                "close",
            ),
            id="not HTTP",
        ),
    ],
)
def test_every_response_is_the_last_one_of_its_connection(
    server: ServerProcess, sent: bytes, expected: tuple[str, bytes, str]
) -> None:
    _drain(server)

    with _connected(server.port) as (client, stream):
        client.sendall(sent)
        status, fields = _read_head(stream)
        body = stream.read()

    assert (status, body, fields["connection"]) == expected


def test_the_last_of_pipelined_requests_says_that_the_connection_closes(
    server: ServerProcess,
) -> None:
    _drain(server)

    with _connected(server.port) as (client, stream):
        client.sendall(ROOT * 3)
        answers = [_read_answer(stream) for _ in range(3)]
        rest = stream.read()

    assert answers == [(*ALIVE, ""), (*ALIVE, ""), (*ALIVE, "close")]
    assert rest == b""


@pytest.mark.parametrize("n_bytes", [10, 71, 80], ids=["amid the head", "a head", "amid the body"])
def test_a_request_that_was_half_sent_is_finished(server: ServerProcess, n_bytes: int) -> None:
    request = _predict(b"end")
    with _connected(server.port) as (client, stream):
        client.sendall(request[:n_bytes])
        _drain(server)
        client.sendall(request[n_bytes:])
        answer = _read_answer(stream)

    assert answer == ("200 OK", b'{"predictions":[]}', "close")


def test_a_stream_goes_on_and_leaves_its_connection_to_a_next_request(
    server: ServerProcess,
) -> None:
    with _connected(server.port) as (client, stream):
        client.sendall(_predict(b"begin"))
        status, fields = _read_head(stream)
        first = stream.readline(), stream.readline()
        _drain(server)
        end = server.request("POST", "/v1/models/model:predict", {"instances": ["end"]})
        chunks = [stream.readline() for _ in range(4)]
        client.sendall(ROOT)
        answer = _read_answer(stream)

    assert (status, fields.get("connection"), end.status) == ("200 OK", None, 200)
    assert first == (b"6\r\n", b"first \r\n")
    assert chunks == [b"4\r\n", b"last\r\n", b"0\r\n", b"\r\n"]
    assert answer == (*ALIVE, "close")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on each of the event loops."""

    def run_in(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(coroutine)

    return run_in


async def _started() -> tuple[RESTServer, int]:
    server = RESTServer(Application(), DataPlane(ModelRepository()), 0, host="127.0.0.1")
    address = await server.start()
    return server, int(address.rpartition(":")[2])


def test_a_connection_that_nobody_has_accepted_yet_is_served_before_the_end(run: Run) -> None:
    async def work() -> None:
        server, port = await _started()
        with _connected(port) as (client, stream):
            # It blocks the event loop: only the kernel knows of the client.
            client.sendall(ROOT)
            await server.stop(WAIT_S)
            answers.append(_read_answer(stream))

    answers: list[Any] = []
    run(work())

    assert answers == [(*ALIVE, "close")]


def test_a_request_that_has_just_come_over_an_idle_connection_is_served(run: Run) -> None:
    async def work() -> None:
        server, port = await _started()
        with _connected(port) as (client, stream):
            client.sendall(ROOT)
            answers.append(await asyncio.to_thread(_read_answer, stream))
            client.sendall(ROOT)
            await server.stop(WAIT_S)
            answers.append(_read_answer(stream))

    answers: list[Any] = []
    run(work())

    assert answers == [(*ALIVE, ""), (*ALIVE, "close")]


def test_idle_connections_do_not_hold_up_the_end(run: Run) -> None:
    async def work() -> None:
        server, port = await _started()
        with _connected(port) as (client, stream), _connected(port) as (_, silent):
            client.sendall(ROOT)
            await asyncio.to_thread(_read_answer, stream)
            await server.stop(1e6)
            rests.extend([stream.read(), silent.read()])

    rests: list[bytes] = []
    run(work())

    assert rests == [b"", b""]


def test_a_head_whose_rest_does_not_come_holds_up_no_stop(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client does not close either, which has a limit of its own.
    monkeypatch.setattr("kserve.protocol.rest.lingering._IDLE_S", 0.1)

    async def work() -> None:
        server, port = await _started()
        with _connected(port) as (client, stream):
            client.sendall(ROOT[:10])
            await server.stop(1e6)
            answers.append(_read_answer(stream))

    answers: list[Any] = []
    run(work())

    assert answers == [("503 Service Unavailable", DRAINING, "close")]


def test_a_head_that_is_not_there_at_the_end_of_the_grace_period_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client is as one that goes on sending.
    monkeypatch.setattr("kserve.protocol.rest.http._MAX_STALL_S", 1e6)

    async def work() -> None:
        server, port = await _started()
        with _connected(port) as (client, stream):
            client.sendall(ROOT[:10])
            await server.stop(0.1)
            answers.append(_read_answer(stream))

    answers: list[Any] = []
    run(work())

    assert answers == [("503 Service Unavailable", DRAINING, "close")]


def test_nothing_is_accepted_after_the_end(run: Run) -> None:
    async def work() -> None:
        server, port = await _started()
        await server.stop(WAIT_S)
        with socket.socket() as probe:
            refusals.append(probe.connect_ex(("127.0.0.1", port)) != 0)

    refusals: list[bool] = []
    run(work())

    assert refusals == [True]
