"""Connections that keep the rules, and that break each of them, over real sockets."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from kserve import Model, ModelServer, TensorModel
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import server as server_module
from kserve.protocol.grpc.message_reader import PREFIX
from kserve.signature import Tensors
from kserve.testing import Ports, serving_ports

WAIT_S = 10
SERVICE = "/inference.GRPCInferenceService/"
LIVE = SERVICE + "ServerLive"
INFER = SERVICE + "ModelInfer"
STREAM = SERVICE + "ModelStreamInfer"
EMPTY = PREFIX.pack(0, 0)
Connect = Callable[..., Any]


class Echo(TensorModel):
    def predict_tensors(self, tensors: Tensors, options: Any) -> Tensors:
        return dict(tensors)


class Gated(Model):
    """Answers when it may."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered, self.release = threading.Event(), threading.Event()

    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        self.entered.set()
        assert self.release.wait(WAIT_S)
        return {"outputs": []}


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    with serving_ports([Echo("echo")]) as ports:
        yield ports


def message(name: str, n_bytes: int) -> bytes:
    # One row, however long: rows that wait have a limit of their own.
    tensor = {"name": "x", "datatype": "UINT8", "shape": [1, n_bytes]}
    content = bytes(range(256)) * (n_bytes // 256 + 1)
    request = pb.ModelInferRequest(
        model_name=name, inputs=[tensor], raw_input_contents=[content[:n_bytes]]
    )
    data: bytes = request.SerializeToString()
    return PREFIX.pack(0, len(data)) + data


def raw_output(data: bytes) -> bytes:
    (raw,) = pb.ModelInferResponse.FromString(data[PREFIX.size :]).raw_output_contents
    return bytes(raw)


def live(client: Any, stream_id: int = 1) -> list[Frame]:
    return [client.head(stream_id, LIVE), DataFrame(stream_id, EMPTY, flags=["END_STREAM"])]


def is_live(client: Any, stream_id: int = 1) -> bool:
    client.send(*live(client, stream_id))
    headers, data = client.answer_to(stream_id)
    return headers["grpc-status"] == "0" and bool(data)


# What keeps the rules.


def test_a_call_is_answered(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)

    client.send(*live(client))
    headers, data = client.answer_to(1)

    assert headers.pop("x-request-id")
    assert headers == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "0",
    }
    assert pb.ServerLiveResponse.FromString(data[PREFIX.size :]).live


def test_bytes_may_come_one_by_one(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc, says_hello=False)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    frames = [SettingsFrame(settings={}), *live(client)]
    wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(f.serialize() for f in frames)

    for byte in wire:
        client.socket.sendall(bytes((byte,)))

    assert client.answer_to(1)[0]["grpc-status"] == "0"


def test_a_large_message_may_come_in_frames_of_any_size(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc, {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 24})
    client.send(WindowUpdateFrame(0, window_increment=1 << 24))
    request = message("echo", 300_000)

    client.send(client.head(1, INFER))
    start, size = 0, 1
    while start < len(request):
        # Padded, in part of one and the same read, and with nothing in them.
        frame = DataFrame(1, request[start : start + size], flags=["PADDED"], pad_length=size % 256)
        client.send(frame, DataFrame(1, b""))
        start, size = start + size, min(size * 3, 1 << 20)
    client.send(DataFrame(1, b"", flags=["END_STREAM"]))
    headers, data = client.answer_to(1)

    assert headers["grpc-status"] == "0"
    assert raw_output(data) == (bytes(range(256)) * 1200)[:300_000]


def test_headers_may_come_in_several_frames(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)
    block = client.head(1, LIVE, ("x-request-id", "abc")).data

    client.send(
        HeadersFrame(1, block[:5], flags=[]),
        ContinuationFrame(1, block[5:6]),
        ContinuationFrame(1, block[6:], flags=["END_HEADERS"]),
        DataFrame(1, EMPTY, flags=["END_STREAM"]),
    )

    assert client.answer_to(1)[0]["x-request-id"] == "abc"


def test_trailers_may_end_a_request(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)
    trailers = client.encoder.encode([("x-checksum", "1")])

    client.send(
        client.head(1, LIVE),
        DataFrame(1, EMPTY),
        HeadersFrame(1, trailers, flags=["END_HEADERS", "END_STREAM"]),
    )

    assert client.answer_to(1)[0]["grpc-status"] == "0"
    assert is_live(client, 3)


