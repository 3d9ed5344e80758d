"""Cuts the messages of a call out of the data of its stream; no I/O.

"The repeated sequence of Length-Prefixed-Message items is delivered in DATA frames.
Length-Prefixed-Message → Compressed-Flag Message-Length Message". Source:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

import numpy as np

from kserve.errors import InvalidInput

PREFIX: Final = Struct(">BI")

# Below this size a message is `bytes`, which is what protobuf reads; copying it is nothing.
_MIN_VIEWED_BYTES: Final = 64 << 10


class Message(NamedTuple):
    """One message.

    Attributes:
        is_compressed: Whether it is compressed as the call's `grpc-encoding` says.
        data: Its bytes; a view of memory of its own if there are many.
    """

    is_compressed: bool
    data: bytes | memoryview


class MessageReader:
    """Reads the messages of one call, large ones right into the memory where they stay.

    Attributes:
        messages: Those that are complete, until they are taken.
    """

    __slots__ = ("_is_compressed", "_n_filled", "_prefix", "_target", "messages")

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self._prefix = b""
        self._is_compressed = False
        self._target: memoryview | None = None
        self._n_filled = 0

    @property
    def is_amid_message(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._target is not None or bool(self._prefix)

    def receive(self, data: memoryview, admit: Callable[[int], None]) -> None:
        """Take data, which is not kept.

        Args:
            data: The data.
            admit: Gets the length of each message before anything of it is kept; what it raises
                ends the call.

        Raises:
            InvalidInput: It is no message.
            Exception: Whatever `admit` raises.
        """
        position = 0
        while position < len(data):
            if self._target is None:
                position = self._begin(data, position, admit)
            else:
                n_bytes = min(len(self._target) - self._n_filled, len(data) - position)
                end = self._n_filled + n_bytes
                self._target[self._n_filled : end] = data[position : position + n_bytes]
                position += n_bytes
                self.placed(n_bytes)

    def place(self) -> memoryview | None:
        """Give where the rest of the message at hand goes; None between two."""
        return None if self._target is None else self._target[self._n_filled :]

    def placed(self, n_bytes: int) -> None:
        """Take note that so many bytes were put into `place`."""
        assert self._target is not None
        self._n_filled += n_bytes
        if self._n_filled == len(self._target):
            target, self._target = self._target, None
            self._add(target)

    def clear(self) -> None:
        """Let go of all messages, and of what there is of the one at hand."""
        self._prefix = b""
        self._target = None
        self.messages.clear()

    def _begin(self, data: memoryview, position: int, admit: Callable[[int], None]) -> int:
        """Take the prefix of a message, and all of it if it is there; gives where data goes on."""
        start = position + PREFIX.size - len(self._prefix)
        prefix = self._prefix + data[position:start]
        if len(prefix) < PREFIX.size:
            self._prefix = prefix
            return len(data)
        self._prefix = b""
        flag, length = PREFIX.unpack(prefix)
        if flag > 1:
            raise InvalidInput(f"expected a message to begin with 0 or 1, got {flag}")
        admit(length)
        self._is_compressed = flag == 1
        end: int = start + length
        if end <= len(data):
            self.messages.append(Message(self._is_compressed, bytes(data[start:end])))
            return end
        # Not filled with zeros first, unlike a bytearray.
        self._target = np.empty(length, np.uint8).data
        self._n_filled = 0
        return start

    def _add(self, target: memoryview) -> None:
        data = target if len(target) >= _MIN_VIEWED_BYTES else bytes(target)
        self.messages.append(Message(self._is_compressed, data))
