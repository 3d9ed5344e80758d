"""Clients that make mistakes, go away, or never finish; and those who load and unload models."""

import random
import socket
import struct
import threading
from collections import deque
from typing import Any, Final

import grpc
import orjson

from benchmarks import payloads
from benchmarks.clients import TIMEOUT_S, Client, Fault
from benchmarks.closed_loop import INFER
from benchmarks.payloads import HttpRequest

IRIS: Final = "iris"
_JSON: Final = {"Content-Type": "application/json"}
_N_HALF_OPEN: Final = 20
# An answer to so many rows does not fit into the small buffer of a client that does not read.
_N_ROWS_OF_A_LARGE_ANSWER: Final = 20000
_SMALL_BUFFER_BYTES: Final = 4096

_GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"hello\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/models/iris:predict HTTP/1.1\r\nContent-Length: many\r\n\r\n",
    b"POST /v1/models/iris:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"GET / HTTP/1.1\r\nHost: \x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    bytes(range(256)),
)


def ask_wrongly(client: Client) -> None:
    """Send what is a 4xx, and expect exactly that."""
    model = client.model()
    rows, _ = model.sample(client.chance, 2)
    wide = payloads.v2_json(model.name, rows[:, :-1])
    lying = payloads.v2_binary(model.name, rows)
    request, expected = client.chance.choice(
        [
            (HttpRequest(f"/v2/models/{model.name}/infer", b'{"inputs": [', _JSON), 400),
            (HttpRequest(f"/v1/models/{model.name}:predict", b'{"instances": 3}', _JSON), 400),
            (HttpRequest(f"/v1/models/{model.name}:predict", b"", _JSON), 400),
            (HttpRequest("/v2/models/nobody/infer", wide.body, _JSON), 404),
            (HttpRequest("/nowhere", b"{}", _JSON), 404),
            (HttpRequest("/v2/health/live", b"{}", _JSON), 405),
            (wide, 400),
            (HttpRequest(lying.path, lying.body[:-3], lying.headers), 400),
            (HttpRequest(wide.path, b"no gzip", {**_JSON, "Content-Encoding": "gzip"}), 400),
        ]
    )
    status, body, _ = client.post(request)
    if status != expected:
        raise Fault(f"POST {request.path}: {status} {body[:200]!r}, not {expected}")


def ask_wrongly_over_grpc(client: Client) -> None:
    """Send an unknown model, a wrong shape or no message at all over gRPC."""
    model = client.model()
    rows, _ = model.sample(client.chance, 2)
    unknown = payloads.grpc_raw("nobody", rows).SerializeToString()
    wide = payloads.grpc_raw(model.name, rows[:, :-1]).SerializeToString()
    message, expected = client.chance.choice(
        [
            (unknown, {grpc.StatusCode.NOT_FOUND}),
            (wide, {grpc.StatusCode.INVALID_ARGUMENT}),
            # gRPC says INTERNAL of a message that it cannot read.
            (b"\xff" * 40, {grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT}),
        ]
    )
    call = client.channel.unary_unary(INFER, request_serializer=bytes, response_deserializer=bytes)
    try:
        call(message, timeout=TIMEOUT_S)
    except grpc.RpcError as exc:
        if exc.code() not in expected:
            raise Fault(f"gRPC: {exc.code()} {exc.details()}, not {expected}") from exc
    else:
        raise Fault(f"gRPC: answered, not {expected}")


def send_garbage(client: Client) -> None:
    """Send what is not HTTP, or hardly, and expect a 4xx or the end of the connection."""
    garbage = client.chance.choice(_GARBAGE)
    answer = _send_all(client.target.port, garbage)
    if answer and not answer.startswith(b"HTTP/1.1 4"):
        raise Fault(f"to {garbage[:40]!r}: {answer[:200]!r}")


def send_garbage_to_grpc(client: Client) -> None:
    """Send what is not HTTP/2 to the gRPC port, and expect the end of the connection."""
    _send_all(client.target.grpc_port, client.chance.choice(_GARBAGE))


def _send_all(port: int, garbage: bytes) -> bytes:
    """Send and say that nothing follows; give what comes, empty where the connection is closed."""
    with _connect(port) as connection:
        try:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1 << 16)
        except TimeoutError as exc:
            raise Fault(f"neither answered nor closed: {garbage[:40]!r}") from exc
        except OSError:
            return b""


