"""Calls: what a request may say, what it may hold, and how it ends; over real sockets."""

import asyncio
import gc
import gzip
import random
import threading
import weakref
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from hyperframe.frame import (
    DataFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from kserve import InferResponse, Model, ModelServer, TensorModel
from kserve.config import ServerConfig
from kserve.errors import InvalidInput
from kserve.protocol import compression
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.protocol.grpc import message_reader
from kserve.protocol.grpc import server as server_module
from kserve.protocol.grpc.message_reader import PREFIX
from kserve.protocol.grpc.rpc import Rpc, read_timeout
from kserve.signature import Tensors
from kserve.testing import Ports, request, serving_ports

WAIT_S = 10
SERVICE = "/inference.GRPCInferenceService/"
LIVE, INFER, STREAM = SERVICE + "ServerLive", SERVICE + "ModelInfer", SERVICE + "ModelStreamInfer"
EMPTY = PREFIX.pack(0, 0)
INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = "3", "4", "8"
UNIMPLEMENTED, UNAVAILABLE = "12", "14"
Connect = Callable[..., Any]


class Echo(TensorModel):
    def predict_tensors(self, tensors: Tensors, options: Any) -> Tensors:
        return dict(tensors)


class Acting(Model):
    """Does what the test at hand has put into `act`."""

    def __init__(self, name: str) -> None:
        super().__init__(name, return_response_headers=True)
        self.act: Callable[..., Any] = lambda *_: InferResponse(None, "", [])

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return self.act(payload, headers, response_headers)


ACTING = Acting("acting")


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    with serving_ports([Echo("echo"), ACTING]) as ports:
        yield ports


def infer(name: str, n_bytes: int = 1) -> bytes:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [n_bytes]}
    message = pb.ModelInferRequest(
        model_name=name, inputs=[tensor], raw_input_contents=[bytes(n_bytes)]
    )
    data: bytes = message.SerializeToString()
    return data


def framed(data: bytes, flag: int = 0) -> bytes:
    return PREFIX.pack(flag, len(data)) + data


def ask(client: Any, path: str, data: bytes, *fields: tuple[str, str], id: int = 1) -> Any:
    pieces = [data[i : i + 16_384] for i in range(0, len(data), 16_384)] or [b""]
    frames = [DataFrame(id, piece) for piece in pieces]
    frames[-1].flags.add("END_STREAM")
    client.send(client.head(id, path, *fields), *frames)
    return client.answer_to(id)


def status(headers: dict[str, str]) -> tuple[str | None, str | None]:
    return headers.get("grpc-status"), headers.get("grpc-message")


@pytest.mark.parametrize(
    ("method", "content_type", "expected"),
    [
        pytest.param("GET", "application/grpc", "405", id="GET"),
        pytest.param("POST", "application/json", "415", id="JSON"),
        pytest.param("POST", "application/grpc+json", "415", id="JSON within gRPC"),
        pytest.param("POST", "application/grpc-web", "415", id="gRPC-Web"),
        pytest.param("POST", "application/grpc+proto", "200", id="protobuf, said"),
        pytest.param("POST", "Application/gRPC; a=b", "200", id="with a parameter"),
    ],
)
def test_only_requests_of_grpc_are_answered_by_it(
    ports: Ports, connect: Connect, method: str, content_type: str, expected: str
) -> None:
    client = connect(ports.grpc)
    pseudo = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", LIVE)]
    block = client.encoder.encode([*pseudo, ("content-type", content_type)])

    client.send(
        HeadersFrame(1, block, flags=["END_HEADERS"]), DataFrame(1, EMPTY, flags=["END_STREAM"])
    )
    headers, data = client.answer_to(1)

    assert headers[":status"] == expected
    if expected != "200":
        assert data == b"expected POST with content-type application/grpc"


