"""Clients that send or read slowly, or send garbage: bounded in time and memory, others served."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from prometheus_client import REGISTRY

from kserve import Model
from kserve.testing import ServerProcess, request, serving

WAIT_S = 40
MEBIBYTE = 1 << 20
# Short for the tests; a client that sends every 50 ms never stalls so long.
TIMEOUT_S = 0.5
PAUSE_S = 0.05
PREDICT = b"POST /v1/models/slow-echo:predict HTTP/1.1\r\nHost: x\r\n"
BODY = b'{"instances":[1]}'
LATE_HEAD = b'{"error":"the head of the request did not end in 0.5 s (--header_timeout_s)"}'
LATE_BODY = b'{"error":"no more of the body came for 0.5 s (--body_timeout_s)"}'
LARGE_HEAD = b'{"error":"what stands before, amid or after a body is larger than 65536 bytes"}'


class Echo(Model):
    """Answers with its instances."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


class Blocking(Model):
    """Blocks its thread until it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.released = threading.Event()

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self.entered.set()
        self.released.wait(WAIT_S)
        return {"predictions": payload["instances"]}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Give the port of a server whose clients have half a second."""
    model = Echo("slow-echo")
    with serving(model, header_timeout_s=TIMEOUT_S, body_timeout_s=TIMEOUT_S) as port:
        yield port


@pytest.fixture(scope="module")
def patient_port() -> Iterator[int]:
    """Give the port of a server with the default limits."""
    with serving(Echo("slow-echo")) as port:
        yield port


def _connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), WAIT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


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


def _trickle(client: socket.socket, data: bytes, since: float | None = None) -> float:
    """Send a byte at a time until the other end has had enough.

    Returns:
        The longest time from when something was sent, first at `since`, until the next byte was.
    """
    longest_s, last_at = 0.0, since or time.monotonic()
    try:
        for position in range(len(data)):
            sending_at = time.monotonic()
            client.sendall(data[position : position + 1])
            longest_s, last_at = max(longest_s, time.monotonic() - last_at), sending_at
            time.sleep(PAUSE_S)
    except OSError:
        longest_s = max(longest_s, time.monotonic() - last_at)
    return longest_s


def _trickled(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    with _connect(port) as client, client.makefile("rb") as stream:
        sender = threading.Thread(target=_trickle, args=(client, data))
        sender.start()
        answer = _read_answer(stream)
        client.shutdown(socket.SHUT_RDWR)
        sender.join(WAIT_S)
    return answer


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PREDICT + b"A: b\r\n" * 100, id="from the first byte"),
        pytest.param(b"\r\n" + PREDICT + b"A: b\r\n" * 100, id="after an empty line"),
    ],
)
def test_a_head_that_trickles_is_refused(port: int, data: bytes) -> None:
    before = _counted("", "", 408)

    status, headers, body = _trickled(port, data)

    assert (status, body, headers["connection"]) == (408, LATE_HEAD, "close")
    assert _counted("", "", 408) == before + 1


def test_a_head_that_trickles_on_a_kept_connection_is_refused(port: int) -> None:
    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(PREDICT + b"Content-Length: 17\r\n\r\n" + BODY)
        first = _read_answer(stream)
        client.sendall(PREDICT)
        second = _read_answer(stream)

    assert (first[0], second[0], second[2]) == (200, 408, LATE_HEAD)


@pytest.mark.parametrize(
    "framing",
    [
        pytest.param(b"Content-Length: 17\r\n\r\n" + BODY[:5], id="declared"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + BODY[:5], id="chunked"),
    ],
)
def test_a_body_that_stalls_is_refused_and_counted_under_its_model(
    port: int, framing: bytes
) -> None:
    before = _counted("slow-echo", "v1", 408)

    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(PREDICT + framing)
        status, headers, body = _read_answer(stream)
        rest = stream.read()

    assert (status, body, headers["connection"], rest) == (408, LATE_BODY, "close", b"")
    deadline = time.monotonic() + WAIT_S
    while _counted("slow-echo", "v1", 408) < before + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _counted("slow-echo", "v1", 408) == before + 1


def test_a_body_that_trickles_is_read_for_as_long_as_it_comes(port: int) -> None:
    status, body, longest_s = 0, b"", TIMEOUT_S
    # A busy machine may hold up the client itself, which then has stalled.
    while longest_s > TIMEOUT_S / 2:
        with _connect(port) as client, client.makefile("rb") as stream:
            since = time.monotonic()
            client.sendall(PREDICT + b"Content-Length: 17\r\n\r\n")
            # 0.85 s in all.
            longest_s = _trickle(client, BODY, since)
            status, _, body = _read_answer(stream)

    assert (status, body) == (200, b'{"predictions":[1]}')


def test_a_client_whose_body_is_not_read_has_not_stalled() -> None:
    model = Blocking("slow-echo")
    # More than a connection reads ahead.
    large = b'{"instances":[2]}'.ljust(4 * MEBIBYTE)

    with serving(model, body_timeout_s=TIMEOUT_S) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(PREDICT + b"Content-Length: 17\r\n\r\n" + BODY)
            assert model.entered.wait(WAIT_S)
            sender = threading.Thread(
                target=client.sendall, args=(PREDICT + _length(large) + large,)
            )
            sender.start()
            # Several times what a client may pause.
            time.sleep(4 * TIMEOUT_S)
            model.released.set()
            answers = [_read_answer(stream) for _ in range(2)]
            sender.join(WAIT_S)

    assert [(status, body) for status, _, body in answers] == [
        (200, b'{"predictions":[1]}'),
        (200, b'{"predictions":[2]}'),
    ]


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body)


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
def test_a_connection_that_asks_nothing_is_closed(sent: bytes) -> None:
    with serving(Echo("slow-echo"), timeout_keep_alive_s=1) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(sent)
            rest = stream.read()

    assert rest == b""


