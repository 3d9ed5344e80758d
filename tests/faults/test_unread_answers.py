"""Clients that do not read: their connection is cut, and what was unsent leaves the memory."""

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame
from prometheus_client import REGISTRY

from kserve import Model, ModelServer, TensorModel
from kserve.config import ServerConfig
from kserve.protocol import sending
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.message_reader import PREFIX
from kserve.protocol.http2 import connection
from kserve.protocol.http2.frames import PREFACE
from kserve.signature import Tensors
from kserve.testing import serving, serving_ports

WAIT_S = 15
# Short for the tests.
TIMEOUT_S = 0.3
N_BYTES = 8 << 20
BODY = b'{"instances":[1]}'
INFER = (
    b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1],"data":[1]}],'
    b'"parameters":{"binary_data_output":true}}'
)


class Whole(Model):
    """Answers with 8 MiB."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return bytes(N_BYTES)


class Streaming(Model):
    """Streams without end."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            yield bytes(100_000)


class Tensor(TensorModel):
    """Answers with two tensors of 8 MiB."""

    def predict_tensors(self, tensors: Tensors, options: Any) -> Tensors:
        return {"y": np.zeros(N_BYTES, np.uint8), "z": np.zeros(N_BYTES, np.uint8)}


@pytest.fixture
def aborted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Give the times at which connections were cut."""
    times: list[float] = []
    check = sending.SendWatch._check

    def noting(watch: sending.SendWatch) -> None:
        check(watch)
        if watch._timer is None and watch._transport.is_closing():
            times.append(time.monotonic())

    monkeypatch.setattr(sending.SendWatch, "_check", noting)
    yield times


def _post(path: str, body: bytes, *lines: str) -> bytes:
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


def _predict(name: str, *lines: str) -> bytes:
    return _post(f"/v1/models/{name}:predict", BODY, *lines)


def _connect(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(WAIT_S)
    client.connect(("127.0.0.1", port))
    return client


def _read_all(client: socket.socket) -> int:
    """Read to the end, which may be a reset; gives the bytes."""
    n_read = 0
    try:
        while data := client.recv(1 << 20):
            n_read += len(data)
    except ConnectionResetError:
        pass
    return n_read


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


@pytest.mark.parametrize(
    ("model", "request_bytes", "protocol", "status"),
    [
        pytest.param(Whole("unread"), _predict("unread"), "v1", 200, id="kept alive"),
        pytest.param(
            Whole("unread"), _predict("unread", "Connection: close"), "v1", 200, id="closed"
        ),
        pytest.param(Streaming("unread"), _predict("unread"), "v1", 499, id="stream"),
        pytest.param(
            Tensor("unread"), _post("/v2/models/unread/infer", INFER), "v2", 499, id="tensors"
        ),
    ],
)
def test_an_answer_that_is_not_read_is_cut_off(
    model: Model, request_bytes: bytes, protocol: str, status: int, aborted: list[float]
) -> None:
    before = _counted("unread", protocol, status)

    with serving(model, send_timeout_s=TIMEOUT_S) as port, _connect(port) as client:
        client.sendall(request_bytes)
        was_aborted = _wait_for(lambda: len(aborted) == 1)
        is_counted = _wait_for(lambda: _counted("unread", protocol, status) == before + 1)
        n_read = _read_all(client)

    assert (was_aborted, is_counted) == (True, True)
    assert n_read < N_BYTES


def _ask_over_grpc(client: socket.socket) -> None:
    """Ask for 16 MiB; the client's windows are no reason not to send them."""
    tensor = {"name": "x", "datatype": "INT64", "shape": [1]}
    message = pb.ModelInferRequest(
        model_name="unread", inputs=[tensor], raw_input_contents=[bytes(8)]
    ).SerializeToString()
    headers = [
        *((":method", "POST"), (":scheme", "http")),
        (":path", "/inference.GRPCInferenceService/ModelInfer"),
        ("content-type", "application/grpc"),
    ]
    settings = {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 30}
    frames = (
        SettingsFrame(settings=settings),
        WindowUpdateFrame(0, window_increment=1 << 30),
        HeadersFrame(1, Encoder().encode(headers), flags=["END_HEADERS"]),
        DataFrame(1, PREFIX.pack(0, len(message)) + message, flags=["END_STREAM"]),
    )
    client.sendall(PREFACE + b"".join(frame.serialize() for frame in frames))


def test_a_grpc_client_that_reads_nothing_is_cut_off(aborted: list[float]) -> None:
    with (
        serving_ports([Tensor("unread")], send_timeout_s=TIMEOUT_S) as ports,
        _connect(ports.grpc) as client,
    ):
        _ask_over_grpc(client)
        was_aborted = _wait_for(lambda: len(aborted) == 1)
        n_read = _read_all(client)

    assert was_aborted
    assert n_read < N_BYTES


def test_a_grpc_client_that_reads_slowly_gets_its_answer_while_the_server_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_LAST_CALL_S", TIMEOUT_S)
    monkeypatch.setattr(connection, "_CLOSING_S", TIMEOUT_S / 3)
    config = ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0, drain_delay_s=0)
    server = ModelServer(config=config)

    with serving_ports([Tensor("unread")], server) as ports, _connect(ports.grpc) as client:
        _ask_over_grpc(client)
        n_read = len(client.recv(12))
        server.stop()
        while data := client.recv(1 << 14):
            n_read += len(data)
            # By then the server has written all, and the client has most of it before it.
            if n_read > 2 * N_BYTES - (2 << 20):
                threading.Event().wait(TIMEOUT_S / 100)
                # What comes to a socket that is closed resets it, and what it has is lost.
                client.sendall(WindowUpdateFrame(0, window_increment=len(data)).serialize())

    assert n_read > 2 * N_BYTES


def test_an_answer_that_is_read_slowly_is_not_cut_off(aborted: list[float]) -> None:
    with serving(Whole("unread-slow"), send_timeout_s=TIMEOUT_S) as port, _connect(port) as client:
        client.sendall(_predict("unread-slow", "Connection: close"))
        n_read, started = 0, time.monotonic()
        while time.monotonic() < started + 4 * TIMEOUT_S:
            n_read += len(client.recv(1 << 16))
            threading.Event().wait(TIMEOUT_S / 30)
        n_read += _read_all(client)

    assert n_read > N_BYTES
    assert aborted == []


def test_an_answer_that_is_not_read_is_cut_off_while_draining(aborted: list[float]) -> None:
    config = ServerConfig(
        host="127.0.0.1", http_port=0, enable_grpc=False, send_timeout_s=1, drain_delay_s=0
    )
    server = ModelServer(config=config)

    with serving(Whole("unread-drain"), server) as port, _connect(port) as client:
        client.sendall(_predict("unread-drain"))
        begun = client.recv(12)
        server.stop()
        was_aborted = _wait_for(lambda: len(aborted) == 1)
        n_read = _read_all(client)

    assert (begun, was_aborted) == (b"HTTP/1.1 200", True)
    assert n_read < N_BYTES