@pytest.mark.parametrize(
    ("path", "data", "expected"),
    [
        pytest.param(
            LIVE, b"", (INVALID_ARGUMENT, "expected one message, got none"), id="no message"
        ),
        pytest.param(
            LIVE, EMPTY * 2, (INVALID_ARGUMENT, "expected one message, got 2"), id="two messages"
        ),
        pytest.param(
            LIVE,
            EMPTY[:3],
            (INVALID_ARGUMENT, "the request ends amid a message"),
            id="part of a message",
        ),
        pytest.param(
            STREAM,
            EMPTY[:3],
            (INVALID_ARGUMENT, "the request ends amid a message"),
            id="part of a message in a stream",
        ),
        pytest.param(
            LIVE,
            b"\7" + EMPTY,
            (INVALID_ARGUMENT, "expected a message to begin with 0 or 1, got 7"),
            id="no flag",
        ),
        pytest.param(
            LIVE,
            framed(b"", flag=1),
            (
                INVALID_ARGUMENT,
                "a message says that it is compressed, grpc-encoding does not",
            ),
            id="compressed, not said how",
        ),
        pytest.param(
            SERVICE + "é%",
            EMPTY,
            (UNIMPLEMENTED, f"there is no method {SERVICE}%C3%83%C2%A9%25"),
            id="no method",
        ),
        pytest.param(STREAM, b"", ("0", None), id="a stream of nothing"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    ports: Ports, connect: Connect, path: str, data: bytes, expected: tuple[str, str]
) -> None:
    headers, _ = ask(connect(ports.grpc), path, data)

    assert status(headers) == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        pytest.param(
            ("grpc-timeout", "soon"),
            "grpc-timeout: expected up to 8 digits and one of H, M, S, m, u, n, got b'soon'",
            id="timeout",
        ),
        pytest.param(("a-bin", "?"), "metadata 'a-bin': expected base64: ", id="binary metadata"),
    ],
)
def test_headers_that_cannot_be_read_are_refused(
    ports: Ports, connect: Connect, field: tuple[str, str], expected: str
) -> None:
    code, text = status(ask(connect(ports.grpc), LIVE, EMPTY, field)[0])

    assert code == INVALID_ARGUMENT
    assert text is not None
    assert text.startswith(expected)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"2H", 7200),
        (b"3M", 180),
        (b"99999999S", 99_999_999),
        (b"5m", 0.005),
        (b"6u", 6e-6),
        (b"7n", 7e-9),
    ],
)
def test_timeouts_are_read(text: bytes, seconds: float) -> None:
    assert read_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b"\xb2S"])
def test_what_is_no_timeout_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput, match="grpc-timeout"):
        read_timeout(text)


@pytest.mark.parametrize("metadata", [(("k-bin", b"\0\xff"),), (("k-bin", b"a"), ("k-bin", b"b"))])
def test_binary_metadata_is_decoded(
    ports: Ports, monkeypatch: pytest.MonkeyPatch, metadata: Any
) -> None:
    # Handlers of models get text alone; a service of gRPC's own would get these.
    seen: list[Any] = []

    def request_id(context: Any) -> str:
        seen.append(context.invocation_metadata())
        return "1"

    monkeypatch.setattr(server_module, "request_id", request_id)
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        pb_grpc.GRPCInferenceServiceStub(channel).ServerLive(
            pb.ServerLiveRequest(), timeout=WAIT_S, metadata=metadata
        )

    assert [item for item in seen[0] if item[0] == "k-bin"] == list(metadata)
    assert not [key for key, _ in seen[0] if key.startswith((":", "grpc-", "te", "content"))]


# Compression.


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_read(ports: Ports, compression: Any) -> None:
    data = np.zeros(100_000, np.uint8)
    message = pb.ModelInferRequest.FromString(infer("echo", len(data)))
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}", compression=compression) as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)

        (raw,) = stub.ModelInfer(message, timeout=WAIT_S).raw_output_contents
        streamed = list(stub.ModelStreamInfer(iter([message] * 2), timeout=WAIT_S))

    assert raw == data.tobytes()
    assert [r.infer_response.raw_output_contents[0] for r in streamed] == [data.tobytes()] * 2


def test_a_compression_that_is_not_read_is_refused_with_those_that_are(
    ports: Ports, connect: Connect
) -> None:
    headers, _ = ask(connect(ports.grpc), LIVE, EMPTY, ("grpc-encoding", "br"))

    assert status(headers) == (
        UNIMPLEMENTED,
        "grpc-encoding: expected one of gzip, deflate, identity, got 'br'",
    )
    assert headers["grpc-accept-encoding"] == "gzip,deflate,identity"


