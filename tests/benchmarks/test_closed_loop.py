import os
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from benchmarks.closed_loop import Load, Result, run_http

Serve = Callable[[Callable[[socket.socket], bool]], int]

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nask"
RIGHT = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"


def put_load(port: int, n_connections: int = 2) -> Result:
    load = Load(REQUEST, lambda body: body == b"right", n_connections, 0.05, 0.3)
    return run_http(load, port, os.getpid())


def always(answer: bytes, stays_open: bool = True) -> Callable[[socket.socket], bool]:
    def handle(connection: socket.socket) -> bool:
        connection.sendall(answer)
        return stays_open

    return handle


def test_counts_right_answers(serve: Serve) -> None:
    result = put_load(serve(always(RIGHT)))

    assert result.rate > 0
    assert result.failures == {}
    assert 0 < result.latency_ms(50) <= result.latency_ms(99)
    assert result.latencies_s == sorted(result.latencies_s)


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        pytest.param(RIGHT.replace(b"right", b"wrong"), {"wrong answer"}, id="a wrong answer"),
        pytest.param(RIGHT.replace(b"200 OK", b"500 No"), {"500"}, id="an error"),
        pytest.param(
            RIGHT.replace(b"Content", b"Text"),
            {"unreadable", "connection lost"},
            id="an unreadable answer",
        ),
    ],
)
def test_serves_no_request_by(serve: Serve, answer: bytes, kinds: set[str]) -> None:
    result = put_load(serve(always(answer)))

    assert (result.rate, set(result.failures)) == (0, kinds)


def test_connects_again_where_the_server_closes(serve: Serve) -> None:
    result = put_load(serve(always(RIGHT, stays_open=False)))

    assert result.rate > 0
    assert result.failures["connection lost"] > 0


def test_each_connection_waits_for_its_answer(serve: Serve) -> None:
    n_at_once = []
    waiting = threading.Semaphore(3)

    def handle(connection: socket.socket) -> bool:
        n_at_once.append(waiting.acquire(blocking=False))
        connection.sendall(RIGHT)
        waiting.release()
        return True

    put_load(serve(handle), n_connections=3)

    assert all(n_at_once)


class _Echo(BaseHTTPRequestHandler):
    """Answers with the path that was asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def test_requests_are_asked_in_turn() -> None:
    asked: list[bytes] = []
    requests = [b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(3)]

    def note(body: bytes) -> bool:
        asked.append(body)
        return True

    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        load = Load(requests[0], note, 1, 0.05, 0.3, requests[1:])
        run_http(load, server.server_port, os.getpid())
        server.shutdown()
        thread.join()

    assert len(asked) > 3
    assert asked == [b"/%d" % (number % 3) for number in range(len(asked))]
