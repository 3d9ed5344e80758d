"""One HTTP request and its response: reading the body, answering once, counting and logging."""

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

import orjson
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from kserve.config import CloudEventConfig
from kserve.endpoint import Endpoint
from kserve.errors import InferenceServerError, RequestTooLarge, TooManyRequests, describe
from kserve.logging import log_request, logger, request_id_var
from kserve.metrics import AnswerMetrics
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.protocol.codec.v2_binary import EncodedBinary
from kserve.protocol.compression import MIN_COMPRESSED_BYTES, Compression, RawHeaders
from kserve.protocol.rest.http import BODILESS, WIRE, Wire
from kserve.protocol.tensor import RawData
from kserve.request_ids import request_id_of

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# body, headers -> body, headers
Wrap = Callable[[bytes, RawHeaders], tuple[bytes, RawHeaders]]

# exception -> status, body, headers of the response to a request that failed
DescribeFailure = Callable[[Exception], tuple[int, bytes, RawHeaders]]

JSON_HEADERS: Final[RawHeaders] = [(b"content-type", b"application/json")]

_JSON_LENGTH: Final = b"inference-header-content-length"

# They describe a body; a model's copies of its predictor's would describe another one.
_BODY_HEADERS: Final = frozenset({b"content-type", b"content-encoding", _JSON_LENGTH})

# The widest alignment that numpy asks for, and the one that every allocation has.
_ALIGNMENT: Final = 16

# A body of tensors below this is copied once more to be sent in one piece.
_MAX_JOINED_BYTES: Final = 64 << 10

# Written by the server itself for the response at hand; a model's copies of its predictor's would
# contradict them.
_OWN_HEADERS: Final = frozenset(
    {
        *(b"connection", b"content-length", b"date", b"keep-alive", b"server"),
        *(b"transfer-encoding", b"x-request-id"),
    }
)

# "field-name = token" and "field-vchar = VCHAR / obs-text", with spaces and tabs between.
# Source: RFC 9110, 5.1 and 5.5, https://www.rfc-editor.org/rfc/rfc9110
_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*")

# As nginx logs it: the client closed the connection before the answer.
_CLIENT_CLOSED: Final = 499


class ClientDisconnected(Exception):
    """The client went away before it had sent its body or read its answer."""