def test_what_has_no_meaning_here_is_ignored(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)
    assert is_live(client, 3)

    client.socket.sendall(raw(0xAB, 0xFF, 0, b"x" * 100_000))
    client.send(
        PriorityFrame(5, depends_on=3),
        GoAwayFrame(0),
        # Of streams that are over, or were left out.
        RstStreamFrame(3, error_code=8),
        WindowUpdateFrame(1, window_increment=1),
        DataFrame(3, b"late"),
        client.head(1, LIVE),
    )

    assert is_live(client, 7)


def test_settings_and_pings_are_acknowledged(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)
    client.send(PingFrame(opaque_data=b"12345678"))

    frames = client.read_until(lambda frame: isinstance(frame, PingFrame))

    assert isinstance(frames[0], SettingsFrame)
    assert [set(f.flags) for f in frames if isinstance(f, SettingsFrame)][1:] == [{"ACK"}]
    assert (frames[-1].opaque_data, set(frames[-1].flags)) == (b"12345678", {"ACK"})


@pytest.mark.parametrize("n_bytes", [1, 70_000, 300_000])
def test_no_more_is_sent_than_the_client_takes(
    ports: Ports, connect: Connect, n_bytes: int
) -> None:
    client = connect(ports.grpc, {SettingsFrame.INITIAL_WINDOW_SIZE: 100})
    request = message("echo", n_bytes)
    client.send(client.head(1, INFER), DataFrame(1, request[:5]))
    pieces = [request[i : i + 60_000] for i in range(5, len(request), 60_000)]
    client.send(*(DataFrame(1, p) for p in pieces), DataFrame(1, b"", flags=["END_STREAM"]))
    received, windows, is_over = b"", {0: 65_535, 1: 100}, False

    while not is_over:
        frame = client.read()
        if isinstance(frame, DataFrame):
            received += frame.data
            for stream_id in windows:
                windows[stream_id] -= len(frame.data)
                assert windows[stream_id] >= 0
            assert len(frame.data) <= 16_384
            if windows[1] == 0:
                # By the stream's window, and by that of all new ones.
                client.send(WindowUpdateFrame(1, window_increment=33_333))
                windows[1] += 33_333
            if windows[0] == 0:
                client.send(WindowUpdateFrame(0, window_increment=50_000))
                windows[0] += 50_000
        is_over = isinstance(frame, HeadersFrame) and "END_STREAM" in frame.flags

    assert len(raw_output(received)) == n_bytes


def test_a_larger_first_window_lets_waiting_answers_go(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc, {SettingsFrame.INITIAL_WINDOW_SIZE: 0})
    for stream_id in (1, 3):
        request = message("echo", 1000)
        client.send(
            client.head(stream_id, INFER), DataFrame(stream_id, request, flags=["END_STREAM"])
        )
    client.read_until(lambda frame: isinstance(frame, HeadersFrame) and frame.stream_id == 3)

    client.send(SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 5000}))
    frames = client.read_until(lambda frame: frame.stream_id == 3 and "END_STREAM" in frame.flags)

    data = {
        i: b"".join(f.data for f in frames if isinstance(f, DataFrame) and f.stream_id == i)
        for i in (1, 3)
    }
    assert {i: len(raw_output(d)) for i, d in data.items()} == {1: 1000, 3: 1000}


def test_an_empty_answer_needs_no_more_window_than_its_length_has(connect: Connect) -> None:
    class Sleeping(Model):
        def load(self) -> bool:
            return False

    question = PREFIX.pack(0, 3) + pb.ModelReadyRequest(name="z").SerializeToString()
    with (
        serving_ports([Echo("echo"), Sleeping("z")]) as ports,
        connect(ports.grpc, {SettingsFrame.INITIAL_WINDOW_SIZE: 3}) as client,
    ):
        head = client.head(1, SERVICE + "ModelReady")
        client.send(head, DataFrame(1, question, flags=["END_STREAM"]))
        client.read_until(lambda frame: isinstance(frame, DataFrame))

        client.send(WindowUpdateFrame(1, window_increment=2))
        frames = client.read_until(lambda frame: "END_STREAM" in frame.flags)

    assert b"".join(f.data for f in frames if isinstance(f, DataFrame)) == EMPTY[3:]