def test_a_message_that_becomes_too_large_is_refused(connect: Connect) -> None:
    bomb = gzip.compress(bytes(10 << 20))
    with (
        serving_ports([Echo("echo")], max_request_bytes=1 << 20) as ports,
        connect(ports.grpc) as client,
    ):
        headers, _ = ask(client, INFER, framed(bomb, 1), ("grpc-encoding", "gzip"))
        fits = zlib.compress(infer("echo", 1000))
        well, _ = ask(client, INFER, framed(fits, 1), ("grpc-encoding", "deflate"), id=3)

    assert headers["grpc-status"] == RESOURCE_EXHAUSTED
    assert "1048576" in headers["grpc-message"]
    assert well["grpc-status"] == "0"


# Bytes.


def test_a_message_that_is_too_large_is_refused_before_it_comes(connect: Connect) -> None:
    with (
        serving_ports([Echo("echo")], max_request_bytes=1000) as ports,
        connect(ports.grpc) as client,
    ):
        client.send(client.head(1, INFER), DataFrame(1, PREFIX.pack(0, 1001)))
        headers, _ = client.answer_to(1)
        # Sending goes on for as long as the client has not seen it.
        client.send(DataFrame(1, bytes(1000)))
        well, _ = ask(client, LIVE, EMPTY, id=3)

    assert status(headers) == (
        RESOURCE_EXHAUSTED,
        "the message has 1001 bytes, more than 1000 "
        "(--grpc_max_receive_message_length, --max_request_bytes)",
    )
    assert well["grpc-status"] == "0"


def test_messages_of_all_wires_share_the_room_that_there_is(connect: Connect) -> None:
    with ExitStack() as stack:
        ports = stack.enter_context(serving_ports([Echo("echo")], max_inflight_bytes=10_000))
        client = stack.enter_context(connect(ports.grpc))
        # What has begun to come counts whole.
        client.send(client.head(1, INFER), DataFrame(1, PREFIX.pack(0, 9000)))
        client.sync()
        refused, _ = ask(client, INFER, framed(infer("echo", 2000)), id=3)
        over_rest = request(ports.http, "POST", "/v1/models/echo:predict", b" " * 2000)
        never, _ = ask(client, INFER, framed(infer("echo", 20_000)), id=5)
        client.send(RstStreamFrame(1, error_code=8))
        well, _ = ask(client, INFER, framed(infer("echo", 2000)), id=7)
        # The room is there again, however the calls ended.
        again, _ = ask(client, INFER, framed(infer("echo", 9000)), id=9)

    assert status(refused) == (
        RESOURCE_EXHAUSTED,
        "there is no room for the body in the 10000 bytes that all requests in flight may hold "
        "(--max_inflight_bytes)",
    )
    assert over_rest.status == 429
    assert status(never) == (
        RESOURCE_EXHAUSTED,
        "the body is larger than the 10000 bytes that all requests in flight may hold "
        "(--max_inflight_bytes)",
    )
    assert [well["grpc-status"], again["grpc-status"]] == ["0", "0"]


@pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "amid a frame"])
def test_a_message_that_does_not_come_to_its_end_leaves_the_memory(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, is_reset: bool
) -> None:
    arrays: list[weakref.ref[Any]] = []

    def noting(*args: Any) -> Any:
        array = np.empty(*args)
        arrays.append(weakref.ref(array))
        return array

    monkeypatch.setattr(message_reader, "np", SimpleNamespace(empty=noting, uint8=np.uint8))
    with (
        serving_ports([Echo("echo")], body_timeout_s=WAIT_S if is_reset else 0.2) as ports,
        connect(ports.grpc) as client,
        connect(ports.grpc) as other,
    ):
        frame = DataFrame(1, PREFIX.pack(0, 900_000) + bytes(100_000)).serialize()
        client.send(client.head(1, INFER))
        if is_reset:
            client.socket.sendall(frame)
            client.send(RstStreamFrame(1, error_code=8))
            client.sync()
        else:
            client.socket.sendall(frame[:-1000])
            client.answer_to(1)
        ask(other, LIVE, EMPTY)

        # Nobody looks for garbage for as long as there are few objects, however large they are.
        assert [array() is None for array in arrays] == [True]


def test_a_stream_holds_room_for_the_messages_that_are_not_done(connect: Connect) -> None:
    with (
        serving_ports([Echo("echo")], max_inflight_bytes=10_000) as ports,
        connect(ports.grpc, {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20}) as client,
    ):
        message = framed(infer("echo", 4000))
        client.send(client.head(1, STREAM), WindowUpdateFrame(0, window_increment=1 << 20))
        for _ in range(50):
            client.send(DataFrame(1, message))
            client.read_until(lambda frame: isinstance(frame, DataFrame))
        client.send(DataFrame(1, b"", flags=["END_STREAM"]))
        headers, _ = client.answer_to(1)

    assert headers["grpc-status"] == "0"