def leave_mid_body(client: Client) -> None:
    """Send a part of a body, then go."""
    wire = _large_request(client, client.chance.choice((10, 1000))).wire
    with _connect(client.target.port) as connection:
        connection.sendall(wire[: client.chance.randrange(len(wire) // 4, len(wire) - 1)])
        _leave(connection, client.chance)


def leave_before_the_answer(client: Client) -> None:
    """Send a whole request, then go at once."""
    with _connect(client.target.port) as connection:
        connection.sendall(_large_request(client, client.chance.choice((1, 100, 1000))).wire)
        _leave(connection, client.chance)


def leave_mid_answer(client: Client) -> None:
    """Read the start of a large answer, then go."""
    with _connect(client.target.port, _SMALL_BUFFER_BYTES) as connection:
        connection.sendall(_large_request(client, _N_ROWS_OF_A_LARGE_ANSWER).wire)
        if not connection.recv(100).startswith(b"HTTP/1.1 200"):
            raise Fault("a large request was not answered 200")
        _leave(connection, client.chance)


def cancel_over_grpc(client: Client) -> None:
    """Cancel a call, or a stream after its first answer."""
    model = client.model()
    rows, _ = model.sample(client.chance, 100)
    request = payloads.grpc_raw(model.name, rows)
    if client.chance.random() < 0.5:
        client.stub.ModelInfer.future(request, timeout=TIMEOUT_S).cancel()
        return
    answers = client.stub.ModelStreamInfer((request for _ in range(5)), timeout=TIMEOUT_S)
    next(answers)
    answers.cancel()


class HalfOpen:
    """Connections that never finish: 20 of them, the oldest of which goes when a new one comes.

    Attributes:
        connections: Those that are open.
    """

    def __init__(self) -> None:
        self.connections: deque[socket.socket] = deque()
        self._lock = threading.Lock()

    def open_one(self, client: Client) -> None:
        """Open one that sends nothing, half a head, half a body, or does not read its answer."""
        small = _large_request(client, 10).wire
        sent = client.chance.choice(
            [b"", small[:30], small[:-20], _large_request(client, _N_ROWS_OF_A_LARGE_ANSWER).wire]
        )
        connection = _connect(client.target.port, _SMALL_BUFFER_BYTES)
        connection.sendall(sent)
        with self._lock:
            self.connections.append(connection)
            oldest = self.connections.popleft() if len(self.connections) > _N_HALF_OPEN else None
        if oldest is not None:
            oldest.close()

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for connection in self.connections:
                connection.close()
            self.connections.clear()


def change_models(client: Client) -> None:
    """Unload and load a spare model, or load one again that is in use, or list all."""
    draw = client.chance.random()
    if draw < 0.2:
        _repository(client, "index", b"{}")
    elif draw < 0.5:
        _repository(client, f"models/{client.model().name}/load")
    else:
        spare = client.chance.choice(client.target.spares).name
        _repository(client, f"models/{spare}/unload")
        _repository(client, f"models/{spare}/load")


def _repository(client: Client, what: str, body: bytes = b"") -> Any:
    path = f"/v2/repository/{what}"
    status, answer, _ = client.post(HttpRequest(path, body, _JSON))
    if status != 200:
        raise Fault(f"POST {path}: {status} {answer[:200]!r}")
    return orjson.loads(answer) if answer else None


def _large_request(client: Client, n_rows: int) -> HttpRequest:
    """Give a request for the scores of all classes of iris, as JSON: about 60 bytes a row."""
    iris = next(model for model in client.target.models if model.name == IRIS)
    rows, _ = iris.sample(client.chance, n_rows)
    return payloads.v2_json(iris.name, rows, ["decision_function"])


def _connect(port: int, receive_buffer_bytes: int | None = None) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(TIMEOUT_S)
    if receive_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    connection.connect(("127.0.0.1", port))
    return connection


def _leave(connection: socket.socket, chance: random.Random) -> None:
    if chance.random() < 0.5:
        # No farewell: closing sends a reset (socket(7), SO_LINGER with a timeout of 0).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