def test_answers_share_the_way_out(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc, {SettingsFrame.INITIAL_WINDOW_SIZE: 0})
    for stream_id in (1, 3):
        request = message("echo", 50_000)
        client.send(
            client.head(stream_id, INFER), DataFrame(stream_id, request, flags=["END_STREAM"])
        )
    client.read_until(lambda frame: isinstance(frame, HeadersFrame) and frame.stream_id == 3)

    client.send(SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20}))
    # The connection's own window of 65,535 bytes is shared.
    frames = [client.read() for _ in range(4)]

    of_data = [frame.stream_id for frame in frames if isinstance(frame, DataFrame)]
    assert of_data[:3] == [1, 3, 1]


def test_a_client_may_send_more_than_its_window_at_first(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)
    request = message("echo", 9 << 20)
    n_sent, window = 0, 4 << 20
    client.send(client.head(1, INFER))

    while n_sent < len(request):
        if window == 0:
            (update,) = client.read_until(
                lambda f: isinstance(f, WindowUpdateFrame) and f.stream_id == 1
            )[-1:]
            window += update.window_increment
        n_bytes = min(window, 1 << 16, len(request) - n_sent)
        client.send(DataFrame(1, request[n_sent : n_sent + n_bytes]))
        n_sent, window = n_sent + n_bytes, window - n_bytes
    client.send(DataFrame(1, b"", flags=["END_STREAM"]))
    headers = client.read_until(lambda f: isinstance(f, HeadersFrame))

    assert headers[-1].stream_id == 1


def test_padding_does_not_use_the_window_up(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)
    client.send(client.head(1, STREAM))
    padding = DataFrame(1, b"", flags=["PADDED"], pad_length=255).serialize()

    # Two windows of it.
    for _ in range(4):
        client.socket.sendall(padding * (1 << 13))
        client.read_until(lambda frame: isinstance(frame, WindowUpdateFrame) and frame.stream_id)
    client.send(data(1, message("echo", 1), "END_STREAM"))
    headers, received = client.answer_to(1)

    assert headers["grpc-status"] == "0"
    assert received


def test_a_library_that_checks_each_rule_is_content(ports: Ports) -> None:
    config = h2.config.H2Configuration(client_side=True)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    head = [
        *((":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", INFER)),
        *(("te", "trailers"), ("content-type", "application/grpc")),
    ]
    received: dict[int, bytes] = {}
    requests = {1: message("echo", 10), 3: message("echo", 60_000), 5: message("echo", 200_000)}
    unsent = dict(requests)
    for stream_id in requests:
        connection.send_headers(stream_id, head)

    with socket.create_connection(("127.0.0.1", ports.grpc), timeout=WAIT_S) as client:
        ended: set[int] = set()
        while len(ended) < len(requests):
            for stream_id, data in list(unsent.items()):
                n_bytes = min(
                    len(data),
                    connection.local_flow_control_window(stream_id),
                    connection.max_outbound_frame_size,
                )
                is_last = n_bytes == len(data)
                connection.send_data(stream_id, data[:n_bytes], end_stream=is_last)
                unsent[stream_id] = data[n_bytes:]
                if is_last:
                    del unsent[stream_id]
            client.sendall(connection.data_to_send())
            for event in connection.receive_data(client.recv(1 << 16)):
                if isinstance(event, h2.events.DataReceived):
                    received[event.stream_id] = received.get(event.stream_id, b"") + event.data
                    connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)

    lengths = {stream_id: len(raw_output(data)) for stream_id, data in received.items()}
    assert lengths == {1: 10, 3: 60_000, 5: 200_000}


# What breaks them.


