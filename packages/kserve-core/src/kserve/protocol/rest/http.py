"""One HTTP connection: uvicorn's protocol, where it falls short of RFC 9110 or of our answers."""

import asyncio
import contextlib
import select
import weakref
from asyncio import TimerHandle
from collections.abc import Callable, Mapping
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final, NoReturn, cast

import httptools
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from kserve.endpoint import Endpoint
from kserve.errors import InferenceServerError, RequestTooLarge, ServerNotReady, TooManyRequests
from kserve.logging import logger, request_id_var
from kserve.metrics import AnswerMetrics
from kserve.protocol.compression import RawHeaders
from kserve.protocol.rest.intake import Intake
from kserve.protocol.rest.lingering import Lingering
from kserve.protocol.rest.refusals import QuickRefusal
from kserve.protocol.sending import SendWatch
from kserve.request_ids import request_id_of

# The key of a request's `Wire` in its ASGI scope.
WIRE: Final = "kserve.wire"

# A client that still uploads sends something in this time; far below the grace period.
_MAX_STALL_S: Final = 1.0

_SHUTTING_DOWN: Final = str(ServerNotReady("The server is shutting down."))

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

# A body up to this is copied once more to be sent in one piece with its head.
_MAX_JOINED_BYTES: Final = 64 << 10

# These have no body. Source: RFC 9110, 6.4.1.
BODILESS: Final = (204, 304)

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class _Refused(Exception):
    """Ends the parsing of a connection whose client has been refused."""