def test_answers_that_are_not_taken_hold_room(connect: Connect) -> None:
    with (
        serving_ports([Echo("echo")], max_inflight_bytes=10_000) as ports,
        connect(ports.grpc, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as client,
    ):
        question = framed(infer("echo", 6000))
        client.send(client.head(1, INFER), DataFrame(1, question, flags=["END_STREAM"]))
        client.read_until(lambda frame: isinstance(frame, HeadersFrame))
        refused, _ = ask(client, INFER, question, id=3)
        client.send(
            RstStreamFrame(1, error_code=8),
            SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20}),
        )
        answers = [ask(client, INFER, question, id=i)[0]["grpc-status"] for i in (5, 7, 9)]

    assert refused["grpc-status"] == RESOURCE_EXHAUSTED
    assert answers == ["0"] * 3


def test_messages_take_room_even_if_they_are_empty(connect: Connect) -> None:
    release = threading.Event()
    slow = Acting("slow")
    slow.act = lambda *_: release.wait(WAIT_S)
    with (
        serving_ports([slow], max_inflight_bytes=10_000) as ports,
        connect(ports.grpc) as client,
    ):
        client.send(client.head(1, STREAM), DataFrame(1, framed(infer("slow")) + EMPTY * 1000))
        headers, _ = client.answer_to(1)
        release.set()

    assert headers["grpc-status"] == RESOURCE_EXHAUSTED


def test_a_second_message_of_a_unary_call_is_refused_when_it_comes(
    ports: Ports, connect: Connect
) -> None:
    client = connect(ports.grpc)

    client.send(client.head(1, LIVE), DataFrame(1, EMPTY * 2))
    headers, _ = client.answer_to(1)

    assert status(headers) == (INVALID_ARGUMENT, "expected one message, got 2")


