"""One HTTP connection: uvicorn's protocol, where it falls short of RFC 9110 or of our answers."""

import asyncio
import contextlib
import re
import weakref
from asyncio import TimerHandle
from collections.abc import Callable, Mapping
from enum import Enum
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final, NoReturn, cast
from uuid import uuid4

import httptools
import orjson
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from kserve.endpoint import Endpoint
from kserve.errors import InferenceServerError, RequestTooLarge, ServerNotReady, TooManyRequests
from kserve.logging import logger, request_id_var
from kserve.metrics import AnswerMetrics
from kserve.protocol.rest.intake import Intake
from kserve.protocol.rest.lingering import Lingering
from kserve.protocol.rest.refusals import QuickRefusal

# Printable ASCII: the id goes into the log and back to the client.
_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")

# The key of a request's `Wire` in its ASGI scope.
WIRE: Final = "kserve.wire"

# A client that still uploads sends something in this time; far below the grace period.
_MAX_STALL_S: Final = 1.0

# 64 KiB: nginx takes 32 KiB, Go's servers 1 MiB; the parser itself has no limit.
MAX_HEAD_BYTES: Final = 64 << 10

# What the chunks of a body may have around each byte of it: the size, two line ends, and a short
# extension. Go's servers allow 16 and twice the data.
_MAX_BYTES_AROUND: Final = 16

# So many requests behind the one in work may be read before reading pauses.
_MAX_AHEAD: Final = 1

# A refused body up to this is read to its end, so that the connection stays; a new one costs about
# as much as reading this.
_MAX_SWALLOWED_BYTES: Final = 256 << 10

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class _Stage(Enum):
    """What is to come over the connection next."""

    HEAD = 0
    REST_OF_HEAD = 1
    BODY = 2


class _Refused(Exception):
    """Ends the parsing of a connection whose client has been refused."""


class Wire:
    """What a request can do with the connection that it came over.

    Attributes:
        refused_status: With which status the connection itself refused the request amid its body;
            0 if it did not.
        is_gone: Whether the client went away.
        is_bare: Whether nothing of the user's stands between connection and routes.
    """

    __slots__ = (
        *("_cycle", "_intake", "_n_held", "_target", "_worker"),
        *("is_bare", "is_gone", "refused_status"),
    )

    def __init__(self, intake: Intake, target: bytes) -> None:
        self._intake = intake
        self._target = target
        self._cycle: weakref.ref[RequestResponseCycle] | None = None
        self._n_held = 0
        self._worker: asyncio.Task[Any] | None = None
        self.refused_status = 0
        self.is_gone = False
        self.is_bare = True

    @property
    def cycle(self) -> RequestResponseCycle | None:
        """What uvicorn has of the request; None once that is over."""
        return None if self._cycle is None else self._cycle()

    def bind(self, cycle: RequestResponseCycle) -> None:
        """Set what uvicorn has of the request, whose scope holds this."""
        self._cycle = weakref.ref(cycle)

    def hold(self, n_bytes: int) -> None:
        """Count bytes that this request keeps in memory until it is over.

        Raises:
            RequestTooLarge, TooManyRequests: As `Intake.take`.
        """
        self._intake.take(n_bytes, self._n_held)
        self._n_held += n_bytes

    def release(self) -> None:
        """Take note that the request is over."""
        self._intake.give_back(self._n_held)
        self._n_held = 0

    def begin_work(self) -> None:
        """Let the current task be cancelled when the client goes away."""
        self._worker = asyncio.current_task()

    def end_work(self) -> bool:
        """Let it be cancelled no longer; says whether it was by this alone."""
        worker, self._worker = self._worker, None
        return self.is_gone and worker is not None and worker.uncancel() == 0

    def lose(self) -> None:
        """Take note that the client went away: what works for it is cancelled."""
        self.is_gone = True
        cycle = self.cycle
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        if self._worker is not None:
            self._worker.cancel("the client went away")

    def refuse_quickly(
        self, protocol: str, endpoint: Endpoint, is_current: Callable[[Endpoint], bool]
    ) -> None:
        """Refuse requests of the same target without looking at them while their model is full.

        Args:
            protocol: `v1` or `v2`.
            endpoint: What the target leads to.
            is_current: Whether it still does.
        """
        if self.is_bare and not endpoint.has_own_healthy:
            self._intake.refusals.add(self._target, endpoint, protocol, is_current)

    def cut(self) -> None:
        """Close the connection amid the response, which the client sees as incomplete."""
        cycle = self.cycle
        if cycle is not None:
            # Otherwise uvicorn logs a response that does not end as an error of its own.
            cycle.disconnected = True
            cycle.transport.close()


