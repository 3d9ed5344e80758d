"""What goes out over one connection, as far as the client's windows and the socket let it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from kserve.protocol.http2.frames import (
    DATA,
    DEFAULT_WINDOW_BYTES,
    MIN_FRAME_BYTES,
    encode_head,
)
from kserve.protocol.http2.stream import Stream

# What is copied once more to go to the system in one piece.
_MAX_JOINED_BYTES: Final = 64 << 10


class Sender:
    """Sends the frames of one connection.

    Args:
        transport: The connection.
        on_waiting: Called when a stream begins to wait.
        on_sent: Called when data is sent that had to wait.

    Attributes:
        window: How many bytes of data the client takes now, on all streams together.
        initial_window: What it takes on a new stream.
        max_frame_bytes: What it takes in one frame.
        is_paused: Whether the socket takes no more for now.
        waiting: The streams that have data to send.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        on_waiting: Callable[[], None],
        on_sent: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._on_waiting = on_waiting
        self._on_sent = on_sent
        self.write = transport.write
        self.window = DEFAULT_WINDOW_BYTES
        self.initial_window = DEFAULT_WINDOW_BYTES
        self.max_frame_bytes = MIN_FRAME_BYTES
        self.is_paused = False
        self.waiting: dict[int, Stream] = {}
        # Those of `waiting` that their own window does not hold up.
        self._ready: dict[int, Stream] = {}

    def send(self, stream: Stream, head: bytes, data: tuple[bytes, ...], tail: bytes) -> None:
        """Send on a stream, now or as soon as that is possible.

        Args:
            stream: The stream; it is told when the tail is sent.
            head: Frames that need no window.
            data: What goes into DATA frames.
            tail: The frame that ends the stream; empty if more follows.
        """
        n_bytes = sum(map(len, data))
        if not stream.outbox and (not n_bytes or self._can_send(stream, n_bytes)):
            stream.send_window -= n_bytes
            self.window -= n_bytes
            head_of_data = encode_head(DATA, 0, stream.id, n_bytes) if n_bytes else b""
            self._write(n_bytes, (head, head_of_data, *data, tail))
            if tail:
                stream.sent_tail()
            return
        if head:
            self.write(head)
        # An empty piece would wait for a window that it does not need.
        stream.outbox.extend(memoryview(piece) for piece in data if piece)
        if tail:
            stream.tail = tail
        if stream.id not in self.waiting:
            stream.moved_at = asyncio.get_running_loop().time()
            self.waiting[stream.id] = stream
            self._on_waiting()
        self.unblock(stream)

    def unblock(self, stream: Stream) -> None:
        """Go on with a stream whose window may have opened."""
        if stream.id in self.waiting and stream.send_window > 0:
            self._ready[stream.id] = stream
            self.pump()

    def unblock_all(self) -> None:
        """Go on with every stream whose window may have opened."""
        for stream in self.waiting.values():
            if stream.send_window > 0:
                self._ready[stream.id] = stream
        self.pump()

    def pump(self) -> None:
        """Send what windows and socket allow, a frame of each stream in turn."""
        while self._ready and self.window > 0 and not self.is_paused:
            stream_id = next(iter(self._ready))
            stream = self._ready.pop(stream_id)
            self._send_frame(stream)
            if not stream.outbox:
                del self.waiting[stream_id]
                self._finish(stream)
            elif stream.send_window > 0:
                # Behind the others.
                self._ready[stream_id] = stream

    def forget(self, stream: Stream) -> None:
        """Send nothing more of a stream."""
        self.waiting.pop(stream.id, None)
        self._ready.pop(stream.id, None)

    def _can_send(self, stream: Stream, n_bytes: int) -> bool:
        return n_bytes <= self._room(stream) and not self.is_paused

    def _room(self, stream: Stream) -> int:
        return min(stream.send_window, self.window, self.max_frame_bytes)

    def _send_frame(self, stream: Stream) -> None:
        room, n_bytes = self._room(stream), 0
        pieces: list[bytes | memoryview] = [b""]
        while stream.outbox and n_bytes < room:
            piece = stream.outbox.popleft()
            if len(piece) > room - n_bytes:
                stream.outbox.appendleft(piece[room - n_bytes :])
                piece = piece[: room - n_bytes]
            pieces.append(piece)
            n_bytes += len(piece)
        stream.send_window -= n_bytes
        self.window -= n_bytes
        stream.moved_at = asyncio.get_running_loop().time()
        pieces[0] = encode_head(DATA, 0, stream.id, n_bytes)
        self._write(n_bytes, pieces)
        self._on_sent()

    def _finish(self, stream: Stream) -> None:
        if stream.tail is None:
            stream.wake()
            return
        self.write(stream.tail)
        stream.sent_tail()

    def _write(self, n_bytes: int, pieces: Sequence[bytes | memoryview]) -> None:
        if n_bytes <= _MAX_JOINED_BYTES:
            self.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)