def test_a_call_that_is_taken_back_while_a_message_is_decompressed_leaves_no_room_taken(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release, done = threading.Event(), threading.Event(), threading.Event()
    decompress = compression.decompress

    def slowly(*args: Any) -> bytes:
        entered.set()
        assert release.wait(WAIT_S)
        data = decompress(*args)
        done.set()
        return data

    monkeypatch.setattr(compression, "decompress", slowly)
    # Beyond the size that is decompressed on the event loop.
    content = random.Random(0).randbytes(6000)
    with (
        serving_ports([Echo("echo")], max_inflight_bytes=20_000) as ports,
        connect(ports.grpc) as client,
    ):
        compressed = framed(gzip.compress(content), 1)
        client.send(client.head(1, STREAM, ("grpc-encoding", "gzip")), DataFrame(1, compressed))
        assert entered.wait(WAIT_S)
        client.send(RstStreamFrame(1, error_code=8))
        client.sync()
        release.set()
        assert done.wait(WAIT_S)
        client.send(WindowUpdateFrame(0, window_increment=1 << 20))
        answers = [ask(client, INFER, framed(infer("echo", 18_000)), id=i) for i in range(3, 23, 2)]

    assert {headers["grpc-status"] for headers, _ in answers} == {"0"}


def test_a_call_leaves_nothing_for_the_garbage_collector(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)
    ask(client, LIVE, EMPTY)
    gc.collect()
    # Other tests may have left some that something still holds.
    before = [each for each in gc.get_objects() if isinstance(each, Rpc)]
    gc.disable()
    try:
        for stream_id, path, data in ((3, LIVE, EMPTY), (5, INFER, framed(infer("echo")))):
            ask(client, path, data, id=stream_id)
        ask(client, STREAM, framed(infer("echo")), id=7)
        client.sync()
        after = [each for each in gc.get_objects() if isinstance(each, Rpc)]
    finally:
        gc.enable()

    assert [each for each in after if all(each is not other for other in before)] == []


# Answers.


def test_headers_larger_than_a_frame_are_sent(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(payload: Any, headers: Any, response_headers: dict[str, str]) -> Any:
        response_headers.update({f"x-{i}": "v" * 1000 for i in range(50)})
        return InferResponse(None, "", [])

    monkeypatch.setattr(ACTING, "act", act)
    options = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}", options) as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        message = pb.ModelInferRequest.FromString(infer("acting"))
        _, call = stub.ModelInfer.with_call(message, timeout=WAIT_S)

    trailing = dict(call.trailing_metadata())
    assert [trailing[f"x-{i}"] for i in range(50)] == ["v" * 1000] * 50


def test_a_stream_is_made_no_faster_than_it_is_read(
    ports: Ports, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    async def forever() -> AsyncIterator[InferResponse]:
        nonlocal made
        while True:
            made += 1
            yield InferResponse(None, "", [], parameters={"text": "x" * 10_000})

    monkeypatch.setattr(ACTING, "act", lambda *_: forever())
    with connect(ports.grpc) as client:
        client.send(client.head(1, STREAM), DataFrame(1, framed(infer("acting"))))
        n_read = 0

        def is_last(frame: Any) -> bool:
            nonlocal n_read
            n_read += len(frame.data) if isinstance(frame, DataFrame) else 0
            return n_read == 65_535

        client.read_until(is_last)
        client.sync()

    # What the window holds, and one that waits for it to open.
    assert made <= 8


# The end.


def test_calls_that_outlive_the_grace_period_are_told(connect: Connect) -> None:
    entered, release = threading.Event(), threading.Event()

    def act(*args: Any) -> Any:
        entered.set()
        assert release.wait(WAIT_S)
        return InferResponse(None, "", [])

    slow = Acting("slow")
    slow.act = act
    config = ServerConfig(
        host="127.0.0.1", http_port=0, grpc_port=0, drain_delay_s=0, grace_period_s=1
    )
    server = ModelServer(config=config)

    with serving_ports([slow], server) as ports, connect(ports.grpc) as client:
        client.send(
            client.head(1, INFER), DataFrame(1, framed(infer("slow")), flags=["END_STREAM"])
        )
        assert entered.wait(WAIT_S)
        server.stop()
        headers, _ = client.answer_to(1)
        release.set()

    assert status(headers) == (UNAVAILABLE, "Server is not ready. It is shutting down.")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(DataFrame(1, b"\7" + EMPTY), INVALID_ARGUMENT, id="no message"),
        pytest.param(
            DataFrame(1, EMPTY[:3], flags=["END_STREAM"]), INVALID_ARGUMENT, id="a part of one"
        ),
        pytest.param(DataFrame(1, EMPTY[:3]), DEADLINE_EXCEEDED, id="one that does not come on"),
    ],
)
def test_a_request_that_breaks_off_ends_the_work_for_it(
    connect: Connect, frame: DataFrame, expected: str
) -> None:
    entered, ended = threading.Event(), threading.Event()

    async def wait() -> AsyncIterator[InferResponse]:
        try:
            entered.set()
            await asyncio.Event().wait()
            yield InferResponse(None, "", [])
        finally:
            ended.set()

    waiting = Acting("waiting")
    waiting.act = lambda *_: wait()
    with serving_ports([waiting], body_timeout_s=0.2) as ports, connect(ports.grpc) as client:
        client.send(client.head(1, STREAM), DataFrame(1, framed(infer("waiting"))))
        assert entered.wait(WAIT_S)
        client.send(frame)
        headers, _ = client.answer_to(1)

        assert headers["grpc-status"] == expected
        assert ended.wait(WAIT_S)


@pytest.mark.parametrize("path", [INFER, STREAM], ids=["unary", "stream"])
def test_a_deadline_ends_a_call(
    ports: Ports, connect: Connect, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    release = threading.Event()
    monkeypatch.setattr(ACTING, "act", lambda *_: release.wait(WAIT_S))
    # A raw client waits longer than it says.
    client = connect(ports.grpc)

    client.send(
        client.head(1, path, ("grpc-timeout", "50m")), DataFrame(1, framed(infer("acting")))
    )
    if path == INFER:
        client.send(DataFrame(1, b"", flags=["END_STREAM"]))
    headers, _ = client.answer_to(1)
    release.set()

    assert headers["grpc-status"] == "4"


def test_a_deadline_ends_a_call_that_never_comes(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)

    client.send(client.head(1, INFER, ("grpc-timeout", "50m")))
    headers, _ = client.answer_to(1)

    assert status(headers) == ("4", "the deadline of the call has passed")
