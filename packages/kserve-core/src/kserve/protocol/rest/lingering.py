"""The end of a connection whose client still sends: it reads the answer first, then the close.

"If a server performs an immediate close of a TCP connection, there is a significant risk that the
client will not be able to read the last HTTP response. If the server receives additional data from
the client on a fully closed connection [...] the server's TCP stack will send a reset packet to the
client". Source: RFC 9112, 9.6, https://www.rfc-editor.org/rfc/rfc9112#section-9.6
"""

import asyncio
from typing import Any, Final

# As nginx' lingering_timeout and lingering_time.
_IDLE_S: Final = 5.0
_TOTAL_S: Final = 30.0

# Four times the default of --max_request_bytes; it costs no memory, only the reading.
_MAX_DISCARDED_BYTES: Final = 256 << 20


class Lingering(asyncio.Protocol):
    """Discards what still comes over a connection that was answered for the last time.

    It closes when the client does, or has sent nothing for 5 s, or still sends after 30 s or
    256 MiB.

    Args:
        transport: The connection.
        connections: The open connections of the server; this is one of them until it is closed.
    """

    def __init__(self, transport: asyncio.Transport, connections: set[Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._connections = connections
        self._n_bytes = 0
        self._ends_at = self._loop.time() + _TOTAL_S
        self._read_at = self._loop.time()
        self._timer = self._loop.call_later(_IDLE_S, self._check)

    def begin(self) -> None:
        """Take the connection over: send what is to be sent, and that nothing more comes."""
        self._connections.add(self)
        self._transport.set_protocol(self)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def data_received(self, data: bytes) -> None:
        """Discard what came."""
        self._n_bytes += len(data)
        self._read_at = self._loop.time()
        if self._n_bytes > _MAX_DISCARDED_BYTES:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._timer.cancel()
        self._connections.discard(self)

    def shutdown(self) -> None:
        """Close at once: the server stops."""
        self._transport.close()

    def _check(self) -> None:
        now = self._loop.time()
        ends_at = min(self._read_at + _IDLE_S, self._ends_at)
        if now < ends_at:
            self._timer = self._loop.call_later(ends_at - now, self._check)
        else:
            self._transport.abort()
