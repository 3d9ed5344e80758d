"""One connection: an Upgrade, what is no HTTP, bodies that do not come."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest
from prometheus_client import REGISTRY

from kserve import Model, ModelServer
from kserve.config import ServerConfig
from kserve.testing import serving

WAIT_S = 15
PREDICT = b"POST /v1/models/http-echo:predict HTTP/1.1\r\nHost: x\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
BODY = b'{"instances":[1]}'
ECHO = PREDICT + b"Content-Length: 17\r\n\r\n" + BODY
ECHO_UPGRADED = PREDICT + UPGRADE + b"Content-Length: 17\r\n\r\n" + BODY
GOOD = (200, b'{"predictions":[1]}')
DRAINING = b'{"error":"Server is not ready. The server is shutting down."}'


class Echo(Model):
    """Answers with its instances."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


class Slow(Model):
    """Answers once it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.released = threading.Event()

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self.entered.set()
        self.released.wait(WAIT_S)
        return {"predictions": ["late"]}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(Echo("http-echo")) as port:
        yield port


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), WAIT_S)


def _read_answer(stream: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    status = int(stream.readline().split(b" ")[1])
    headers = {}
    while (line := stream.readline()) != b"\r\n":
        name, _, value = line.decode().strip().partition(": ")
        headers[name.lower()] = value
    return status, headers, stream.read(int(headers["content-length"]))


def _exchange(port: int, *pieces: bytes, n: int = 1) -> list[tuple[int, dict[str, str], bytes]]:
    with _connect(port) as client, client.makefile("rb") as stream:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        return [_read_answer(stream) for _ in range(n)]


def _counted(model_name: str, protocol: str, status: int) -> float:
    labels = {"model_name": model_name, "protocol": protocol, "status": str(status)}
    return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0


@pytest.mark.parametrize("size", [1, 5, 80, 10_000])
def test_an_upgrade_is_ignored_however_the_bytes_come(
    port: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    sent = ECHO_UPGRADED + ECHO + ECHO_UPGRADED * 2
    pieces = [sent[start : start + size] for start in range(0, len(sent), size)]

    answers = _exchange(port, *pieces, n=4)

    assert [(status, body) for status, _, body in answers] == [GOOD] * 4
    assert [record.getMessage() for record in caplog.records if "ebSocket" in record.msg] == []


def test_a_body_under_an_upgrade_is_never_a_request(port: int) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = PREDICT + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(smuggled)

    answers = _exchange(port, head, smuggled, ECHO, n=2)

    assert [status for status, _, _ in answers] == [400, 200]


def test_a_chunked_body_under_an_upgrade_is_read(port: int) -> None:
    head = PREDICT + UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n"

    [(status, _, body)] = _exchange(port, head, b"11\r\n" + BODY + b"\r\n", b"0\r\n\r\n")

    assert (status, body) == GOOD


def test_an_upgrade_of_http_1_0_leaves_it_http_1_0(port: int) -> None:
    head = b"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"

    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(head)
        status, _, _ = _read_answer(stream)
        rest = stream.read()

    # A connection of HTTP/1.0 ends after the answer.
    assert (status, rest) == (200, b"")


NO_HTTP = [
    pytest.param(
        PREDICT + b"Content-Length: -1\r\n\r\n",
        "Invalid character in Content-Length",
        id="negative",
    ),
    pytest.param(
        PREDICT + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "Duplicate Content-Length",
        id="two lengths",
    ),
    pytest.param(b"FOO / HTTP/1.1\r\n\r\n", "Invalid method encountered", id="unknown method"),
    pytest.param("GET /é HTTP/1.1\r\n\r\n".encode(), "Invalid char in url path", id="raw UTF-8"),
    pytest.param(b"GET / HTTP/1.1\r\nA: \0\r\n\r\n", "Invalid header value char", id="NUL"),
]


@pytest.mark.parametrize(("sent", "reason"), NO_HTTP)
def test_what_is_no_http_is_told_so_and_counted(port: int, sent: bytes, reason: str) -> None:
    before = _counted("", "", 400)

    # The first request's id is not that of the second.
    first = b"GET / HTTP/1.1\r\nHost: x\r\nx-request-id: first\r\n\r\n"
    with _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(first)
        _read_answer(stream)
        client.sendall(sent)
        status, headers, body = _read_answer(stream)

    assert (status, body) == (
        400,
        b'{"error":"The request is not valid HTTP: %b"}' % reason.encode(),
    )
    assert sorted(headers) == [
        "connection",
        "content-length",
        "content-type",
        "date",
        "x-request-id",
    ]
    assert (headers["connection"], headers["content-type"]) == ("close", "application/json")
    assert headers["x-request-id"] != "first"
    assert _counted("", "", 400) == before + 1


def test_connect_is_refused(port: int) -> None:
    [(status, _, body)] = _exchange(port, b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\nabc")

    assert (status, body) == (400, b'{"error":"The method CONNECT is not supported"}')


def test_a_chunk_that_is_none_is_counted_once_and_under_its_model(port: int) -> None:
    before = [_counted("http-echo", "v1", 400), _counted("http-echo", "v1", 499)]
    head = PREDICT + b"Transfer-Encoding: chunked\r\nx-request-id: a-1\r\n\r\n"

    [(status, headers, body)] = _exchange(port, head, b"zz\r\n")
    [_] = _exchange(port, ECHO)

    assert (status, headers["x-request-id"]) == (400, "a-1")
    assert body == b'{"error":"The request is not valid HTTP: Invalid character in chunk size"}'
    after = [_counted("http-echo", "v1", 400), _counted("http-echo", "v1", 499)]
    assert after == [before[0] + 1, before[1]]


def test_what_follows_a_good_request_does_not_take_its_answer() -> None:
    model = Slow("http-echo")
    with serving(model) as port, _connect(port) as client, client.makefile("rb") as stream:
        client.sendall(ECHO + b"no HTTP\r\n\r\n")
        assert model.entered.wait(WAIT_S)
        model.released.set()
        status, _, body = _read_answer(stream)
        rest = stream.read()

    assert (status, body, rest) == (200, b'{"predictions":["late"]}', b"")


def test_a_body_that_does_not_come_holds_up_no_stop() -> None:
    server = ModelServer(config=ServerConfig(host="127.0.0.1", http_port=0, grace_period_s=WAIT_S))
    before = _counted("http-echo", "v1", 503)
    with serving(Echo("http-echo"), server) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(PREDICT + b"Content-Length: 17\r\n\r\n{")
            # A later connection that is answered: the first one's head has been read.
            [_] = _exchange(port, ECHO)
            server.stop()
            status, headers, body = _read_answer(stream)
            rest = stream.read()

    assert (status, headers["connection"], body, rest) == (503, "close", DRAINING, b"")
    assert _counted("http-echo", "v1", 503) == before + 1


def test_a_client_that_still_uploads_gets_the_grace_period() -> None:
    server = ModelServer(config=ServerConfig(host="127.0.0.1", http_port=0, grace_period_s=WAIT_S))
    with serving(Echo("http-echo"), server) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(PREDICT + b"Content-Length: 17\r\n\r\n")
            [_] = _exchange(port, ECHO)
            server.stop()
            # 2 s in all, twice what a client may pause.
            for start in range(0, 17, 2):
                time.sleep(0.25)
                client.sendall(BODY[start : start + 2])
            status, _, body = _read_answer(stream)

    assert (status, body) == GOOD


def test_a_request_behind_one_that_takes_long_is_not_taken_for_stalled() -> None:
    model = Slow("http-echo")
    config = ServerConfig(host="127.0.0.1", http_port=0, grace_period_s=WAIT_S)
    server = ModelServer(config=config)
    with serving(model, server) as port:
        with _connect(port) as client, client.makefile("rb") as stream:
            client.sendall(ECHO)
            assert model.entered.wait(WAIT_S)
            client.sendall(PREDICT + b"Content-Length: 17\r\n\r\n{")
            [_] = _exchange(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            server.stop()
            # More than a client may pause.
            time.sleep(1.5)
            model.released.set()
            first, second = _read_answer(stream), _read_answer(stream)

    assert (first[0], first[2]) == (200, b'{"predictions":["late"]}')
    assert (second[0], second[2]) == (503, DRAINING)


def test_a_refusal_is_logged_under_the_id_of_its_answer(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kserve")

    _exchange(port, b"FOO / HTTP/1.1\r\n\r\n")

    # The line of an earlier test's last request may come now: it is written after its answer.
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "kserve"]
    assert lines == [
        ("INFO", "Refused with 400: The request is not valid HTTP: Invalid method encountered")
    ]