class Wire:
    """What a request can do with the connection that it came over.

    Attributes:
        refused_status: With which status the connection itself refused the request amid its body;
            0 if it did not.
        is_gone: Whether the client went away.
        n_held: The bytes that the request is counted with.
        worker: The task that does what the client waits for; it is cancelled if it goes away.
        is_bare: Whether nothing of the user's stands between connection and routes.
    """

    __slots__ = (
        *("_cycle", "_intake", "_target"),
        *("is_bare", "is_gone", "n_held", "refused_status", "worker"),
    )

    def __init__(
        self, cycle: RequestResponseCycle, intake: Intake, target: bytes, n_held: int
    ) -> None:
        # The cycle holds the scope, which holds this.
        self._cycle = weakref.ref(cycle)
        self._intake = intake
        self._target = target
        self.n_held = n_held
        self.worker: asyncio.Task[Any] | None = None
        self.refused_status = 0
        self.is_gone = False
        self.is_bare = True

    @property
    def cycle(self) -> RequestResponseCycle | None:
        """What uvicorn has of the request; None once that is over."""
        return self._cycle()

    @property
    def room(self) -> int:
        """The bytes that all requests together may still hold."""
        return self._intake.inflight.room

    def refuse_beyond(self, room: int) -> NoReturn:
        """Refuse a body that became larger than the room that there was for it.

        Raises:
            RequestTooLarge, TooManyRequests: Always; the former if it could never fit.
        """
        self.hold(room + 1)
        # Others have ended meanwhile.
        raise self._intake.inflight.no_room()

    def hold(self, n_bytes: int) -> None:
        """Count bytes that this request keeps in memory until it is over.

        Raises:
            RequestTooLarge, TooManyRequests: As `InflightBytes.take`.
        """
        self._intake.inflight.take(n_bytes, self.n_held)
        self.n_held += n_bytes

    def release(self) -> None:
        """Take note that the request is over."""
        self._intake.inflight.give_back(self.n_held)
        self.n_held = 0

    def end_work(self) -> bool:
        """Let the task be cancelled no longer; says whether nothing else has asked for that."""
        worker, self.worker = self.worker, None
        return self.is_gone and worker is not None and worker.uncancel() == 0

    def lose(self) -> None:
        """Take note that the client went away: what works for it is cancelled."""
        self.is_gone = True
        cycle = self.cycle
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.worker is not None:
            self.worker.cancel("the client went away")

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

    def whole_body(self) -> bytes | None:
        """Give the body if all of it is there, as of most requests; None to ask ASGI's way."""
        cycle = self._cycle()
        if cycle is None or not self.is_bare or cycle.more_body or cycle.disconnected:
            return None
        # As uvicorn's `receive` does: whoever asks next waits for the disconnect.
        cycle.message_event.clear()
        body = bytes(cycle.body)
        cycle.body = bytearray()
        return body

    def respond(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        """Answer at once with a whole body, where nothing of the user's is to see the messages.

        The two messages of ASGI cost 8 us: uvicorn looks at each header that our code has made.

        Args:
            status: The status.
            headers: As they are to be sent, lower-case, with the body's length.
            body: The body.

        Returns:
            Whether that was possible; the messages are to be sent otherwise.
        """
        cycle = self._cycle()
        if cycle is None or not self.is_bare or not _takes_whole(cycle, status):
            return False
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        lines = [b"%b: %b\r\n" % pair for pair in cycle.default_headers + headers]
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        head = b"".join([STATUS_LINE[status], *lines, end])
        if len(body) <= _MAX_JOINED_BYTES:
            cycle.transport.write(head + body)
        else:
            cycle.transport.write(head)
            cycle.transport.write(body)
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True

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


class _Connections(set[Any]):
    """The open connections of a server, lingering ones included.

    Attributes:
        has_lost: Set when one of them has ended.
    """

    def __init__(self) -> None:
        self.has_lost = asyncio.Event()

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self.has_lost.set()


class ConnectionState(ServerState):
    """What all connections of a server share.

    Attributes:
        is_draining: Whether every response that begins is the last one of its connection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connections = self._connections = _Connections()
        self.is_draining = False

    async def all_lost(self) -> None:
        """Wait until no connection is open."""
        while self._connections:
            self._connections.has_lost.clear()
            await self._connections.has_lost.wait()


class HTTPProtocol(HttpToolsProtocol):
    """One connection, as uvicorn makes it, with limits on what comes over it.

    It differs in this: an Upgrade is ignored; what is not HTTP is answered in JSON; a request body
    that does not come holds up no stop; heads and bodies have limits in bytes and in time; who is
    refused amid what he sends reads the answer; a client that goes away cancels its work, and one
    that does not read is cut off; and no request that comes while the server stops is lost.

    Args:
        intake: The limits, the same for all connections of a server.
        arguments: As uvicorn gives them.
    """

    server_state: ConnectionState

    def __init__(self, intake: Intake, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        # The server's.
        self._intake = intake
        self._refusals = intake.refusals.by_target

        # The connection's.
        self._stall_timer: TimerHandle | None = None
        self._timer: TimerHandle | None = None
        self._send_watch: SendWatch | None = None
        self._is_over = False
        self._idle_since = 0.0
        # The request whose response says that the connection closes after it.
        self._last_cycle: RequestResponseCycle | None = None
        # Of the request that is being answered.
        self._working: Wire | None = None

        # uvicorn has none before the first request.
        self.url = b""

        # Of the request that is being read; without a wire its body is not wanted.
        # The scope tells requests apart: uvicorn makes one when a head begins.
        self._ended_head: HTTPScope | None = None
        self._timed_head: HTTPScope | None = None
        self._is_amid_body = False
        self._wire: Wire | None = None
        self._deadline = 0.0
        # Of the read at hand, and of those after the one that began the head or, in a chunked body,
        # after the last data.
        self._n_read = self._n_since = 0
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
        if self._send_watch is not None:
            self._send_watch.cancel()
        if self._working is not None:
            self._working.lose()

    def data_received(self, data: bytes) -> None:
        """Read what came; uvicorn's drops the body of a request that asks for an Upgrade."""
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
        is_between = not self._is_amid_body and self.scope is self._ended_head
        if not is_between or self.timeout_keep_alive_task is None:
            self._await_rest()

    def on_headers_complete(self) -> None:
        """Begin the request, unless it is refused or has to be parsed again."""
        if self.parser.should_upgrade():
            return
        if self._n_read > MAX_HEAD_BYTES or self._timed_head is self.scope:
            self._check_head()
        is_answered = self._is_answered()
        length = self._length()
        if self._refusals and is_answered and self._refuses_quickly(length):
            return
        if length:
            self._admit(length)
        try:
            super().on_headers_complete()
        except BaseException:
            self._intake.inflight.give_back(length or 0)
            raise
        self._wire = wire = Wire(self.cycle, self._intake, self.url, length or 0)
        if self.server_state.is_draining:
            self._close_after(self.cycle)
        self.scope[WIRE] = wire  # type: ignore[typeddict-unknown-key]  # not one of ASGI's
        if is_answered:
            self._working = wire
        else:
            self._read_on()
        self._ended_head = self.scope
        self._is_amid_body = True
        self._is_chunked = length is None
        if length is None:
            self._n_since = self._n_chunked = self._n_data = 0
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
        self._is_amid_body = False
        if self._wire is not None:
            super().on_message_complete()
            self._read_on()
        # So that what follows is not refused under the id of this one.
        self.headers = []

    def pause_writing(self) -> None:
        """Let whoever writes wait until the client has read, which it may not take for ever."""
        super().pause_writing()
        self._watch_sending()

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it."""
        self._watch_sending()
        if self.pipeline:
            self._working = _wire_of(self.pipeline[-1][0])
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if not self._is_over and not self.transport.is_closing():
            self.flow.resume_reading()
            self._await_request()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle; the timer is not set anew for each request."""
        self.timeout_keep_alive_task = None
        if self._is_over or not self._is_answered() or not self._is_between():
            return
        if self.loop.time() < self._idle_since + self.timeout_keep_alive:
            self._set_idle_timer()
        else:
            self.transport.close()

    def drain(self) -> None:
        """Make the response to the request at hand the last one, if it can still say so.

        An idle connection stays open, as a request may be on its way; its response is the last.
        """
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_started:
            self._close_after(cycle)

    def shutdown(self) -> None:
        """Close the connection if it is idle, or else after the response, or without the rest."""
        if self._is_over or self.transport.is_closing():
            return
        if not self._is_amid_head() and not self._has_unread():
            super().shutdown()
        self._watch_for_stall()

    def refuse_unsent(self) -> None:
        """Answer a request that has not come in time, unless it has a task to answer it."""
        if self._is_amid_head() and not self._is_over:
            self._refuse(503, _SHUTTING_DOWN)

    def close_when_read(self) -> None:
        """Close after the last answer, at once if nothing of a request is still to come."""
        if self._is_between() and not self._is_over:
            self.transport.close()
            self._watch_sending()
        else:
            self._linger()

    def _watch_sending(self) -> None:
        """Bound how long the client may leave unread what has been written."""
        if not self.transport.get_write_buffer_size():
            return
        if self._send_watch is None:
            self._send_watch = SendWatch(
                self.transport, self._intake.send_timeout_s, self._is_written
            )
        self._send_watch.begin()

    def _is_written(self) -> bool:
        return self.flow.write_paused or self._is_answered() or self.transport.is_closing()

    def _read_on(self) -> None:
        """Read although nobody waits for it: whoever reads nothing learns of no disconnect."""
        if self.flow.read_paused and len(self.pipeline) <= _MAX_AHEAD:
            self.flow.resume_reading()

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

    def _admit(self, length: int) -> None:
        """Make room for a body before it is read.

        Raises:
            _Refused: There is none.
        """
        try:
            self._intake.check(length)
            self._intake.inflight.take(length)
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

    def _is_amid_head(self) -> bool:
        """Say whether only a part of a head has come."""
        return not self._is_amid_body and self.scope is not self._ended_head

    def _close_after(self, cycle: RequestResponseCycle) -> None:
        last = self._last_cycle
        if last is not None and not last.response_started:
            # A client that pipelines is owed the answer to this request too.
            last.keep_alive = True
        self._last_cycle = cycle if cycle.keep_alive else None
        cycle.keep_alive = False

    def _has_unread(self) -> bool:
        """Whether something has come that the event loop has not given us yet."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def _is_between(self) -> bool:
        """Say whether nothing of a further request has come."""
        return not self._is_amid_body and self.scope is self._ended_head

    def _await_request(self) -> None:
        """Give the client the time of an idle connection to begin a request."""
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._set_idle_timer()

    def _set_idle_timer(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_at(
            self._idle_since + self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _await_rest(self) -> None:
        """Bound what is still to come of a request."""
        if self._is_amid_body:
            self._await_body()
        elif not self._is_between():
            self._await_head()
        elif self._is_answered():
            self._await_request()

    def _await_head(self) -> None:
        """Bound what is still to come of a head, in bytes and in time."""
        if self._timed_head is not self.scope:
            self._timed_head = self.scope
            self._n_since = 0
            self._set_deadline(self._intake.header_timeout_s)
        elif self._n_since > MAX_HEAD_BYTES:
            self._refuse_head()

    def _await_body(self) -> None:
        """Bound what is still to come of a body, in bytes and in time."""
        if self._is_chunked and self._has_too_much_around():
            self._refuse_head()
            return
        self._set_deadline(self._intake.body_timeout_s)
        if self._wire is not None and self.cycle.transport is self.transport:
            self.cycle.transport = cast(asyncio.Transport, _ClosesLast(self))

    def _has_too_much_around(self) -> bool:
        self._n_chunked += self._n_read
        n_around = self._n_chunked - self._n_data * (1 + _MAX_BYTES_AROUND)
        return max(self._n_since, n_around) > MAX_HEAD_BYTES

    def _set_deadline(self, timeout_s: float) -> None:
        self._deadline = self.loop.time() + timeout_s
        if self._timer is None or self._timer.when() > self._deadline:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(self._deadline, self._check_time)

    def _check_time(self) -> None:
        """Refuse a client that has stalled; the timer is not set anew for each read."""
        self._timer = None
        if self._is_over or self._is_between() or self.transport.is_closing():
            return
        if self._is_amid_body and self._is_our_stall():
            self._set_deadline(self._intake.body_timeout_s)
        elif self.loop.time() < self._deadline:
            self._set_timer()
        elif self._is_amid_body:
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

    def _check_head(self) -> None:
        """Compare the length of a head that has ended with what it may have.

        Raises:
            _Refused: It is longer.
        """
        # "method SP target SP version CRLF", "name: value CRLF", and an empty line.
        fields = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.parser.get_method()) + len(self.url) + fields + 14 > MAX_HEAD_BYTES:
            self._refuse_head()
            raise _Refused

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
            self.server_state.is_draining
            or not self.parser.should_keep_alive()
            or length is None
            or length > _MAX_SWALLOWED_BYTES
        )
        self._write_refusal(refusal, started, closes)
        if closes:
            self._linger()
            raise _Refused
        self._ended_head = self.scope
        self._is_amid_body = True
        self._is_chunked = False
        self._wire = None
        self.server_state.total_requests += 1
        self._await_request()
        return True

    def _write_refusal(self, refusal: QuickRefusal, started: float, closes: bool) -> None:
        request_id = self._request_id()
        fields = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        answer = STATUS_LINE[429] + refusal.answer(request_id, fields, closes)
        refusal.note(request_id, perf_counter() - started)
        self.transport.write(answer)

    def _request_id(self) -> str:
        given = dict(reversed(self.headers or ())).get(b"x-request-id")
        return request_id_of(given.decode("latin-1") if given else None)

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
        if self._is_amid_body:
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
        self.flow.resume_reading()
        # Whoever waits to write finds the connection closed.
        self.flow.resume_writing()
        self.connections.discard(self)
        # It refers to this, and may be amid its work.
        self.loop.call_soon(setattr, self, "parser", None)
        if not self.transport.is_closing():
            if self._send_watch is not None:
                self._send_watch.cancel()
            Lingering(self.transport, self.connections).begin()

    def _drop_pending(self) -> None:
        """Forget the requests that have not been begun, and the timers."""
        for cycle, _ in self.pipeline:
            _wire_of(cycle).release()
        self.pipeline.clear()
        for timer in (self._timer, self._stall_timer, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()

    def _write_error(self, status: int, error: str, given: Mapping[str, str]) -> None:
        request_id = self._request_id()
        token = request_id_var.set(request_id)
        logger.info("Refused with %d: %s", status, error)
        request_id_var.reset(token)
        body = self._intake.error_body(self.url, status, error)
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
        if self._is_over or self.transport.is_closing():
            return
        if self.flow.read_paused or self.pipeline:
            # It is the server that does not read.
            self._watch_for_stall()
        elif cycle is None or cycle.response_complete:
            self._close_idle()
        elif cycle.more_body and not cycle.response_started:
            self._refuse(503, _SHUTTING_DOWN)

    def _close_idle(self) -> None:
        """Close a connection of which only the kernel, or only half a head, has come."""
        if self._is_amid_head():
            self._refuse(503, _SHUTTING_DOWN)
        else:
            self.transport.close()


def _takes_whole(cycle: RequestResponseCycle, status: int) -> bool:
    is_free = not (cycle.response_started or cycle.disconnected or cycle.flow.write_paused)
    return is_free and status not in BODILESS and cycle.scope["method"] != "HEAD"


def _wire_of(cycle: RequestResponseCycle) -> Wire:
    wire: Wire = cycle.scope[WIRE]  # type: ignore[typeddict-item]  # not one of ASGI's
    return wire