def test_a_connection_is_closed_that_is_idle_after_a_body_nobody_wanted() -> None:
    with serving(Echo("slow-echo"), timeout_keep_alive_s=1) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(PREDICT.replace(b"slow-echo", b"none") + b"Content-Length: 30\r\n\r\n")
            status, _, _ = _read_answer(stream)
            # 1.5 s in all, more than an idle connection has.
            _trickle(client, b" " * 30)
            rest = stream.read()

    assert (status, rest) == (404, b"")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="target"),
        pytest.param(PREDICT + b"A: " + b"b" * 70_000 + b"\r\n\r\n", id="one field"),
        pytest.param(PREDICT + b"A: b\r\n" * 11_000 + b"\r\n", id="many fields"),
        pytest.param(PREDICT + b"A: " + b"b" * 1_000_000, id="no end of a field"),
        pytest.param(PREDICT + b"A: b\r\n" * 200_000, id="no end of fields"),
        pytest.param(
            PREDICT + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 1_000_000,
            id="chunk extension",
        ),
        pytest.param(
            PREDICT
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"1;aaaaaaaaaaaaaaaaaaaa\r\nx\r\n" * 30_000,
            id="chunk extensions",
        ),
        pytest.param(
            PREDICT + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"A: b\r\n" * 200_000,
            id="fields after the body",
        ),
        pytest.param(
            PREDICT
            + b"Transfer-Encoding: chunked\r\n\r\nea60\r\n"
            + b" " * 60_000
            + b"\r\n0\r\n"
            + b"A: b\r\n" * 100_000
            + b"\r\n",
            id="fields after a large body",
        ),
    ],
)
def test_a_head_beyond_64_kib_is_refused(patient_port: int, sent: bytes) -> None:
    with _connect(patient_port) as client, client.makefile("rb") as stream:
        sender = threading.Thread(target=_send_all, args=(client, sent))
        sender.start()
        status, headers, body = _read_answer(stream)
        rest = stream.read()
        sender.join(WAIT_S)

    assert (status, body, headers["connection"], rest) == (431, LARGE_HEAD, "close", b"")


def _send_all(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:
        return


@pytest.mark.parametrize("size", [1000, 200_000])
def test_a_head_below_64_kib_is_read_however_it_comes(patient_port: int, size: int) -> None:
    body = b'{"instances":[1]}'.ljust(150_000)
    sent = PREDICT + b"A: " + b"b" * 60_000 + b"\r\n" + _length(body) + body
    # The head of the second request comes with the end of the first one's body.
    sent *= 2

    with _connect(patient_port) as client, client.makefile("rb") as stream:
        for start in range(0, len(sent), size):
            client.sendall(sent[start : start + size])
        answers = [_read_answer(stream) for _ in range(2)]

    assert [(status, body) for status, _, body in answers] == [(200, b'{"predictions":[1]}')] * 2


def test_fields_after_a_body_are_not_the_models_to_see(patient_port: int) -> None:
    class Listing(Model):
        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            return {"predictions": sorted(headers)}

    chunked = b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + BODY + b"\r\n0\r\nx-late: 1\r\n\r\n"
    with serving(Listing("slow-echo")) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(PREDICT + chunked)
            _, _, body = _read_answer(stream)

    assert body == b'{"predictions":["host","transfer-encoding","x-request-id"]}'


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_slow_readers_cost_their_answers_and_others_are_served(tmp_path: Path) -> None:
    script = tmp_path / "large.py"
    script.write_text(
        "from kserve import Model, ModelServer\n"
        "LARGE = bytes(50_000_000)\n"
        "class Large(Model):\n"
        "    async def predict(self, payload, headers=None, response_headers=None):\n"
        "        return LARGE\n"
        'model = Large("model")\n'
        "model.ready = True\n"
        "ModelServer().start([model])\n"
    )
    head = b"POST /v1/models/model:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"

    with ServerProcess(str(script), "--enable_grpc", "false") as server:
        pid = server.process.pid
        clients = [_connect(server.port) for _ in range(4)]
        before = _resident_bytes(pid)
        streams = [client.makefile("rb") for client in clients]
        for client, stream in zip(clients, streams, strict=True):
            client.sendall(head)
            # It has begun to answer; the rest waits for the client.
            stream.read(10)
        live = server.request("GET", "/v2/health/live").status
        held = _resident_bytes(pid) - before
        n_read = len(_read_rest(streams[0]))
        for client, stream in zip(clients, streams, strict=True):
            stream.close()
            client.close()

    assert live == 200
    assert n_read == 50_000_000
    # No more than one answer for each of them.
    assert held < 4 * 50_000_000 + 20 * MEBIBYTE


def _read_rest(stream: BinaryIO) -> bytes:
    while stream.readline() != b"\r\n":
        pass
    return stream.read(50_000_000)


@pytest.mark.parametrize("seed", range(5))
def test_garbage_is_answered_or_dropped_and_the_server_lives(port: int, seed: int) -> None:
    garbage = bytes((seed * 31 + position * position * 7) % 256 for position in range(3000))

    with _connect(port) as client, client.makefile("rb") as stream:
        _send_all(client, garbage)
        line = stream.readline()

    assert line.startswith(b"HTTP/1.1 400 ")
    assert request(port, "GET", "/").status == 200