def raw(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big")
    return head + payload


PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 1, 3, 5, 6
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        pytest.param(raw(0, 0, 0, b"a"), PROTOCOL_ERROR, id="DATA of the connection"),
        pytest.param(raw(0, 0, 9, b"a"), PROTOCOL_ERROR, id="DATA of no stream"),
        pytest.param(raw(0, 8, 1, b"\x05abc"), PROTOCOL_ERROR, id="DATA of padding alone"),
        pytest.param(raw(1, 4, 2, b"\x82"), PROTOCOL_ERROR, id="HEADERS of an even stream"),
        pytest.param(raw(1, 4, 0, b"\x82"), PROTOCOL_ERROR, id="HEADERS of the connection"),
        pytest.param(raw(1, 12, 1, b"\x05abc"), PROTOCOL_ERROR, id="HEADERS of padding alone"),
        pytest.param(raw(1, 4, 1, b"\xff\xff"), COMPRESSION_ERROR, id="HEADERS of nonsense"),
        pytest.param(
            raw(1, 0, 1, b"") + raw(6, 0, 0, b"12345678"), PROTOCOL_ERROR, id="amid headers"
        ),
        pytest.param(
            raw(1, 0, 1, b"") + raw(9, 4, 3, b""), PROTOCOL_ERROR, id="CONTINUATION of another"
        ),
        pytest.param(raw(9, 4, 1, b""), PROTOCOL_ERROR, id="CONTINUATION of nothing"),
        pytest.param(
            raw(1, 0, 1, b"") + raw(9, 0, 1, b"") * 9000, ENHANCE_YOUR_CALM, id="CONTINUATION, on"
        ),
        pytest.param(
            raw(1, 0, 1, b"a") + raw(9, 0, 1, b"a" * 16_000) * 5, ENHANCE_YOUR_CALM, id="too large"
        ),
        pytest.param(raw(1, 4, 1, b"a" * 70_000), ENHANCE_YOUR_CALM, id="HEADERS too large"),
        pytest.param(raw(3, 0, 9, b"1234"), PROTOCOL_ERROR, id="RST_STREAM of no stream"),
        pytest.param(raw(3, 0, 0, b"1234"), PROTOCOL_ERROR, id="RST_STREAM of the connection"),
        pytest.param(raw(3, 0, 1, b"123"), FRAME_SIZE_ERROR, id="RST_STREAM of three bytes"),
        pytest.param(raw(4, 0, 1, b""), PROTOCOL_ERROR, id="SETTINGS of a stream"),
        pytest.param(raw(4, 0, 0, b"12345"), FRAME_SIZE_ERROR, id="SETTINGS of five bytes"),
        pytest.param(raw(4, 0, 0, b"\0\4\0\0\0\1" * 33), ENHANCE_YOUR_CALM, id="SETTINGS of many"),
        pytest.param(raw(4, 1, 0, b"123456"), FRAME_SIZE_ERROR, id="SETTINGS acknowledge some"),
        pytest.param(
            raw(4, 0, 0, b"\0\x04\x80\0\0\0"), FLOW_CONTROL_ERROR, id="SETTINGS, window too large"
        ),
        pytest.param(raw(4, 0, 0, b"\0\x05\0\0\0\1"), PROTOCOL_ERROR, id="SETTINGS, tiny frames"),
        pytest.param(raw(4, 0, 0, b"\0\x02\0\0\0\2"), PROTOCOL_ERROR, id="SETTINGS, odd push"),
        pytest.param(raw(5, 4, 1, b"\0\0\0\2"), PROTOCOL_ERROR, id="PUSH_PROMISE"),
        pytest.param(raw(6, 0, 0, b"1234567"), FRAME_SIZE_ERROR, id="PING of seven bytes"),
        pytest.param(raw(6, 0, 1, b"12345678"), PROTOCOL_ERROR, id="PING of a stream"),
        pytest.param(raw(6, 0, 0, b"12345678") * 4, ENHANCE_YOUR_CALM, id="many PINGs"),
        pytest.param(raw(7, 0, 1, b"12345678"), PROTOCOL_ERROR, id="GOAWAY of a stream"),
        pytest.param(raw(8, 0, 0, b"\0\0\0\0"), FLOW_CONTROL_ERROR, id="WINDOW_UPDATE of nothing"),
        pytest.param(
            raw(8, 0, 0, b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR, id="WINDOW_UPDATE too large"
        ),
        pytest.param(raw(8, 0, 9, b"\0\0\0\1"), PROTOCOL_ERROR, id="WINDOW_UPDATE of no stream"),
        pytest.param(raw(8, 0, 0, b"\0\1"), FRAME_SIZE_ERROR, id="WINDOW_UPDATE of two bytes"),
        pytest.param(b"\x7f\xff\xff\0\0\0\0\0\1", FRAME_SIZE_ERROR, id="a frame too large"),
    ],
)
def test_who_breaks_the_rules_is_told_and_closed(
    ports: Ports, connect: Connect, wire: bytes, code: int
) -> None:
    client, other = connect(ports.grpc), connect(ports.grpc)

    client.socket.sendall(wire)

    assert client.end()[0] == code
    assert is_live(other)


