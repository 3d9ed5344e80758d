"""One connection: frames come in, streams open and end, rules are kept."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar, cast

from kserve.protocol.http2 import frames
from kserve.protocol.http2.frames import (
    DEFAULT_WINDOW_BYTES,
    MAX_31_BIT,
    ConnectionViolation,
    ErrorCode,
    Setting,
    StreamViolation,
    Violation,
    encode_frame,
)
from kserve.protocol.http2.header_blocks import MAX_HEADER_LIST_BYTES, HeaderBlocks, RequestHead
from kserve.protocol.http2.sender import Sender
from kserve.protocol.http2.stream import STREAM_WINDOW_BYTES, Stream
from kserve.protocol.sending import SendWatch

# One frame may hold up those of other streams for as long as it takes to come. The smallest that is
# allowed, 16 KiB, would make 25 of a message of 400 KB.
_MAX_DATA_FRAME_BYTES: Final = 1 << 20

# Compressed headers are smaller than they become.
_MAX_BLOCK_BYTES: Final = MAX_HEADER_LIST_BYTES

# Of data, streams limit what comes; the connection's own window is as good as none.
_CONNECTION_WINDOW_BYTES: Final = MAX_31_BIT

# Data of this size or more goes where it is kept without a stop on its way.
_MIN_DIRECT_BYTES: Final = 4 << 10

# "A PING frame [...] 8 octets of opaque data"
_LAST_CALL: Final = b"lastcall"
_ARE_YOU_THERE: Final = b"areyouon"

# How long a client may take to say that it has seen that the server ends: any way there and back.
_LAST_CALL_S: Final = 5.0

# How long a client may take to close a connection that is over, once it has taken all; until then
# it has to take some of it in as long as for the last call.
_CLOSING_S: Final = 1.0

# Pings before the time that are forgiven, as gRPC's own servers do.
# Source: https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md
_MAX_PING_STRIKES: Final = 2

_WRONG_PROTOCOL: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\n"
    b"content-type: application/json\r\nconnection: close\r\ncontent-length: 76\r\n\r\n"
    b'{"error": "this port serves gRPC, over HTTP/2 only; REST is on another one"}'
)
_METHODS_OF_HTTP1: Final = (b"GET ", b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN")

Head = TypeVar("Head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long clients may take, and how much they may ask for.

    Attributes:
        max_streams: Requests of one connection at the same time.
        header_timeout_s: Seconds until a new connection has begun.
        body_timeout_s: Seconds for which what has been begun may not come on.
        send_timeout_s: Seconds for which a client may take nothing of a response.
        ping_after_s: Seconds of silence after which a client is pinged.
        ping_timeout_s: Seconds that it has to answer.
        min_ping_interval_s: Seconds between the pings of a client that gets nothing else.
    """

    max_streams: int
    header_timeout_s: float
    body_timeout_s: float
    send_timeout_s: float
    ping_after_s: float
    ping_timeout_s: float
    min_ping_interval_s: float


class Host(Protocol[Head]):
    """What all connections of a server share.

    Attributes:
        limits: The limits.
        connections: The open connections.
        scratch: Where data is read to; nothing is kept there between two reads.
        is_ending: Whether the server takes no more requests.
    """

    limits: Limits
    connections: "set[Connection[Head]]"
    scratch: memoryview
    is_ending: bool

    def make_head(self, head: RequestHead) -> Head:
        """Give what is kept of the head of a request."""

    def make_stream(self, connection: "Connection[Head]", stream_id: int) -> Stream:
        """Give the stream of a new request."""

    def lost(self, connection: "Connection[Head]") -> None:
        """Take note that a connection has ended."""


class _Phase(Enum):
    OPEN = 0
    # The client was told that the server ends, and may not know it yet.
    LAST_CALL = 1
    # What comes now was not looked at, and the client knows it.
    FINISHING = 2
    # Whatever still comes is thrown away.
    OVER = 3


