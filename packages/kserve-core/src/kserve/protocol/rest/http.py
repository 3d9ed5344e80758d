"""One HTTP connection: uvicorn's protocol, where it falls short of RFC 9110 or of our answers."""

import contextlib
import weakref
from asyncio import TimerHandle
from typing import Any, Final, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from kserve.errors import ServerNotReady
from kserve.logging import logger, request_id_var
from kserve.metrics import AnswerMetrics
from kserve.request_ids import request_id_of

# The key of a request's `Wire` in its ASGI scope.
WIRE: Final = "kserve.wire"

# A client that still uploads sends something in this time; far below the grace period.
_MAX_STALL_S: Final = 1.0


class Wire:
    """What a request can do with the connection that it came over.

    Attributes:
        refused_status: With which status the connection itself refused the request amid its body;
            0 if it did not.
    """

    __slots__ = ("_cycle", "refused_status")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        # The cycle holds the scope, which holds this.
        self._cycle = weakref.ref(cycle)
        self.refused_status = 0

    def cut(self) -> None:
        """Close the connection amid the response, which the client sees as incomplete."""
        cycle = self._cycle()
        if cycle is not None:
            # Otherwise uvicorn logs a response that does not end as an error of its own.
            cycle.disconnected = True
            cycle.transport.close()


class HTTPProtocol(HttpToolsProtocol):
    """One connection, as uvicorn makes it.

    It differs in three things: an Upgrade is ignored, what is not HTTP is answered in JSON, and a
    request body that does not come holds up no stop.
    """

    _stall_timer: TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Read what came; uvicorn's drops the body of a request that asks for an Upgrade."""
        self._unset_keepalive_if_required()
        if self._stall_timer is not None:
            self._watch_for_stall()
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError as exc:
                self._refuse(400, f"The request is not valid HTTP: {exc}")
                return
            except httptools.HttpParserUpgrade as exc:
                data = self._ignore_upgrade(data[exc.args[0] :])
            else:
                return

    def on_headers_complete(self) -> None:
        """Begin the request, unless it has to be parsed again."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            cast(dict[str, Any], self.scope)[WIRE] = Wire(self.cycle)

    def on_message_complete(self) -> None:
        """End the body of the request that was begun."""
        if not self.parser.should_upgrade():
            super().on_message_complete()
            # So that what follows is not refused under the id of this one.
            self.headers = []

    def shutdown(self) -> None:
        """Close the connection if it is idle, or else after the response, or without the body."""
        super().shutdown()
        self._watch_for_stall()

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

    def _refuse(self, status: int, error: str) -> None:
        """Answer what cannot become a request, or the rest of one, and close the connection."""
        cycle: RequestResponseCycle | None = self.cycle
        is_amid_response = False
        if cycle is None or cycle.response_complete:
            AnswerMetrics("").count_answer("", status)
        elif not cycle.more_body:
            # The request that is being answered was good; answers come in order.
            cycle.keep_alive = False
            return
        else:
            cast(dict[str, Any], cycle.scope)[WIRE].refused_status = status
            cycle.disconnected = True
            cycle.message_event.set()
            is_amid_response = cycle.response_started
        # With more than one request open it would be taken for the answer to the first.
        if not is_amid_response and not self.pipeline:
            self._write_error(status, error)
        self.transport.close()

    def _write_error(self, status: int, error: str) -> None:
        given = dict(reversed(self.headers or ())).get(b"x-request-id")
        request_id = request_id_of(given.decode("latin-1") if given else None)
        token = request_id_var.set(request_id)
        logger.info("Refused with %d: %s", status, error)
        request_id_var.reset(token)
        body = orjson.dumps({"error": error})
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
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