def test_a_reason_that_quotes_what_came_fits_into_a_frame(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)

    # A number without an end, of 60,000 bytes.
    client.socket.sendall(raw(1, 4, 1, b"\0\x7f" + b"\xff" * 60_000))
    code, text = client.end()

    assert code == COMPRESSION_ERROR
    assert len(text) <= 200


def test_nonsense_does_no_harm_to_others(
    ports: Ports, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    other, rng = connect(ports.grpc), random.Random(9113)
    for _ in range(150):
        client = connect(ports.grpc)
        begun = [
            client.head(1, STREAM),
            DataFrame(1, message("echo", 9000) * 2, flags=["PADDED"], pad_length=200),
            SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1000}),
            HeadersFrame(3, client.head(3, INFER).data, flags=["END_HEADERS"]),
            DataFrame(3, message("echo", 9000), flags=["END_STREAM"]),
            WindowUpdateFrame(3, window_increment=5000),
            RstStreamFrame(1, error_code=8),
        ]
        wire = bytearray(b"".join(frame.serialize() for frame in begun))
        for _ in range(rng.randrange(1, 4)):
            wire[rng.randrange(len(wire))] ^= 1 << rng.randrange(8)
        # Cut short, and in two pieces at least.
        end = rng.choice([len(wire), rng.randrange(len(wire))])
        cut = rng.randrange(end + 1)
        with contextlib.suppress(ConnectionError):
            client.socket.sendall(wire[:cut])
            client.socket.sendall(wire[cut:end])
            client.socket.shutdown(socket.SHUT_WR)
        client.read_all()

    assert is_live(other)
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_a_window_that_settings_make_too_large_ends_the_connection(
    connect: Connect,
) -> None:
    gated = Gated("gated")
    with serving_ports([gated]) as ports, connect(ports.grpc) as client:
        client.send(client.head(1, INFER), DataFrame(1, message("gated", 1), flags=["END_STREAM"]))
        assert gated.entered.wait(WAIT_S)
        client.send(WindowUpdateFrame(1, window_increment=(1 << 31) - 1 - 65_535))

        client.send(SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65_536}))
        end = client.end()
        gated.release.set()

    assert end == (FLOW_CONTROL_ERROR, "a window too large")


@pytest.mark.parametrize(
    ("begin", "text"),
    [
        pytest.param(b"\0" * 24, "expected the preface of HTTP/2", id="nonsense"),
        pytest.param(b"PRI * HTTP/2.1\r\n", "expected the preface of HTTP/2", id="almost"),
        pytest.param(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + raw(6, 0, 0, b"12345678"),
            "expected SETTINGS first",
            id="no SETTINGS",
        ),
    ],
)
def test_who_does_not_speak_http2_is_closed(
    ports: Ports, connect: Connect, begin: bytes, text: str
) -> None:
    client = connect(ports.grpc, says_hello=False)

    client.socket.sendall(begin)

    assert client.end() == (PROTOCOL_ERROR, text)


def test_who_speaks_http1_reads_which_port_this_is(ports: Ports) -> None:
    with socket.create_connection(("127.0.0.1", ports.grpc), timeout=WAIT_S) as client:
        client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while data := client.recv(1 << 16):
            answer += data

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 505 ")
    assert b"content-length: %d" % len(body) in head
    assert body == b'{"error": "this port serves gRPC, over HTTP/2 only; REST is on another one"}'


def data(stream_id: int, payload: bytes = b"", *flags: str) -> DataFrame:
    return DataFrame(stream_id, payload, flags=list(flags))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(
            lambda client: [HeadersFrame(1, client.encoder.encode([]), flags=["END_HEADERS"])],
            PROTOCOL_ERROR,
            id="no path",
        ),
        pytest.param(
            lambda client: [client.head(1, LIVE, ("Name", "x"))], PROTOCOL_ERROR, id="upper case"
        ),
        pytest.param(
            lambda client: [client.head(1, STREAM), client.head(1, STREAM)],
            PROTOCOL_ERROR,
            id="trailers that do not end it",
        ),
        pytest.param(
            lambda client: [client.head(1, STREAM), WindowUpdateFrame(1, window_increment=0)],
            PROTOCOL_ERROR,
            id="WINDOW_UPDATE of nothing",
        ),
        pytest.param(
            lambda client: [
                client.head(1, STREAM),
                WindowUpdateFrame(1, window_increment=(1 << 31) - 1),
            ],
            FLOW_CONTROL_ERROR,
            id="WINDOW_UPDATE too large",
        ),
    ],
)
def test_a_stream_that_breaks_the_rules_ends_alone(
    ports: Ports, connect: Connect, make: Callable[[Any], list[Frame]], code: int
) -> None:
    client = connect(ports.grpc)

    client.send(*make(client))

    assert client.answer_to(1)[0] == {"reset": str(code)}
    assert is_live(client, 3)


