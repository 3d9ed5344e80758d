import os
import socket
import threading
from collections.abc import Callable

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