class Connection(asyncio.BufferedProtocol, Generic[Head]):
    """One connection of a server.

    Args:
        host: What all connections share.
    """

    def __init__(self, host: Host[Head]) -> None:
        # The server's.
        self._host = host
        self._limits = host.limits
        self._loop = asyncio.get_running_loop()

        # The connection's.
        self._phase: _Phase = _Phase.OPEN
        self._transport: asyncio.Transport
        self.sender: Sender
        self.streams: dict[int, Stream] = {}
        self._headers = HeaderBlocks(host.make_head)
        self._last_id = 0
        self._has_greeted = self._has_preface = self._has_settings = False

        # Of what comes: the beginning of a frame; of a DATA frame what is still to come, of which
        # stream; and the block of headers that CONTINUATION frames make.
        self._rest = b""
        self._stream: Stream | None = None
        self._n_left = self._n_padding = 0
        self._ends_stream = False
        self._place: memoryview | None = None
        self._block: bytearray | None = None
        self._block_id = self._block_flags = self._n_block_bytes = 0
        self._n_taken = 0

        # Times.
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = math.inf
        self._read_at = self._began_at = self._loop.time()
        self._pinged_at = math.inf
        self._ends_at = math.inf
        self._n_unsent = 0
        self._sent_at = math.inf
        self._last_ping_at = -math.inf
        self._n_strikes = 0

    # The transport calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's own is no subclass.
        self._transport = cast(asyncio.Transport, transport)
        self.sender = Sender(self._transport, self._watch_sending, self.has_sent)
        self._send_watch = SendWatch(
            self._transport, self._limits.send_timeout_s, lambda: self.sender.is_paused
        )
        self._host.connections.add(self)
        self._check_at(self._began_at + self._limits.header_timeout_s)
        self._check_at(self._began_at + self._limits.ping_after_s)
        if self._host.is_ending:
            self.shutdown()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Give where the next data goes."""
        return self._host.scratch if self._place is None else self._place

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        self._read_at = self._loop.time()
        try:
            if self._place is not None:
                self._take_placed(nbytes)
            else:
                self._take(self._host.scratch[:nbytes])
        except ConnectionViolation as violation:
            self._fail(violation)
        self._place = self._find_place()

    def eof_received(self) -> None:
        """Close: a client that sends no more reads no more, either."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and with it the work for the client."""
        self._phase = _Phase.OVER
        if self._timer is not None:
            self._timer.cancel()
        self._send_watch.cancel()
        self._drop_streams()
        self._host.connections.discard(self)
        self._host.lost(self)

    def pause_writing(self) -> None:
        """Send no more, and take no more requests, until the socket takes more."""
        self.sender.is_paused = True
        self._transport.pause_reading()
        self._send_watch.begin()

    def resume_writing(self) -> None:
        """Go on."""
        self.sender.is_paused = False
        self._send_watch.cancel()
        self._transport.resume_reading()
        self._read_at = self._loop.time()
        self._check_at(self._read_at + self._limits.ping_after_s)
        for stream in self.sender.waiting.values():
            stream.moved_at = self._read_at
        self._watch_sending()
        self.sender.pump()

    # The server and the streams call these.

    @property
    def is_over(self) -> bool:
        """Whether nothing is read any more."""
        return self._phase is _Phase.OVER

    def shutdown(self) -> None:
        """Tell the client that the server ends, finish what is in flight, close.

        "A server that is attempting to gracefully shut down a connection SHOULD send an initial
        GOAWAY frame with the last stream identifier set to 2^31-1 and a NO_ERROR code. [...] After
        allowing time for any in-flight stream creation (at least one round-trip time), the server
        MAY send another GOAWAY frame with an updated last stream identifier." The answer to a ping
        says that the time has passed. Source: RFC 9113, 6.8.
        """
        if self._phase is not _Phase.OPEN:
            return
        self._phase = _Phase.LAST_CALL
        self._greet()
        self.sender.write(
            frames.encode_goaway(MAX_31_BIT, ErrorCode.NO_ERROR, "the server is shutting down")
            + encode_frame(frames.PING, 0, 0, _LAST_CALL)
        )
        self._ends_at = self._loop.time() + _LAST_CALL_S
        self._check_at(self._ends_at)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def has_sent(self) -> None:
        """Take note that something was sent on a stream: pings are in order after that."""
        self._n_strikes = 0
        self._last_ping_at = -math.inf

    def forget(self, stream: Stream) -> None:
        """Take note that a stream is over."""
        self.streams.pop(stream.id, None)
        self.sender.forget(stream)
        if stream is self._stream:
            # What still comes of the frame is thrown away; memory must not wait for it.
            self._stream = self._place = None
        if self._phase is _Phase.FINISHING and not self.streams:
            self._close()

    # What comes in.

    def _greet(self) -> None:
        """Say what goes here, before anything else; but not to those who speak HTTP/1."""
        if self._has_greeted:
            return
        self._has_greeted = True
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: self._limits.max_streams,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            Setting.MAX_FRAME_SIZE: _MAX_DATA_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
        }
        more = frames.encode_window_update(0, _CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        self.sender.write(frames.encode_settings(settings) + more)

    def _take(self, data: memoryview) -> None:
        if self.is_over:
            return
        if self._rest:
            data = memoryview(self._rest + data)
            self._rest = b""
        end = len(data)
        position = 0 if self._has_preface else self._take_preface(data)
        while not self.is_over:
            if self._n_left or self._n_padding:
                position = self._take_data(data, position)
            before, position = position, self._take_frame(data, position)
            if position == before:
                break
        self._rest = bytes(data[position:end])
        if self._rest or self._block is not None:
            self._check_at(self._read_at + self._limits.body_timeout_s)

    def _take_preface(self, data: memoryview) -> int:
        begin = bytes(data[: len(frames.PREFACE)])
        if begin == frames.PREFACE:
            self._has_preface = True
            self._greet()
            return len(begin)
        if begin[:4] in _METHODS_OF_HTTP1:
            self.sender.write(_WRONG_PROTOCOL)
            self._close()
        elif not frames.PREFACE.startswith(begin):
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "expected the preface of HTTP/2")
        return 0

    def _take_frame(self, data: memoryview, start: int) -> int:
        """Take one frame, of a DATA frame the head; gives where the next one begins."""
        if len(data) - start < frames.HEAD_BYTES or not self._has_preface:
            return start
        length, kind, flags, stream_id = frames.decode_head(data, start)
        begin = start + frames.HEAD_BYTES
        if kind == frames.DATA:
            return self._take_head_of_data(data, begin, length, flags, stream_id)
        self._check_order(kind, stream_id, length)
        take = self._TAKE.get(kind)
        if take is None:
            # "Implementations MUST discard frames that have unknown or unsupported types."
            self._stream, self._n_left, self._n_padding = None, 0, length
            self._ends_stream = False
            return begin
        if length > _MAX_BLOCK_BYTES:
            raise ConnectionViolation(
                ErrorCode.ENHANCE_YOUR_CALM, f"a frame of headers of {length} bytes"
            )
        if length > len(data) - begin:
            return start
        take(self, flags, stream_id, bytes(data[begin : begin + length]))
        return begin + length

    def _check_order(self, kind: int, stream_id: int, length: int) -> None:
        if length > _MAX_DATA_FRAME_BYTES:
            raise ConnectionViolation(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        if not self._has_settings and kind != frames.SETTINGS:
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "expected SETTINGS first")
        if self._block is not None and (kind, stream_id) != (frames.CONTINUATION, self._block_id):
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "expected CONTINUATION")

    def _take_head_of_data(
        self, data: memoryview, begin: int, length: int, flags: int, stream_id: int
    ) -> int:
        self._check_order(frames.DATA, stream_id, length)
        if stream_id == 0 or stream_id > self._last_id:
            if self._phase is not _Phase.FINISHING or stream_id == 0:
                raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "DATA of no stream")
        n_padding = 0
        if flags & frames.PADDED:
            if begin == len(data):
                # The length of the padding has not come yet.
                return begin - frames.HEAD_BYTES
            n_padding = data[begin]
            if n_padding >= length:
                raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
        n_before = 1 if flags & frames.PADDED else 0
        self._n_left, self._n_padding = length - n_padding - n_before, n_padding
        self._ends_stream = bool(flags & frames.END_STREAM)
        self._allow(length)
        self._stream = self._receiving(stream_id, length)
        if self._stream is not None and flags & frames.PADDED:
            # It takes of the window as data does, and nobody waits for it.
            self._stream.allow(n_before + n_padding)
        if not self._n_left and not n_padding:
            self._end_data()
        return begin + n_before

    def _receiving(self, stream_id: int, length: int) -> Stream | None:
        """Give the stream that takes the data; None if it is over: its client may not know yet."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return None
        if not stream.is_receiving:
            stream.fail(ErrorCode.STREAM_CLOSED)
            return None
        if not stream.count_in(length):
            stream.fail(ErrorCode.FLOW_CONTROL_ERROR)
            return None
        return stream

    def _allow(self, n_bytes: int) -> None:
        self._n_taken += n_bytes
        if self._n_taken >= _CONNECTION_WINDOW_BYTES // 2:
            self.sender.write(frames.encode_window_update(0, self._n_taken))
            self._n_taken = 0

    def _take_data(self, data: memoryview, position: int) -> int:
        n_bytes = min(self._n_left, len(data) - position)
        if n_bytes:
            self._n_left -= n_bytes
            stream = self._stream
            if stream is not None and stream.is_receiving:
                stream.moved_at = self._read_at
                stream.receive(data[position : position + n_bytes])
            position += n_bytes
        if not self._n_left:
            n_padding = min(self._n_padding, len(data) - position)
            self._n_padding -= n_padding
            position += n_padding
            if not self._n_padding:
                self._end_data()
        return position

    def _take_placed(self, n_bytes: int) -> None:
        stream = self._stream
        assert stream is not None
        self._n_left -= n_bytes
        stream.moved_at = self._read_at
        stream.placed(n_bytes)
        if not self._n_left and not self._n_padding:
            self._end_data()

    def _find_place(self) -> memoryview | None:
        """Give where the stream keeps what comes next, if that is much."""
        stream = self._stream
        if stream is None or not stream.is_receiving:
            return None
        if stream.is_amid_message:
            self._check_at(self._read_at + self._limits.body_timeout_s)
        if self._n_left < _MIN_DIRECT_BYTES:
            return None
        place = stream.place()
        return None if place is None else place[: self._n_left]

    def _end_data(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None or not stream.is_receiving:
            return
        if self._ends_stream:
            self._end_request(stream)
        elif stream.is_amid_message:
            self._check_at(self._read_at + self._limits.body_timeout_s)

    def _end_request(self, stream: Stream) -> None:
        stream.is_receiving = stream.is_amid_message = False
        stream.end_request()

    def _take_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id % 2 == 0:
            raise ConnectionViolation(
                ErrorCode.PROTOCOL_ERROR, f"HEADERS of stream {stream_id}, expected an odd one"
            )
        block = frames.unpad(payload, flags)
        if flags & frames.END_HEADERS:
            self._take_block(flags, stream_id, block)
        else:
            self._block, self._block_id, self._block_flags = bytearray(block), stream_id, flags
            self._n_block_bytes = len(payload)

    def _take_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of no headers")
        # The head counts, so that frames without a payload come to an end, too.
        self._n_block_bytes += frames.HEAD_BYTES + len(payload)
        self._block += payload
        if self._n_block_bytes > _MAX_BLOCK_BYTES:
            raise ConnectionViolation(ErrorCode.ENHANCE_YOUR_CALM, "a block of headers too large")
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._take_block(self._block_flags, stream_id, block)

    def _take_block(self, flags: int, stream_id: int, block: bytes) -> None:
        is_end = bool(flags & frames.END_STREAM)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._take_trailers(stream, block, is_end)
        elif stream_id <= self._last_id or self._phase is _Phase.FINISHING:
            # Over, or never begun. The block must be read all the same: later ones build on it.
            self._headers.decode(block)
        else:
            self._last_id = stream_id
            try:
                self._open(stream_id, self._headers.read(block), is_end)
            except StreamViolation as violation:
                self.sender.write(frames.encode_reset(stream_id, violation.code))

    def _open(self, stream_id: int, head: Head, is_end: bool) -> None:
        if len(self.streams) >= self._limits.max_streams:
            raise StreamViolation(ErrorCode.REFUSED_STREAM, "too many streams")
        stream = self._host.make_stream(self, stream_id)
        self.streams[stream_id] = stream
        stream.moved_at = self._read_at
        stream.begin(head)
        if is_end and stream.is_receiving:
            self._end_request(stream)
        elif stream.is_amid_message:
            self._check_at(self._read_at + self._limits.body_timeout_s)

    def _take_trailers(self, stream: Stream, block: bytes, is_end: bool) -> None:
        self._headers.decode(block)
        if not is_end or not stream.is_receiving:
            stream.fail(
                ErrorCode.PROTOCOL_ERROR if stream.is_receiving else ErrorCode.STREAM_CLOSED
            )
        else:
            self._end_request(stream)

    def _take_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Do nothing: priorities are deprecated, and no stream of ours waits for another."""

    def _take_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        frames.decode_number(payload, "RST_STREAM")
        self._check_known(stream_id, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.lose()
            stream.close()

    def _take_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id != 0:
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionViolation(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS that acknowledge")
            return
        for setting, value in frames.decode_settings(payload):
            self._apply(setting, value)
        self._has_settings = True
        self.sender.write(encode_frame(frames.SETTINGS, frames.ACK, 0))
        self.sender.unblock_all()

    def _apply(self, setting: int, value: int) -> None:
        if setting == Setting.INITIAL_WINDOW_SIZE:
            if value > MAX_31_BIT:
                raise ConnectionViolation(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {value}")
            change = value - self.sender.initial_window
            self.sender.initial_window = value
            for stream in self.streams.values():
                stream.send_window += change
                if stream.send_window > MAX_31_BIT:
                    raise ConnectionViolation(ErrorCode.FLOW_CONTROL_ERROR, "a window too large")
        elif setting == Setting.MAX_FRAME_SIZE:
            if not frames.MIN_FRAME_BYTES <= value <= frames.MAX_FRAME_BYTES:
                raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, f"frames of {value} bytes")
            self.sender.max_frame_bytes = min(value, _MAX_DATA_FRAME_BYTES)
        elif setting == Setting.ENABLE_PUSH and value not in (0, 1):
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")

    def _take_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE of a client")

    def _take_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id != 0:
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != 8:
            raise ConnectionViolation(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        if not flags & frames.ACK:
            self._count_ping()
            self.sender.write(encode_frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _LAST_CALL and self._phase is _Phase.LAST_CALL:
            self._finish()

    def _count_ping(self) -> None:
        if self._read_at < self._last_ping_at + self._limits.min_ping_interval_s:
            self._n_strikes += 1
        self._last_ping_at = self._read_at
        if self._n_strikes > _MAX_PING_STRIKES:
            # The words that clients know. Source: gRPC's proposal A8.
            raise ConnectionViolation(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def _take_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Do nothing: the client closes the connection when it has its answers."""
        if stream_id != 0:
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "GOAWAY of a stream")

    def _take_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        increment = frames.decode_number(payload, "WINDOW_UPDATE") & MAX_31_BIT
        if stream_id == 0:
            self.sender.window += increment
            if not 0 < increment <= self.sender.window <= MAX_31_BIT:
                raise ConnectionViolation(ErrorCode.FLOW_CONTROL_ERROR, f"+ {increment} bytes")
            self.sender.pump()
            return
        self._check_known(stream_id, "WINDOW_UPDATE")
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        stream.send_window += increment
        if increment == 0 or stream.send_window > MAX_31_BIT:
            stream.fail(ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR)
        else:
            self.sender.unblock(stream)

    def _check_known(self, stream_id: int, kind: str) -> None:
        if stream_id == 0 or (stream_id > self._last_id and self._phase is not _Phase.FINISHING):
            raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, f"{kind} of no stream")

    _TAKE: ClassVar[dict[int, "Callable[[Connection[Any], int, int, bytes], None]"]] = {
        frames.HEADERS: _take_headers,
        frames.PRIORITY: _take_priority,
        frames.RST_STREAM: _take_reset,
        frames.SETTINGS: _take_settings,
        frames.PUSH_PROMISE: _take_push_promise,
        frames.PING: _take_ping,
        frames.GOAWAY: _take_goaway,
        frames.WINDOW_UPDATE: _take_window_update,
        frames.CONTINUATION: _take_continuation,
    }

    # The end.

    def _finish(self) -> None:
        """Take no more requests: the client sends those that follow elsewhere."""
        self._phase = _Phase.FINISHING
        self.sender.write(
            frames.encode_goaway(self._last_id, ErrorCode.NO_ERROR, "the server is shutting down")
        )
        self._ends_at = math.inf
        if not self.streams:
            self._close()

    def _fail(self, violation: Violation) -> None:
        """End everything: the client breaks the rules."""
        self._greet()
        self.sender.write(frames.encode_goaway(self._last_id, violation.code, violation.reason))
        self._close()
        self._drop_streams()

    def _drop_streams(self) -> None:
        for stream in list(self.streams.values()):
            stream.lose()
            stream.close()

    def _close(self) -> None:
        """Close once the client has read all: closing at once may keep it from doing so."""
        self._phase = _Phase.OVER
        self._rest, self._stream, self._block = b"", None, None
        self._n_left = self._n_padding = 0
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._sent_at = self._loop.time()
        self._ends_at = self._sent_at + _CLOSING_S
        self._check_at(self._ends_at)

    # Times.

    def _watch_sending(self) -> None:
        if self.sender.waiting:
            self._check_at(self._loop.time() + self._limits.send_timeout_s)

    def _check_at(self, when: float) -> None:
        """Look then, at the latest, whether something takes too long."""
        if when < self._due_at:
            if self._timer is not None:
                self._timer.cancel()
            self._due_at = when
            self._timer = self._loop.call_at(when, self._check)

    def _check(self) -> None:
        self._timer, self._due_at = None, math.inf
        now = self._loop.time()
        self._check_end(now)
        if not self.is_over:
            self._check_begin(now)
        # Each of them may be the end of the connection: nothing is sent after that.
        if not self.is_over:
            self._check_streams(now)
        # Nothing is read while nothing can be written: silence then says nothing.
        if not self.is_over and not self.sender.is_paused:
            self._check_peer(now)

    def _check_end(self, now: float) -> None:
        if now < self._ends_at:
            self._check_at(self._ends_at)
        elif self._phase is _Phase.LAST_CALL:
            self._finish()
        elif self._is_being_read(now):
            self._ends_at = now + _CLOSING_S
            self._check_at(self._ends_at)
        else:
            self._transport.abort()

    def _is_being_read(self, now: float) -> bool:
        """Say whether the client still takes what was sent before the end."""
        n_before, self._n_unsent = self._n_unsent, self._send_watch.count_unsent()
        if self._n_unsent < n_before:
            self._sent_at = now
            return True
        return self._n_unsent > 0 and now < self._sent_at + _LAST_CALL_S

    def _check_begin(self, now: float) -> None:
        due_at = math.inf
        if not self._has_settings:
            due_at = self._began_at + self._limits.header_timeout_s
        elif self._rest or self._block is not None:
            due_at = self._read_at + self._limits.body_timeout_s
        if now >= due_at:
            self._fail(ConnectionViolation(ErrorCode.ENHANCE_YOUR_CALM, "a frame does not end"))
        else:
            self._check_at(due_at)

    def _check_streams(self, now: float) -> None:
        for stream in list(self.streams.values()):
            if stream.is_amid_message:
                due_at = stream.moved_at + self._limits.body_timeout_s
                if now >= due_at:
                    stream.stall()
                else:
                    self._check_at(due_at)
        # While the socket takes nothing, the watch over it is what counts.
        for stream in [] if self.sender.is_paused else list(self.sender.waiting.values()):
            due_at = stream.moved_at + self._limits.send_timeout_s
            if now >= due_at:
                stream.fail(ErrorCode.CANCEL)
            else:
                self._check_at(due_at)

    def _check_peer(self, now: float) -> None:
        """Ask a silent client whether it is there."""
        if self._read_at >= self._pinged_at:
            self._pinged_at = math.inf
        if now >= self._pinged_at + self._limits.ping_timeout_s:
            self._transport.abort()
        elif self._pinged_at < math.inf:
            self._check_at(self._pinged_at + self._limits.ping_timeout_s)
        elif now >= self._read_at + self._limits.ping_after_s:
            self._pinged_at = now
            self.sender.write(encode_frame(frames.PING, 0, 0, _ARE_YOU_THERE))
            self._check_at(now + self._limits.ping_timeout_s)
        else:
            self._check_at(self._read_at + self._limits.ping_after_s)