def test_data_after_the_end_of_a_request_ends_the_stream(connect: Connect) -> None:
    gated = Gated("gated")
    with serving_ports([gated]) as ports, connect(ports.grpc) as client:
        client.send(client.head(1, INFER), data(1, message("gated", 1), "END_STREAM"))
        assert gated.entered.wait(WAIT_S)

        client.send(data(1, b"more"))
        answer, _ = client.answer_to(1)
        gated.release.set()

        assert answer == {"reset": str(STREAM_CLOSED)}
        assert is_live(client, 3)


def test_data_beyond_the_window_ends_the_stream(connect: Connect) -> None:
    gated = Gated("gated")
    with serving_ports([gated]) as ports, connect(ports.grpc) as client:
        # The handler of the stream is busy with the first message; nothing more is asked for.
        client.send(client.head(1, STREAM), data(1, message("gated", 1)))
        assert gated.entered.wait(WAIT_S)
        many = message("gated", 60_000)
        client.send(*(data(1, many) for _ in range(70)))
        answer, _ = client.answer_to(1)
        gated.release.set()

        assert answer["reset"] == str(FLOW_CONTROL_ERROR)
        assert is_live(client, 3)


def test_streams_beyond_the_limit_are_refused(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MIN_STREAMS", 1)
    gated = Gated("gated")
    with serving_ports([gated], max_inflight_requests=1) as ports, connect(ports.grpc) as client:
        for stream_id in (1, 3):
            client.send(client.head(stream_id, STREAM))
        settings = client.read()
        client.send(*live(client, 5))
        refused, _ = client.answer_to(5)
        client.send(RstStreamFrame(1, error_code=8))

        assert settings.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == 2
        assert refused == {"reset": "7"}
        assert is_live(client, 7)


# Times.


def test_who_does_not_begin_is_closed(connect: Connect) -> None:
    with (
        serving_ports([Echo("echo")], header_timeout_s=0.2) as ports,
        connect(ports.grpc, says_hello=False) as client,
    ):
        client.socket.sendall(b"PRI * HT")

        assert client.end() == (ENHANCE_YOUR_CALM, "a frame does not end")


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"\0\0\x08\x06\0", id="a frame"),
        pytest.param(raw(1, 0, 1, b"\x82"), id="a block of headers"),
    ],
)
def test_a_frame_that_does_not_end_closes_the_connection(connect: Connect, begun: bytes) -> None:
    with serving_ports([Echo("echo")], body_timeout_s=0.2) as ports, connect(ports.grpc) as client:
        client.socket.sendall(begun)

        assert client.end() == (ENHANCE_YOUR_CALM, "a frame does not end")


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param([], id="no message"),
        pytest.param([data(1, b"\0\0")], id="a part of a prefix"),
        pytest.param([data(1, b"\0\0\0\0\x09abc")], id="a part of a message"),
        pytest.param([data(1, b"\0\0\x09\0\0" + b"a" * 60_000)], id="a part of a large one"),
    ],
)
def test_a_message_that_does_not_come_on_ends_its_call(connect: Connect, begun: Any) -> None:
    with serving_ports([Echo("echo")], body_timeout_s=0.2) as ports, connect(ports.grpc) as client:
        client.send(client.head(1, INFER), *begun)

        headers, _ = client.answer_to(1)

        assert headers["grpc-status"] == "4"
        assert headers["grpc-message"] == "the message did not come on in time"
        assert is_live(client, 3)