class Exchange:
    """One request and its response.

    Attributes:
        scope: The ASGI scope.
        fields: The request's headers, lower-case; of repeated ones the first.
        request_id: The client's `x-request-id`, or one made here; the response carries it.
        metrics: Where the answer is counted: the model's, once it is known.
        protocol: `v1`, `v2`, `openai`, or empty for other routes.
        model_name: As in the route or the body; empty for other routes.
        status: Of the response that was started; 0 before.
        cloudevents: What the events say that answer events.
        wrap: Puts the body of a good answer into something; None leaves it as it is.
        describe_failure: Gives the response to a request that failed.
    """

    __slots__ = (
        "_compression",
        "_outcome",
        "_receive",
        "_send",
        "_started",
        "_wire",
        "cloudevents",
        "describe_failure",
        "fields",
        "metrics",
        "model_name",
        "protocol",
        "request_id",
        "scope",
        "status",
        "wrap",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        metrics: AnswerMetrics,
        compression: Compression | None = None,
        cloudevents: CloudEventConfig | None = None,
    ) -> None:
        self.scope = scope
        self._wire: Wire | None = scope.get(WIRE)
        self.fields: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self.metrics = metrics
        self.cloudevents = cloudevents or CloudEventConfig()
        self.wrap: Wrap | None = None
        self.describe_failure: DescribeFailure = error_response
        self._compression = compression or Compression()
        self.protocol = ""
        self.model_name = ""
        self.status = 0
        # What is counted and logged if it is not the status that was sent; 0 if it is.
        self._outcome = 0
        self._receive = receive
        self._send = send
        self._started = perf_counter()
        given = self.fields.get(b"x-request-id")
        self.request_id = request_id_of(given.decode("latin-1") if given else None)
        request_id_var.set(self.request_id)

    def header(self, name: bytes) -> bytes | None:
        """Give the first header of a lower-case name."""
        return self.fields.get(name)

    def headers(self) -> dict[str, str]:
        """Give all headers, lower-case; of repeated ones the last.

        Without the Content-Encoding: the body that goes with them is decompressed.
        """
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in self.scope["headers"]
        }
        if b"content-encoding" in self.fields:
            del headers["content-encoding"]
        # What the log and the answer have, also where the client sent none or one not to be used.
        headers["x-request-id"] = self.request_id
        return headers

    async def body(self) -> bytes:
        """Read the whole body, and decompress it.

        Raises:
            ClientDisconnected: The client went away before it had sent everything.
            UnsupportedEncoding, InvalidInput, RequestTooLarge: It cannot be decompressed.
            TooManyRequests: What it becomes has no room beside the requests in flight.
        """
        if b"content-encoding" not in self.fields:
            return await self._read()
        encoding = self._listed(b"content-encoding")
        packed, wire, compression = await self._read(), self._wire, self._compression
        if wire is None:
            return await compression.decompress(packed, encoding)
        room = wire.room
        try:
            body = await compression.decompress(packed, encoding, room)
        except RequestTooLarge:
            if room < compression.max_decompressed_bytes:
                wire.refuse_beyond(room)
            raise
        wire.hold(len(body))
        return body

    def replay(self, body: bytes) -> Receive:
        """Give a `receive` that begins with a body which has been read, for code that reads it."""
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return messages.pop() if messages else await self._receive()

        return receive

    async def binary_body(self, json_length: int) -> memoryview:
        """Read a whole body of a JSON part and tensors, so that the first tensor is aligned.

        Args:
            json_length: Length in bytes of the JSON part.

        Raises:
            ClientDisconnected, UnsupportedEncoding, InvalidInput, RequestTooLarge,
            TooManyRequests: As `body`.
        """
        if b"content-encoding" in self.fields:
            return memoryview(await self.body())
        padding = -json_length % _ALIGNMENT
        buffer = bytearray(padding)
        message = await self._receive()
        while message["type"] == "http.request":
            buffer += message.get("body", b"")
            if not message.get("more_body"):
                return memoryview(buffer)[padding:].toreadonly()
            message = await self._receive()
        raise ClientDisconnected

    def refusal(
        self, endpoint: Endpoint, is_current: Callable[[Endpoint], bool]
    ) -> TooManyRequests:
        """Give the refusal of a request whose model is full; more of its kind get it sooner.

        Args:
            endpoint: What the request is for.
            is_current: Whether a later request of the same target would be for it, too.
        """
        if self._wire is not None:
            self._wire.refuse_quickly(self.protocol, endpoint, is_current)
        return endpoint.admission.refusal()

    async def work(self, function: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
        """Await what is done for the client; cancelled if it goes away.

        Raises:
            ClientDisconnected: It went away.
            Exception: Whatever the function raises.
        """
        wire = self._wire
        if wire is None:
            return await function(*args)
        if wire.is_gone:
            raise ClientDisconnected
        wire.worker = asyncio.current_task()
        try:
            result = await function(*args)
        except asyncio.CancelledError:
            # Nothing outside this has asked for a cancellation, so nothing outside shall see one.
            if wire.is_gone and wire.end_work():
                raise ClientDisconnected from None
            raise
        except Exception:
            wire.end_work()
            raise
        if wire.is_gone:
            wire.end_work()
            raise ClientDisconnected
        wire.worker = None
        return result

    def _listed(self, name: bytes) -> bytes:
        # "its field value is the list of field line values [...] separated by a comma"
        return b",".join(value for key, value in self.scope["headers"] if key == name)

    async def _read(self) -> bytes:
        if self._wire is not None:
            body = self._wire.whole_body()
            if body is not None:
                return body
        message = await self._receive()
        if not message.get("more_body") and message["type"] == "http.request":
            return bytes(message.get("body", b""))
        chunks = []
        while message["type"] == "http.request":
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(chunks)
            message = await self._receive()
        raise ClientDisconnected

    async def send(self, message: Message) -> None:
        """Send an ASGI message; the first one gets the request id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
            ]
        await self._send(message)

    async def reply(self, body: bytes, headers: RawHeaders, status: int = 200) -> None:
        """Answer with a whole body, compressed if that is worth it; the length is added."""
        if self.wrap is not None and status == 200:
            body, headers = self.wrap(body, headers)
        if len(body) >= MIN_COMPRESSED_BYTES:
            accepted = self._listed(b"accept-encoding")
            body, headers = await self._compression.compress(body, headers, accepted)
        length = (b"content-length", b"%d" % len(body))
        headers = [*headers, length, (b"x-request-id", self.request_id.encode())]
        if self._wire is not None and self._wire.respond(status, headers, body):
            self.status = status
            return
        await self.send({"type": "http.response.start", "status": status, "headers": headers[:-1]})
        await self.send({"type": "http.response.body", "body": body})

    async def reply_json(self, encoded: EncodedJson, headers: RawHeaders) -> None:
        """Answer with JSON; a model's headers may not say that the body is anything else."""
        if encoded.n_nulled:
            self.metrics.nonfinite.inc(encoded.n_nulled)
        await self.reply(encoded.body, _json_headers(headers))

    async def reply_binary(self, encoded: EncodedBinary, headers: RawHeaders) -> None:
        """Answer with tensors in binary form, large ones without another copy.

        Raises:
            ClientDisconnected: The client went away before it had read them.
        """
        if encoded.n_nulled:
            self.metrics.nonfinite.inc(encoded.n_nulled)
        headers = [
            (b"content-type", b"application/octet-stream"),
            (_JSON_LENGTH, b"%d" % encoded.json_length),
            *_without_body_headers(headers),
        ]
        n_bytes = sum(map(len, encoded.parts))
        if n_bytes <= _MAX_JOINED_BYTES or self.wrap is not None:
            await self.reply(b"".join(encoded.parts), headers)
            return
        length = (b"content-length", b"%d" % n_bytes)
        await self.send(
            {"type": "http.response.start", "status": 200, "headers": [*headers, length]}
        )
        for part in encoded.parts:
            await self._send_part(part)
        await self.send({"type": "http.response.body", "body": b""})

    async def stream(self, chunks: AsyncIterable[Any], headers: RawHeaders) -> None:
        """Answer with chunks as they come.

        The response starts with the first chunk, so a model that fails before it gets a status.

        Raises:
            ClientDisconnected: The client went away; no further chunk is asked for.
        """
        sending = asyncio.create_task(self._send_chunks(aiter(chunks), headers))
        # The body has been read, so the next message can only be the disconnect.
        disconnect = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait({sending, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ClientDisconnected
            sending.result()
        finally:
            disconnect.cancel()
            sending.cancel()
            # The generator has ended when this returns.
            await asyncio.gather(sending, return_exceptions=True)

    async def fail(self, exc: Exception) -> None:
        """Answer with an error, unless a response has begun: then the connection is cut.

        A response that was cut is counted and logged as a failure, whatever status was sent.
        """
        status, body, headers = self._describe(exc)
        if not self.status:
            await self.reply(body, headers, status)
        elif self._wire is not None:
            self._wire.cut()

    def note_failure(self, exc: Exception) -> bytes:
        """Count and log a response that has begun as a failure, and give the body for the error."""
        return self._describe(exc)[1]

    def _describe(self, exc: Exception) -> tuple[int, bytes, RawHeaders]:
        """Give the response to a failed request, and log what is our fault."""
        try:
            status, body, headers = self.describe_failure(exc)
        except (TypeError, ValueError) as unsendable:
            # A text or a header of the user's that HTTP or JSON cannot carry.
            exc = unsendable
            status, body, headers = self.describe_failure(exc)
        if self.status:
            status = self._outcome = max(status, 500)
        is_ours = getattr(exc, "is_ours", True)
        if status >= 500 and is_ours and status not in (501, 503, 504):
            logger.error("Request failed", exc_info=exc)
        return status, body, headers

    async def leave(self) -> None:
        """Take note that the client was gone before it had read everything."""
        wire = self._wire
        self._outcome = (wire and wire.refused_status) or _CLIENT_CLOSED
        if wire is not None and not wire.is_bare and not self.status:
            # Nobody reads it, but a middleware may not expect that there is no response.
            await self.reply(b"", [], self._outcome)

    def finish(self, log: bool) -> None:
        """Count the answer and, if it was an inference request, log its line."""
        if self._wire is not None and self._wire.n_held:
            self._wire.release()
        status = self._outcome or self.status or _CLIENT_CLOSED
        self.metrics.count_answer(self.protocol, status)
        if log and self.model_name:
            seconds = perf_counter() - self._started
            log_request(self.request_id, self.model_name, self.protocol, status, seconds)

    async def _send_chunks(self, iterator: AsyncIterator[Any], headers: RawHeaders) -> None:
        try:
            first = _encode_chunk(await anext(iterator, b""))
            await self.send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send_chunk(first)
            async for chunk in iterator:
                await self._send_chunk(_encode_chunk(chunk))
            await self.send({"type": "http.response.body", "body": b""})
        finally:
            await _close(iterator)

    async def _send_chunk(self, body: bytes) -> None:
        # Neither a generator nor a socket that takes everything need ever wait, and a loop that
        # gets no turn answers nobody and sees no client leave.
        await asyncio.sleep(0)
        await self._send_part(body)

    async def _send_part(self, body: RawData) -> None:
        """Send a part of a body that is not the last.

        Raises:
            ClientDisconnected: Nobody reads it.
        """
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        if self._wire is not None and self._wire.is_gone:
            raise ClientDisconnected


def encode_headers(headers: Mapping[str, str]) -> RawHeaders:
    """Give a model's response headers in ASGI form, without those that the server writes.

    Raises:
        ValueError: A name or value cannot be sent; a line break in it would forge headers.
    """
    encoded = []
    for name, value in headers.items():
        pair = str(name).lower().encode("latin-1"), str(value).encode("latin-1")
        if not _HEADER_NAME.fullmatch(pair[0]) or not _HEADER_VALUE.fullmatch(pair[1]):
            raise ValueError(f"response header {name!r} is not one that HTTP can carry: {value!r}")
        if pair[0] not in _OWN_HEADERS:
            encoded.append(pair)
    return encoded


def _json_headers(headers: RawHeaders) -> RawHeaders:
    return [*JSON_HEADERS, *_without_body_headers(headers)]


def _without_body_headers(headers: RawHeaders) -> RawHeaders:
    return [pair for pair in headers if pair[0] not in _BODY_HEADERS]


def error_response(exc: Exception) -> tuple[int, bytes, RawHeaders]:
    """Give status, body and headers.

    Raises:
        TypeError, ValueError: An HTTPException's detail or headers cannot be sent.
    """
    if not isinstance(exc, HTTPException):
        status, _, text = describe(exc)
        body = orjson.dumps({"error": text})
        if isinstance(exc, InferenceServerError) and exc.http_headers:
            return status, body, [*JSON_HEADERS, *encode_headers(exc.http_headers)]
        return status, body, JSON_HEADERS
    headers = encode_headers(exc.headers or {})
    if exc.status_code in BODILESS:
        return exc.status_code, b"", headers
    body = orjson.dumps({"detail": exc.detail}, default=str)
    return exc.status_code, body, _json_headers(headers)


def _encode_chunk(chunk: Any) -> bytes:
    if isinstance(chunk, str):
        return chunk.encode()
    if isinstance(chunk, bytes | bytearray | memoryview):
        return bytes(chunk)
    return orjson.dumps(chunk, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


async def _close(iterator: AsyncIterator[Any]) -> None:
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
