"""Server-sent events out of a stream of bytes, however it is cut into pieces; does no I/O.

Source: HTML, "Server-sent events", 9.2.6, https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from typing import Final

# CRLF, LF and CR all end a line, also mixed.
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")

# Left out at the beginning of a stream.
_BOM: Final = b"\xef\xbb\xbf"

# 16 MiB, as a chunk with the log probabilities of a whole prompt may have some. What is longer is
# no event, and would fill the memory.
MAX_EVENT_BYTES: Final = 16 << 20


class EventReader:
    """Reads the data of events; names, ids and comments are left out, as OpenAI's events have none.

    Args:
        max_bytes: What an event may have.
    """

    __slots__ = (
        "_data",
        "_follows_cr",
        "_is_first",
        "_max_bytes",
        "_n_data_bytes",
        "_n_piece_bytes",
        "_pieces",
    )

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        # The values of the event's lines so far, and the pieces of the line that has not ended.
        self._data: list[bytes] = []
        self._pieces: list[bytes] = []
        self._n_data_bytes = self._n_piece_bytes = 0
        self._is_first = True
        # The last piece ended with a CR: a LF at the beginning of the next one belongs to it.
        self._follows_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next piece, and give the data of the events that end in it.

        Raises:
            ValueError: An event is too long.
        """
        if self._follows_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._follows_cr = False
        if not piece:
            return []
        self._follows_cr = piece.endswith(b"\r")
        lines = _LINE_END.split(piece)
        rest = lines.pop()
        events: list[bytes] = []
        for line in lines:
            if self._pieces:
                line = b"".join((*self._pieces, line))
                self._pieces.clear()
                self._n_piece_bytes = 0
            self._end_line(line, events)
        if rest:
            self._pieces.append(rest)
            self._n_piece_bytes += len(rest)
            self._check_length()
        return events

    def finish(self) -> list[bytes]:
        """Give the data of an event that lacks the empty line at its end.

        The standard drops it. A server that forgets the line has meant it.
        """
        return self.feed(b"\n\n")

    def _end_line(self, line: bytes, events: list[bytes]) -> None:
        if self._is_first:
            line = line.removeprefix(_BOM)
            self._is_first = False
        if not line:
            data = b"\n".join(self._data)
            self._data.clear()
            self._n_data_bytes = 0
            if data:
                events.append(data)
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            # One space after the colon is none of the value.
            self._data.append(value.removeprefix(b" "))
            self._n_data_bytes += len(value)
            self._check_length()

    def _check_length(self) -> None:
        if self._n_data_bytes + self._n_piece_bytes > self._max_bytes:
            raise ValueError(f"an event of more than {self._max_bytes} bytes")
