"""Answers of HTTP/1.1 as a load generator reads them: the least that finds where one ends."""

import re
import socket
from dataclasses import dataclass
from typing import Final

_END_OF_HEAD: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_JSON_LENGTH: Final = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)
_CLOSES: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK: Final = b"0\r\n\r\n"
_STATUS: Final = slice(9, 12)


class UnreadableAnswer(Exception):
    """What came is no answer of HTTP/1.1 to one request."""


@dataclass(slots=True)
class Answer:
    """One answer.

    Attributes:
        head: From the status line to the last header, without the empty line.
        body: The whole body.
    """

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.head[_STATUS])

    @property
    def closes(self) -> bool:
        """Whether the server closes the connection behind it."""
        return _CLOSES.search(self.head) is not None

    @property
    def json_length(self) -> int | None:
        """Bytes of the JSON part; None where the whole body is JSON."""
        match = _JSON_LENGTH.search(self.head)
        return int(match[1]) if match else None


class AnswerReader:
    """Cuts the bytes of a connection into answers, with a Content-Length or chunked."""

    __slots__ = ("_head", "_missing", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._head: bytes | None = None
        # Of the body; None for a chunked one.
        self._missing: int | None = None

    def feed(self, data: bytes) -> Answer | None:
        """Take what came; give the answer if it is whole now.

        The next request must not be sent before, so that nothing comes behind an answer.

        Raises:
            UnreadableAnswer: The head does not tell where the body ends, a chunk is none, or more
                came than the answer.
        """
        self._pieces.append(data)
        if self._head is None and not self._take_head():
            return None
        body = self._take_body(self._pieces[-1])
        if body is None:
            return None
        assert self._head is not None
        answer, self._head = Answer(self._head, body), None
        self._pieces.clear()
        return answer

    def _take_head(self) -> bool:
        data = self._joined()
        end = data.find(_END_OF_HEAD)
        if end < 0:
            return False
        self._head = data[:end]
        self._missing = _body_length(self._head)
        self._pieces = [data[end + len(_END_OF_HEAD) :]]
        return True

    def _take_body(self, last: bytes) -> bytes | None:
        if self._missing is None:
            # Looked into only where it may be the end: chunks may be many.
            tail = last if len(last) >= len(_LAST_CHUNK) else self._joined()
            return join_chunks(self._joined()) if tail.endswith(_LAST_CHUNK) else None
        self._missing -= len(last)
        if self._missing < 0:
            raise UnreadableAnswer(f"{-self._missing} bytes too many behind {self._head!r}")
        return None if self._missing else self._joined()

    def _joined(self) -> bytes:
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]


def ask_once(port: int, request: bytes, timeout_s: float = 60) -> Answer:
    """Send a whole request to 127.0.0.1 over a new connection and read its answer.

    Raises:
        UnreadableAnswer: What came is no answer, or the connection was closed before its end.
        OSError: Nobody listens, or nothing came in time.
    """
    reader = AnswerReader()
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.sendall(request)
        while data := connection.recv(1 << 16):
            answer = reader.feed(data)
            if answer is not None:
                return answer
    raise UnreadableAnswer("the connection was closed before the end of the answer")


def join_chunks(data: bytes) -> bytes | None:
    """Give the body that chunks make, which have no trailers; None if the last one is not there.

    Raises:
        UnreadableAnswer: A chunk does not begin with its size.
    """
    parts: list[bytes] = []
    start = 0
    while start < len(data):
        end = data.find(b"\r\n", start)
        try:
            size = int(data[start:end], 16)
        except ValueError as exc:
            raise UnreadableAnswer(f"no size of a chunk: {data[start:end]!r}") from exc
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        start = end + 2 + size + 2
    return None


def _body_length(head: bytes) -> int | None:
    match = _LENGTH.search(head)
    if match is not None:
        return int(match[1])
    if _CHUNKED.search(head) is None:
        raise UnreadableAnswer(f"neither a Content-Length nor chunks in {head!r}")
    return None