def test_a_stream_may_rest_between_two_messages(connect: Connect) -> None:
    with serving_ports([Echo("echo")], body_timeout_s=0.2) as ports, connect(ports.grpc) as client:
        client.send(client.head(1, STREAM), data(1, message("echo", 1)))
        client.read_until(lambda frame: isinstance(frame, DataFrame))
        # Another stream stalls, and is ended, meanwhile.
        client.send(client.head(3, STREAM), data(3, b"\0"))
        stalled, _ = client.answer_to(3)

        client.send(data(1, b"", "END_STREAM"))

        assert stalled["grpc-status"] == "4"
        assert client.answer_to(1)[0]["grpc-status"] == "0"


def test_an_answer_that_the_client_does_not_take_is_given_up(connect: Connect) -> None:
    settings = {SettingsFrame.INITIAL_WINDOW_SIZE: 10}
    with (
        serving_ports([Echo("echo")], send_timeout_s=0.2) as ports,
        connect(ports.grpc, settings) as client,
    ):
        client.send(client.head(1, INFER), data(1, message("echo", 1000), "END_STREAM"))

        headers, received = client.answer_to(1)

    assert headers["reset"] == "8"
    assert len(received) == 10


def test_a_silent_client_is_pinged_and_closed_unless_it_answers(connect: Connect) -> None:
    times: Any = {"grpc_keepalive_time_s": 1, "grpc_keepalive_timeout_s": 1}
    with serving_ports([Echo("echo")], **times) as ports, connect(ports.grpc) as client:
        for _ in range(2):
            (ping,) = client.read_until(lambda frame: isinstance(frame, PingFrame))[-1:]
            client.send(PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]))
        frames = client.read_all()

    assert [type(frame) for frame in frames] == [PingFrame]


def test_nothing_is_sent_after_the_end(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    # A ping is due at the moment at which the client has not begun.
    times: Any = {"header_timeout_s": 1, "grpc_keepalive_time_s": 1}
    with (
        serving_ports([Echo("echo")], **times) as ports,
        connect(ports.grpc, says_hello=False) as client,
    ):
        end = client.end()

    assert end == (ENHANCE_YOUR_CALM, "a frame does not end")
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_pings_are_in_order_after_an_answer(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc)

    for stream_id in range(1, 21, 2):
        assert is_live(client, stream_id)
        client.sync()


def test_pings_are_in_order_while_a_large_answer_comes(ports: Ports, connect: Connect) -> None:
    client = connect(ports.grpc, {SettingsFrame.INITIAL_WINDOW_SIZE: 1000})
    client.send(client.head(1, INFER), data(1, message("echo", 10_000), "END_STREAM"))

    # As clients in Go do, once for each way there and back, to learn how large a window they need.
    for _ in range(8):
        client.read_until(lambda frame: isinstance(frame, DataFrame))
        client.sync()
        client.send(WindowUpdateFrame(1, window_increment=1000))

    assert is_live(client, 3)


# The end.


def test_what_comes_before_the_client_knows_of_the_end_is_answered(connect: Connect) -> None:
    gated, server = Gated("gated"), ModelServer()
    with serving_ports([gated], server) as ports, connect(ports.grpc) as client:
        client.send(client.head(1, INFER), data(1, message("gated", 1), "END_STREAM"))
        assert gated.entered.wait(WAIT_S)
        server.stop()
        frames = client.read_until(lambda frame: isinstance(frame, PingFrame))
        first = [frame for frame in frames if isinstance(frame, GoAwayFrame)]
        late = is_live(client, 3)
        client.send(PingFrame(opaque_data=frames[-1].opaque_data, flags=["ACK"]))
        (second,) = client.read_until(lambda frame: isinstance(frame, GoAwayFrame))[-1:]
        # Not looked at, as the client can know.
        client.send(*live(client, 5))
        gated.release.set()
        rest = client.read_all()

    assert [(frame.last_stream_id, frame.error_code) for frame in first] == [((1 << 31) - 1, 0)]
    assert late
    assert (second.last_stream_id, second.error_code) == (3, 0)
    assert {frame.stream_id for frame in rest} == {1}
    assert "END_STREAM" in rest[-1].flags


def test_an_idle_connection_ends_with_the_server(connect: Connect) -> None:
    server = ModelServer()
    with serving_ports([Echo("echo")], server) as ports, connect(ports.grpc) as client:
        client.sync()
        server.stop()
        (ping,) = client.read_until(lambda frame: isinstance(frame, PingFrame))[-1:]
        client.send(PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]))
        rest = client.read_all()

    assert [type(frame) for frame in rest] == [GoAwayFrame]
