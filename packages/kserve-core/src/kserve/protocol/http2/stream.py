"""One stream of a connection: a request and its response."""

from abc import ABC, abstractmethod
from asyncio import Future
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from kserve.protocol.http2.frames import ErrorCode, encode_reset, encode_window_update

if TYPE_CHECKING:
    from kserve.protocol.http2.connection import Connection

# What a client may send on one stream before it is told that it may send more. At 100 ms to the
# client and back this is 40 MB/s; Go's servers have 1 MiB, nginx 64 KiB.
STREAM_WINDOW_BYTES: Final = 4 << 20


class Stream(ABC):
    """One stream; a subclass says what becomes of the request.

    Args:
        connection: Its connection.
        stream_id: Its number.

    Attributes:
        id: Its number.
        is_open: Whether anything may still be sent on it.
        is_receiving: Whether the client may still send on it.
        send_window: How many bytes of data the client takes now.
        outbox: Data that waits for the client to take it.
        tail: The frame that ends the stream, once it is known and until it is sent.
        drained: Waits for the outbox to be empty.
        is_amid_message: Whether the client owes the rest of what it has begun to send.
        moved_at: When data last came, or was last taken by the client.
    """

    __slots__ = (
        *("_connection", "_n_taken", "_window", "drained", "id", "is_amid_message", "is_open"),
        *("is_receiving", "moved_at", "outbox", "send_window", "tail"),
    )

    def __init__(self, connection: "Connection[Any]", stream_id: int) -> None:
        self._connection = connection
        self.id = stream_id
        self.is_open = self.is_receiving = True
        self.moved_at = 0.0

        # Of what comes.
        self._window = STREAM_WINDOW_BYTES
        self._n_taken = 0
        self.is_amid_message = False

        # Of what goes.
        self.send_window = connection.sender.initial_window
        self.outbox: deque[memoryview] = deque()
        self.tail: bytes | None = None
        self.drained: Future[None] | None = None

    @abstractmethod
    def begin(self, head: Any) -> None:
        """Take the head of the request."""

    @abstractmethod
    def receive(self, data: memoryview) -> None:
        """Take data, which is overwritten after this."""

    def place(self) -> memoryview | None:
        """Give where data that comes next is to be written to; None to `receive` it."""
        return None

    @abstractmethod
    def placed(self, n_bytes: int) -> None:
        """Take note that so many bytes are in `place` now."""

    @abstractmethod
    def end_request(self) -> None:
        """Take note that the client has sent all."""

    @abstractmethod
    def lose(self) -> None:
        """Take note that the client went away, or takes the request back."""

    @abstractmethod
    def stall(self) -> None:
        """Take note that what the client owes has not come for too long."""

    def count_in(self, n_bytes: int) -> bool:
        """Count what comes; says whether the client was allowed to send it."""
        self._window -= n_bytes
        return self._window >= 0

    def allow(self, n_bytes: int) -> None:
        """Allow the client as many bytes more; it is told when they are worth a frame."""
        self._n_taken += n_bytes
        if self._n_taken >= STREAM_WINDOW_BYTES // 2 and self.is_receiving and self.is_open:
            self._connection.sender.write(encode_window_update(self.id, self._n_taken))
            self._connection.has_sent()
            self._window += self._n_taken
            self._n_taken = 0

    def fail(self, code: ErrorCode) -> None:
        """End the stream at once, in both directions, and the work for it."""
        self.lose()
        if self.is_open:
            self._connection.sender.write(encode_reset(self.id, code))
            self.close()

    def sent_tail(self) -> None:
        """Take note that the response is sent."""
        if self.is_receiving:
            # "A server MAY request that the client abort transmission of a request without error by
            # sending a RST_STREAM with an error code of NO_ERROR". Source: RFC 9113, 8.1.
            self._connection.sender.write(encode_reset(self.id, ErrorCode.NO_ERROR))
        self.close()

    def close(self) -> None:
        """Forget the stream: nothing is sent on it any more."""
        self.is_open = self.is_receiving = self.is_amid_message = False
        self.outbox.clear()
        self.wake()
        self._connection.forget(self)

    def wake(self) -> None:
        """Let go on who waits for the outbox."""
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
