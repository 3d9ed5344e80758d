"""One call: messages come in, messages go out, and a status ends it.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import asyncio
import binascii
from asyncio import Future, Task, TimerHandle
from base64 import b64decode, b64encode
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import quote

import grpc

from kserve.errors import (
    DeadlineExceeded,
    InferenceServerError,
    InvalidInput,
    RequestTooLarge,
    ServerNotReady,
    TooManyRequests,
    UnsupportedEncoding,
    describe,
)
from kserve.protocol.compression import Compression
from kserve.protocol.grpc.call import details
from kserve.protocol.grpc.message_reader import PREFIX, Message, MessageReader
from kserve.protocol.http2.connection import Connection
from kserve.protocol.http2.frames import DATA, END_STREAM, encode_block, encode_frame
from kserve.protocol.http2.header_blocks import Header, RequestHead, encode_headers
from kserve.protocol.http2.stream import Stream
from kserve.protocol.inflight_bytes import InflightBytes

# Messages to and from bytes are the handlers' business.
Unary = Callable[[bytes | memoryview, "Rpc"], Awaitable[bytes]]
Streaming = Callable[[AsyncIterator[bytes | memoryview], "Rpc"], AsyncGenerator[bytes, None]]
Metadata = tuple[tuple[str, str | bytes], ...]

_CONTENT_TYPE: Final = b"application/grpc"
_HEAD: Final = encode_headers([(b":status", b"200"), (b"content-type", _CONTENT_TYPE)])
_OK: Final = encode_headers([(b"grpc-status", b"0")])
_ENCODINGS: Final = (b"gzip", b"deflate", b"identity")

# What a message takes beside its bytes: many may be empty.
_MESSAGE_BYTES: Final = 128

# They belong to the transport; handlers get what is left.
_OWN_HEADERS: Final = frozenset(
    {
        *(b"te", b"content-type", b"content-length", b"grpc-timeout", b"grpc-encoding"),
        *(b"grpc-accept-encoding", b"grpc-message-type"),
    }
)

# "Timeout → "grpc-timeout" TimeoutValue TimeoutUnit"; the value is "at most 8 digits".
_SECONDS_OF_UNIT: Final = {b"H": 3600, b"M": 60, b"S": 1, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_TIMEOUT_DIGITS: Final = 8

# "Percent-Byte-Unencoded → 1*( %x20-%x24 / %x26-%x7E )"
_UNENCODED: Final = bytes(set(range(0x20, 0x7F)) - {0x25}).decode()


@dataclass(frozen=True, slots=True)
class Method:
    """What answers the calls of one path: one of the two.

    Attributes:
        unary: From one message to one.
        streaming: From messages to messages.
    """

    unary: Unary | None = None
    streaming: Streaming | None = None


class Head(NamedTuple):
    """What the head of a request asks for.

    Attributes:
        path: Which method.
        method: That method; None if there is none.
        metadata: The caller's.
        timeout_s: Seconds that the caller waits; None for as long as it takes.
        encoding: How its messages are compressed, where they say that they are.
        failure: What is wrong with it; None if nothing is.
        http_status: The status if it is no request of gRPC; empty if it is.
    """

    path: str
    method: Method | None
    metadata: Metadata
    timeout_s: float | None
    encoding: bytes
    failure: InferenceServerError | None
    http_status: bytes


@dataclass(slots=True, kw_only=True)
class Calls:
    """What all calls of a server share.

    Attributes:
        methods: By their paths.
        max_receive_bytes: What a message of a request may have.
        max_send_bytes: What one of a response may have.
        max_calls: Calls at the same time; None is no limit.
        inflight: What the messages of all calls have.
        compression: Decompresses messages.
        tasks: Those that answer.
    """

    methods: Mapping[str, Method]
    max_receive_bytes: int
    max_send_bytes: int
    max_calls: int | None
    inflight: InflightBytes
    compression: Compression
    tasks: set[Task[None]] = field(default_factory=set)

    def make_head(self, request: RequestHead) -> Head:
        """Read the head of a request."""
        fields = dict(request.fields)
        timeout_s: float | None = None
        metadata: Metadata = ()
        failure: InvalidInput | None = None
        path = request.path.decode("latin-1")
        try:
            if b"grpc-timeout" in fields:
                timeout_s = read_timeout(fields[b"grpc-timeout"])
            metadata = _read_metadata(request.fields)
        except InvalidInput as exc:
            failure = exc
        return Head(
            path,
            self.methods.get(path),
            metadata,
            timeout_s,
            fields.get(b"grpc-encoding", b"identity"),
            failure,
            _http_status(request.method, fields.get(b"content-type", b"")),
        )


class Aborted(Exception):
    """A handler ends its call.

    Attributes:
        status: The name of the status code.
        text: The message of the status.
    """

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Rpc(Stream):
    """One call; handlers get it as their `context`, with methods of `grpc.aio.ServicerContext`.

    Args:
        connection: Where it comes from.
        stream_id: Its number there.
        calls: What all calls share.
    """

    __slots__ = (
        *("_arrived", "_calls", "_deadline_at", "_has_begun", "_head", "_is_late", "_n_held"),
        *("_n_uncounted", "_reader", "_task", "_timer", "_trailing_metadata"),
    )

    _head: Head

    def __init__(self, connection: Connection[Head], stream_id: int, calls: Calls) -> None:
        super().__init__(connection, stream_id)
        self._calls = calls
        self._task: Task[None] | None = None

        # Of the request.
        self._deadline_at: float | None = None
        self._timer: TimerHandle | None = None
        self._is_late = False
        self._reader = MessageReader()
        self._arrived: Future[None] | None = None
        self._n_held = self._n_uncounted = 0

        # Of the response.
        self._has_begun = False
        self._trailing_metadata: list[Header] = []

    # Handlers call these.

    def invocation_metadata(self) -> Metadata:
        """Give the caller's metadata."""
        return self._head.metadata

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Set what goes along with the status."""
        self._trailing_metadata = [_encode_metadatum(*item) for item in metadata]

    def time_remaining(self) -> float | None:
        """Give the seconds until the caller waits no longer, 0 or more; None if it always does."""
        if self._deadline_at is None:
            return None
        return max(self._deadline_at - asyncio.get_running_loop().time(), 0.0)

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        """End the call.

        Raises:
            Aborted: Always.
        """
        raise Aborted(code.name, details)

    # The connection calls these.

    def begin(self, head: Head) -> None:
        """Take the head of the request; a stream's handler begins, a unary one needs a message."""
        self._head = head
        if head.http_status:
            self._refuse(head.http_status)
            return
        failure = head.failure or self._find_failure(head)
        if failure is not None:
            self.finish(*describe(failure)[1:])
            return
        if head.timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._deadline_at = loop.time() + head.timeout_s
            self._timer = loop.call_at(self._deadline_at, self._expire)
        assert head.method is not None
        if head.method.streaming is not None:
            self._start(self._answer_stream, head.method.streaming)
        else:
            self.is_amid_message = True

    def receive(self, data: memoryview) -> None:
        """Take data of messages."""
        if self.tail is not None:
            return
        try:
            self._reader.receive(data, self._admit)
        except InferenceServerError as exc:
            self._break_off(*describe(exc)[1:])
        else:
            self._count(len(data))

    def place(self) -> memoryview | None:
        """Give where the rest of a message goes."""
        return self._reader.place()

    def placed(self, n_bytes: int) -> None:
        """Take note of data that was put into `place`."""
        self._reader.placed(n_bytes)
        self._count(n_bytes)

    def end_request(self) -> None:
        """Answer a unary call, or let the handler of a stream see its end."""
        if self.tail is not None:
            return
        reader = self._reader
        if reader.is_amid_message:
            self._break_off("INVALID_ARGUMENT", "the request ends amid a message")
        elif self._task is not None:
            self._wake()
        elif len(reader.messages) != 1:
            self._refuse_messages()
        else:
            method = self._head.method
            assert method is not None and method.unary is not None
            self._start(self._answer, method.unary, reader.messages.popleft())

    def lose(self) -> None:
        """Cancel the work: nobody waits for it."""
        if self._task is not None:
            self._task.cancel("the client went away")

    def stall(self) -> None:
        """Give up on a message that does not come on."""
        failure = DeadlineExceeded("the message did not come on in time")
        self._break_off(*describe(failure)[1:])

    def close(self) -> None:
        """End."""
        super().close()
        if self._timer is not None:
            self._timer.cancel()
        self._reader.clear()
        self._wake()
        if self._task is None or self._task.done():
            self._release()

    # What comes in.

    def _find_failure(self, head: Head) -> Exception | None:
        if head.method is None:
            return NotImplementedError(f"there is no method {head.path}")
        if head.encoding not in _ENCODINGS:
            supported = [name.decode() for name in _ENCODINGS]
            # "the server MUST include an appropriate grpc-accept-encoding header"
            self._trailing_metadata = [(b"grpc-accept-encoding", b",".join(_ENCODINGS))]
            return UnsupportedEncoding(
                head.encoding.decode("latin-1"), supported, header="grpc-encoding"
            )
        return None

    def _admit(self, n_bytes: int) -> None:
        limit = self._calls.max_receive_bytes
        if n_bytes > limit:
            raise RequestTooLarge(
                f"the message has {n_bytes} bytes, more than {limit} "
                "(--grpc_max_receive_message_length, --max_request_bytes)"
            )
        self._take(n_bytes + _MESSAGE_BYTES)

    def _take(self, n_bytes: int) -> None:
        self._calls.inflight.take(n_bytes, self._n_held)
        self._n_held += n_bytes

    def _count(self, n_bytes: int) -> None:
        """Let the client send as much again, unless it is ahead of the handler."""
        self._n_uncounted += n_bytes
        reader = self._reader
        if self._task is None:
            # Of a unary call, which ends with its only message.
            if len(reader.messages) > 1:
                self._refuse_messages()
            self.allow(n_bytes)
            return
        self.is_amid_message = reader.is_amid_message
        if reader.messages:
            self._wake()
        else:
            self._allow_uncounted()

    def _allow_uncounted(self) -> None:
        n_bytes, self._n_uncounted = self._n_uncounted, 0
        self.allow(n_bytes)

    async def _messages(self) -> AsyncIterator[bytes | memoryview]:
        """Give the messages of a stream, each once the one before it is done with."""
        reader = self._reader
        while True:
            while not reader.messages:
                if not self.is_receiving:
                    return
                self._arrived = asyncio.get_running_loop().create_future()
                await self._arrived
            message = reader.messages.popleft()
            if not reader.messages:
                self._allow_uncounted()
            data = await self._decompressed(message)
            yield data
            self._release(len(message.data) + _MESSAGE_BYTES + len(data) * message.is_compressed)

    async def _decompressed(self, message: Message) -> bytes | memoryview:
        if not message.is_compressed:
            return message.data
        encoding = self._head.encoding
        if encoding == b"identity":
            raise InvalidInput("a message says that it is compressed, grpc-encoding does not")
        inflight = self._calls.inflight
        room = min(inflight.room, self._calls.max_receive_bytes)
        data = await self._calls.compression.decompress(bytes(message.data), encoding, room)
        self._take(len(data))
        return data

    def _release(self, n_bytes: int | None = None) -> None:
        n_bytes = self._n_held if n_bytes is None else n_bytes
        self._n_held -= n_bytes
        self._calls.inflight.give_back(n_bytes)

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    # What goes out.

    def finish(self, status: str, text: str = "") -> None:
        """Send the status, after what was sent before it; nothing is sent after it.

        Args:
            status: The name of its code.
            text: Its message.
        """
        if not self.is_open or self.tail is not None:
            return
        fields = [(b"grpc-status", str(grpc.StatusCode[status].value[0]).encode())]
        if text:
            message = quote(details(text).encode(), safe=_UNENCODED)
            fields.append((b"grpc-message", message.encode()))
        block = encode_headers([*fields, *self._trailing_metadata])
        self._send((), block if self._has_begun else _HEAD + block)

    def _break_off(self, status: str, text: str) -> None:
        """Send the status, and end the work for the call: the request does not come to its end."""
        self.finish(status, text)
        self.lose()

    def _refuse_messages(self) -> None:
        n_messages = len(self._reader.messages)
        self._break_off("INVALID_ARGUMENT", f"expected one message, got {n_messages or 'none'}")

    def _start(self, answer: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        self.is_amid_message = False
        calls = self._calls
        if calls.max_calls is not None and len(calls.tasks) >= calls.max_calls:
            refusal = TooManyRequests(
                f"{calls.max_calls} calls are in flight, which is as many as the server takes "
                "(--grpc_max_concurrent_rpcs)"
            )
            self.finish(*describe(refusal)[1:])
            return
        self._task = task = asyncio.get_running_loop().create_task(answer(*arguments))
        calls.tasks.add(task)
        task.add_done_callback(self._done)

    async def _answer(self, method: Unary, message: Message) -> None:
        try:
            data = message.data
            if message.is_compressed:
                data = await self._decompressed(message)
            response = await method(data, self)
            self._check_length(response)
        except Exception as exc:
            self.finish(*_status_of(exc))
        else:
            self._respond(response)

    def _respond(self, message: bytes) -> None:
        """Send the only message of a response, and its status."""
        if self.is_open and self.tail is None:
            block = _OK
            if self._trailing_metadata:
                block += encode_headers(self._trailing_metadata)
            self._send((PREFIX.pack(0, len(message)), message), block)

    async def _answer_stream(self, method: Streaming) -> None:
        try:
            async with aclosing(method(self._messages(), self)) as responses:
                async for response in responses:
                    await self._send_message(response)
        except Exception as exc:
            self.finish(*_status_of(exc))
        else:
            self.finish("OK")

    async def _send_message(self, message: bytes) -> None:
        """Send one of several messages; comes back when the client has taken what came before."""
        self._check_length(message)
        self._send((PREFIX.pack(0, len(message)), message), None)
        if self.outbox and self.is_open:
            self.drained = asyncio.get_running_loop().create_future()
            await self.drained
        else:
            # A handler that never waits would keep the loop from everything else.
            await asyncio.sleep(0)

    def _send(self, data: tuple[bytes, ...], trailers: bytes | None) -> None:
        if not self.is_open:
            return
        sender = self._connection.sender
        head = tail = b""
        if not self._has_begun and data:
            head = encode_block(self.id, _HEAD, 0, sender.max_frame_bytes)
        if trailers is not None:
            tail = encode_block(self.id, trailers, END_STREAM, sender.max_frame_bytes)
        self._has_begun = True
        self._connection.has_sent()
        sender.send(self, head, data, tail)

    def _check_length(self, message: bytes) -> None:
        limit = self._calls.max_send_bytes
        if len(message) > limit:
            raise RequestTooLarge(
                f"the response has {len(message)} bytes, more than {limit} "
                "(--grpc_max_send_message_length)"
            )

    def _refuse(self, http_status: bytes) -> None:
        """Answer what is no request of gRPC."""
        text = b"expected POST with content-type application/grpc"
        block = encode_headers([(b":status", http_status), (b"content-type", b"text/plain")])
        sender = self._connection.sender
        head = encode_block(self.id, block, 0, sender.max_frame_bytes)
        sender.send(self, head, (text,), encode_frame(DATA, END_STREAM, self.id))

    # The end.

    def _expire(self) -> None:
        """Give up: the caller does so now, too."""
        self._is_late = True
        if self._task is not None:
            self._task.cancel("the deadline has passed")
        else:
            self._fail_late()

    def _fail_late(self) -> None:
        self.finish("DEADLINE_EXCEEDED", "the deadline of the call has passed")

    def _done(self, task: Task[None]) -> None:
        """Take note that the handler has ended; one that was cancelled has sent no status."""
        self._calls.tasks.discard(task)
        self._release()
        if self._is_late:
            self._fail_late()
        elif task.cancelled():
            self.finish(*describe(ServerNotReady("It is shutting down."))[1:])
        # An answer stays in memory until the client has taken it.
        n_bytes = sum(map(len, self.outbox))
        self._calls.inflight.hold(n_bytes)
        self._n_held += n_bytes


def read_timeout(text: bytes) -> float:
    """Give the seconds of a `grpc-timeout`.

    Raises:
        InvalidInput: It is none.
    """
    digits, unit = text[:-1], text[-1:]
    is_number = digits.isdigit() and len(digits) <= _MAX_TIMEOUT_DIGITS
    if not is_number or unit not in _SECONDS_OF_UNIT:
        raise InvalidInput(
            f"grpc-timeout: expected up to 8 digits and one of H, M, S, m, u, n, got {text!r}"
        )
    return int(digits) * _SECONDS_OF_UNIT[unit]


def _status_of(exc: Exception) -> tuple[str, str]:
    if isinstance(exc, Aborted):
        return exc.status, exc.text
    return describe(exc)[1:]


def _http_status(method: bytes, content_type: bytes) -> bytes:
    """Give the status for a request that is none of gRPC; empty for one that is."""
    if method != b"POST":
        return b"405"
    # "+proto" says that the messages are protobuf's, as does nothing. Others are not.
    base = content_type.lower().partition(b";")[0].rstrip()
    return b"" if base in (_CONTENT_TYPE, _CONTENT_TYPE + b"+proto") else b"415"


def _read_metadata(fields: Iterable[Header]) -> Metadata:
    """Give metadata as handlers get it, binary values decoded.

    Raises:
        InvalidInput: A binary value is no base64.
    """
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name in _OWN_HEADERS:
            continue
        key = name.decode()
        if key.endswith("-bin"):
            metadata += [(key, _read_binary(key, part)) for part in value.split(b",")]
        else:
            metadata.append((key, value.decode("latin-1")))
    return tuple(metadata)


def _read_binary(key: str, value: bytes) -> bytes:
    # "Implementations MUST accept padded and un-padded values"
    value = value.strip().rstrip(b"=")
    try:
        return b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as exc:
        raise InvalidInput(f"metadata {key!r}: expected base64: {exc}") from exc


def _encode_metadatum(key: str, value: str | bytes) -> Header:
    if isinstance(value, bytes):
        return key.encode(), b64encode(value).rstrip(b"=")
    return key.encode(), value.encode("latin-1")