class _ClosesLast:
    """The transport of a cycle whose client may still send when it is answered.

    Args:
        connection: Decides how the connection is closed.
    """

    def __init__(self, connection: "HTTPProtocol") -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        self._connection.close_when_read()


class HTTPProtocol(HttpToolsProtocol):
    """One connection, as uvicorn makes it, with limits on what comes over it.

    It differs in this: an Upgrade is ignored; what is not HTTP is answered in JSON; a request body
    that does not come holds up no stop; heads and bodies have limits in bytes and in time; who is
    refused amid what he sends reads the answer; and a client that goes away cancels its work.

    Args:
        intake: The limits, the same for all connections of a server.
        arguments: As uvicorn gives them.
    """

    def __init__(self, intake: Intake, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        # The server's.
        self._intake = intake

        # The connection's.
        self._stall_timer: TimerHandle | None = None
        self._timer: TimerHandle | None = None
        self._is_over = False
        # Of the request that is being answered.
        self._working: Wire | None = None

        # Of the request that is being read; without a wire its body is not wanted.
        self._stage = _Stage.HEAD
        self._wire: Wire | None = None
        self._deadline = 0.0
        self._is_timed = False
        # Of the read at hand, of the one that began the head, and of those after it or, in a
        # chunked body, after the last data.
        self._n_read = self._n_first = self._n_since = 0
        self._is_chunked = False
        self._n_chunked = self._n_data = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; uvicorn's gives a client that never sends anything all the time there is."""
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and with it the work for the client."""
        super().connection_lost(exc)
        self._drop_pending()
        if self._working is not None:
            self._working.lose()

    def data_received(self, data: bytes) -> None:
        """Read what came; uvicorn's drops the body of a request that asks for an Upgrade."""
        self._unset_keepalive_if_required()
        if self._is_over:
            return
        if self._stall_timer is not None:
            self._watch_for_stall()
        self._n_read = len(data)
        self._n_since += self._n_read
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError as exc:
                if not self._is_over:
                    self._refuse(400, f"The request is not valid HTTP: {exc}")
                return
            except httptools.HttpParserUpgrade as exc:
                data = self._ignore_upgrade(data[exc.args[0] :])
            else:
                break
        if self._stage is not _Stage.HEAD:
            self._await_rest()
        elif self._is_answered():
            self._await_request()

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._stage = _Stage.REST_OF_HEAD
        self._is_timed = False
        self._n_first = self._n_read
        self._n_since = 0

    def on_headers_complete(self) -> None:
        """Begin the request, unless it is refused or has to be parsed again."""
        if self.parser.should_upgrade():
            return
        if self._n_first + self._n_since > MAX_HEAD_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            self._refuse_head()
            raise _Refused
        is_answered = self._is_answered()
        length = self._length()
        if self._intake.refusals and is_answered and self._refuses_quickly(length):
            return
        self._wire = wire = Wire(self._intake, self.url)
        self._admit(wire, length)
        cast(dict[str, Any], self.scope)[WIRE] = wire
        if is_answered:
            self._working = wire
        try:
            super().on_headers_complete()
        except BaseException:
            wire.release()
            raise
        wire.bind(self.cycle)
        self._stage = _Stage.BODY
        if length is None:
            # Fields after the body are not to be taken for those of the head.
            self.headers = list(self.headers)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body that is wanted."""
        if self._is_chunked:
            self._count(len(body))
        if self._wire is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body of the request that was begun."""
        if self.parser.should_upgrade():
            return
        self._stage = _Stage.HEAD
        if self._wire is not None:
            super().on_message_complete()
            if len(self.pipeline) <= _MAX_AHEAD:
                # Whoever reads nothing learns of no disconnect.
                self.flow.resume_reading()
        # So that what follows is not refused under the id of this one.
        self.headers = []

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it."""
        if self.pipeline:
            self._working = _wire_of(self.pipeline[-1][0])
        elif self._is_over:
            return
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close the connection if it is idle, or else after the response, or without the body."""
        super().shutdown()
        self._watch_for_stall()

    def close_when_read(self) -> None:
        """Close after the last answer, at once if nothing of a request is still to come."""
        if self._stage is _Stage.HEAD and not self._is_over:
            self.transport.close()
        else:
            self._linger()

    def _is_answered(self) -> bool:
        """Say whether every request that was begun has had its response."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _length(self) -> int | None:
        """Give the length that the head declares; None if it declares none."""
        for name, value in self.headers:
            if name == b"content-length":
                return int(value)
        return None

    def _admit(self, wire: Wire, length: int | None) -> None:
        """Make room for a body before it is read.

        Raises:
            _Refused: There is none.
        """
        self._is_chunked = length is None
        self._n_chunked = self._n_data = 0
        if not length:
            return
        try:
            self._intake.check(length)
            wire.hold(length)
        except (RequestTooLarge, TooManyRequests) as exc:
            self._refuse_as(exc)

    def _count(self, n_bytes: int) -> None:
        """Make room for a piece of a body whose length is not known.

        Raises:
            _Refused: There is none.
        """
        self._n_since = 0
        self._n_data += n_bytes
        try:
            self._intake.check(self._n_data)
            if self._wire is not None and not self.cycle.response_complete:
                self._wire.hold(n_bytes)
        except (RequestTooLarge, TooManyRequests) as exc:
            self._refuse_as(exc)

    def _await_request(self) -> None:
        """Give the client the time of an idle connection to begin a request."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _await_rest(self) -> None:
        """Bound what is still to come of a head or a body, in bytes and in time."""
        now = self.loop.time()
        if self._stage is _Stage.REST_OF_HEAD:
            if self._n_since > MAX_HEAD_BYTES:
                self._refuse_head()
                return
            if not self._is_timed:
                self._is_timed = True
                self._deadline = now + self._intake.header_timeout_s
        else:
            if self._is_chunked and self._has_too_much_around():
                self._refuse_head()
                return
            self._deadline = now + self._intake.body_timeout_s
            if self._wire is not None and self.cycle.transport is self.transport:
                self.cycle.transport = cast(asyncio.Transport, _ClosesLast(self))
        if self._timer is None or self._timer.when() > self._deadline:
            self._set_timer()

    def _has_too_much_around(self) -> bool:
        self._n_chunked += self._n_read
        n_around = self._n_chunked - self._n_data * (1 + _MAX_BYTES_AROUND)
        return max(self._n_since, n_around) > MAX_HEAD_BYTES

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(self._deadline, self._check_time)

    def _check_time(self) -> None:
        """Refuse a client that has stalled; the timer is not set anew for each read."""
        self._timer = None
        if self._is_over or self._stage is _Stage.HEAD or self.transport.is_closing():
            return
        now = self.loop.time()
        if self._stage is _Stage.BODY and self._is_our_stall():
            self._deadline = now + self._intake.body_timeout_s
        if now < self._deadline:
            self._set_timer()
        elif self._stage is _Stage.BODY:
            timeout_s = self._intake.body_timeout_s
            self._refuse(408, f"no more of the body came for {timeout_s:g} s (--body_timeout_s)")
        else:
            timeout_s = self._intake.header_timeout_s
            self._refuse(
                408, f"the head of the request did not end in {timeout_s:g} s (--header_timeout_s)"
            )

    def _is_our_stall(self) -> bool:
        """Say whether the client waits for the server to read on, or for its 100 Continue."""
        return self.flow.read_paused or (
            self._wire is not None and self.cycle.waiting_for_100_continue
        )

    def _head_bytes(self) -> int:
        # "method SP target SP version CRLF", "name: value CRLF", and an empty line.
        fields = sum(len(name) + len(value) + 4 for name, value in self.headers)
        return len(self.url) + len(self.parser.get_method()) + 14 + fields

    def _refuse_head(self) -> None:
        self._refuse(
            431, f"what stands before, amid or after a body is larger than {MAX_HEAD_BYTES} bytes"
        )

    def _refuses_quickly(self, length: int | None) -> bool:
        """Refuse a request whose model is full before anything is made for it.

        Returns:
            Whether it is refused; what comes of its body is dropped then.

        Raises:
            _Refused: It is, and the connection with it.
        """
        refusal = self._intake.refusals.find(self.url)
        if refusal is None or self.expect_100_continue or self.parser.get_method() != b"POST":
            return False
        started = perf_counter()
        closes = (
            not self.parser.should_keep_alive() or length is None or length > _MAX_SWALLOWED_BYTES
        )
        self._write_refusal(refusal, started, closes)
        if closes:
            self._linger()
            raise _Refused
        self._wire = None
        self._is_chunked = False
        self._stage = _Stage.BODY
        self.server_state.total_requests += 1
        return True

    def _write_refusal(self, refusal: QuickRefusal, started: float, closes: bool) -> None:
        request_id = self._request_id()
        fields = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        self.transport.write(STATUS_LINE[429] + refusal.answer(request_id, fields, closes))
        refusal.note(request_id, perf_counter() - started)

    def _request_id(self) -> str:
        return request_id_of(dict(reversed(self.headers or ())).get(b"x-request-id"))

    def _ignore_upgrade(self, rest: bytes) -> bytes:
        """Give what is to be parsed anew, by a parser that is told of no Upgrade.

        The parser takes everything after a head that asks for an Upgrade as another protocol's.
        "A server MAY ignore a received Upgrade header field if it wishes to continue using the
        current protocol on that connection." Source: RFC 9110, 7.8.
        """
        method = self.parser.get_method()
        version = self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(400, "The method CONNECT is not supported")
            return b""
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn sets it; httptools before 0.6.3 has no such setting.
        with contextlib.suppress(AttributeError):
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", rest])

    def _refuse_as(self, exc: InferenceServerError) -> NoReturn:
        """Refuse with an error of ours.

        Raises:
            _Refused: Always.
        """
        self._refuse(exc.http_status, str(exc), exc.http_headers)
        raise _Refused from None

    def _refuse(self, status: int, error: str, headers: Mapping[str, str] = _NO_HEADERS) -> None:
        """Answer what cannot become a request, or the rest of one, and close the connection."""
        if self._stage is _Stage.BODY:
            is_next = self._give_up(status)
        else:
            is_next = self._is_answered()
            if is_next:
                AnswerMetrics("").count_answer("", status)
            else:
                self._end_after(self.cycle)
        if is_next:
            self._write_error(status, error, headers)
        if not self._is_over:
            self._linger()

    def _give_up(self, status: int) -> bool:
        """End a request amid its body; says whether the next answer is the one to it."""
        cycle: RequestResponseCycle = self.cycle
        if self._wire is None or cycle.response_complete:
            return False
        self._wire.refused_status = status
        cycle.disconnected = True
        cycle.message_event.set()
        if self.pipeline:
            # It has not been begun; those before it are good, and answers come in order.
            self._wire.release()
            self.pipeline.popleft()
            assert self._working is not None
            self._end_after(self.pipeline[0][0] if self.pipeline else self._working.cycle)
            return False
        return not cycle.response_started

    def _end_after(self, cycle: RequestResponseCycle | None) -> None:
        """Read no more requests, and close after the answer to one that was good."""
        self._is_over = True
        if cycle is not None:
            cycle.keep_alive = False
            cycle.transport = cast(asyncio.Transport, _ClosesLast(self))

    def _linger(self) -> None:
        """Close the connection without losing what has been written: the client may still send."""
        self._is_over = True
        self._drop_pending()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        # Whoever waits to write finds the connection closed.
        self.flow.resume_writing()
        self.connections.discard(self)
        # It refers to this, and may be amid its work.
        self.loop.call_soon(setattr, self, "parser", None)
        if not self.transport.is_closing():
            Lingering(self.transport, self.connections).begin()

    def _drop_pending(self) -> None:
        """Forget the requests that have not been begun, and the timers."""
        for cycle, _ in self.pipeline:
            _wire_of(cycle).release()
        self.pipeline.clear()
        for timer in (self._timer, self._stall_timer):
            if timer is not None:
                timer.cancel()

    def _write_error(self, status: int, error: str, given: Mapping[str, str]) -> None:
        request_id = self._request_id()
        token = request_id_var.set(request_id)
        logger.info("Refused with %d: %s", status, error)
        request_id_var.reset(token)
        body = orjson.dumps({"error": error})
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *((name.encode(), value.encode()) for name, value in given.items()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        fields = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        self.transport.write(STATUS_LINE[status] + fields + b"\r\n" + body)

    def _watch_for_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._stall_timer = self.loop.call_later(_MAX_STALL_S, self._close_stalled)

    def _close_stalled(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if self.transport.is_closing() or cycle is None or cycle.response_started:
            return
        if not cycle.more_body:
            return
        if self.flow.read_paused or self.pipeline:
            # It is the server that does not read.
            self._watch_for_stall()
            return
        self._refuse(503, str(ServerNotReady("The server is shutting down.")))


def accounted(app: ASGIApp) -> ASGIApp:
    """Give an application that lets its requests' bytes go when it is done with them."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            wire: Wire | None = scope.get(WIRE)
            if wire is not None:
                wire.release()

    return run


def _wire_of(cycle: RequestResponseCycle) -> Wire:
    return cast(Wire, cast(dict[str, Any], cycle.scope)[WIRE])


def request_id_of(given: bytes | None) -> str:
    """Give the client's `x-request-id` if it can be logged, or else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return str(uuid4())
