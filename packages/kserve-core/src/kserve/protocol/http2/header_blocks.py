"""Blocks of compressed headers, in both directions; no I/O.

Source: RFC 7541, https://www.rfc-editor.org/rfc/rfc7541, and RFC 9113, 8.2 and 8.3.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from hpack import Decoder, HPACKError

from kserve.protocol.http2.frames import ConnectionViolation, ErrorCode, StreamViolation

Header = tuple[bytes, bytes]
Head = TypeVar("Head")

# As over REST.
MAX_HEADER_LIST_BYTES: Final = 64 << 10

# A client has a few kinds of requests; of one that makes each anew none is found again.
_MAX_KEPT: Final = 32

# Heads of a few hundred bytes are common, those of thousands are not sent often.
_MAX_KEPT_BYTES: Final = 4 << 10

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_UNFIT_VALUE: Final = re.compile(rb"[\0\r\n]")

# "any message containing connection-specific header fields MUST be treated as malformed"
_OF_CONNECTIONS: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path"))


class RequestHead(NamedTuple):
    """The head of a request.

    Attributes:
        method: `:method`.
        path: `:path`.
        fields: The other headers, in their order.
    """

    method: bytes
    path: bytes
    fields: list[Header]


class HeaderBlocks(Generic[Head]):
    """Reads the blocks of one connection, each of which may build on those before it.

    Most blocks repeat one that came before and leave the table of the compression as it is: what
    such a block means is found by its bytes.

    Args:
        make_head: Makes what is kept of the head of a request.
    """

    def __init__(self, make_head: Callable[[RequestHead], Head]) -> None:
        self._make_head = make_head
        self._decoder = Decoder(max_header_list_size=MAX_HEADER_LIST_BYTES)
        self._kept: dict[bytes, Head] = {}
        self._n_changes = 0

    def read(self, block: bytes) -> Head:
        """Give what `make_head` makes of a block.

        Raises:
            ConnectionViolation: It cannot be decompressed, and so nor can any after it.
            StreamViolation: It is no head of a request.
        """
        kept = self._kept.get(block)
        if kept is not None:
            return kept
        n_changes = self._n_changes
        head = self._make_head(_read_request(self.decode(block)))
        is_same = n_changes == self._n_changes
        if is_same and len(self._kept) < _MAX_KEPT and len(block) <= _MAX_KEPT_BYTES:
            self._kept[block] = head
        return head

    def decode(self, block: bytes) -> list[Header]:
        """Decompress a block.

        Raises:
            ConnectionViolation: As `read`.
        """
        table = self._decoder.header_table
        first, size = _first(table.dynamic_entries), table.maxsize
        try:
            headers = [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        except (HPACKError, IndexError) as exc:
            raise ConnectionViolation(ErrorCode.COMPRESSION_ERROR, str(exc)) from exc
        # Entries are only ever added before the first.
        if _first(table.dynamic_entries) is not first or table.maxsize != size:
            self._n_changes += 1
            self._kept.clear()
        return headers


def _first(entries: Sequence[Any]) -> Any:
    return entries[0] if entries else None


def encode_headers(headers: Iterable[Header]) -> bytes:
    """Give a block that says nothing for later ones: it is right in any place, and can be kept."""
    return b"".join(
        # "Literal Header Field without Indexing - New Name". Source: RFC 7541, 6.2.2.
        b"".join((b"\0", _encode_length(name), name, _encode_length(value), value))
        for name, value in headers
    )


def _encode_length(text: bytes) -> bytes:
    """Give the length of a text as an integer with a prefix of 7 bits. Source: RFC 7541, 5.1."""
    length = len(text)
    if length < 0x7F:
        return length.to_bytes(1, "big")
    length -= 0x7F
    encoded = bytearray((0x7F,))
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def _read_request(headers: list[Header]) -> RequestHead:
    """Part the pseudo-headers from the others.

    Raises:
        StreamViolation: The headers are no head of a request.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[Header] = []
    for name, value in headers:
        if name[:1] == b":":
            if fields or name in pseudo or name not in _PSEUDO:
                raise _malformed(f"pseudo-header {name!r} is unknown, twice, or not at the start")
            pseudo[name] = value
        else:
            _check_field(name, value)
            fields.append((name, value))
    if not pseudo.keys() >= {b":method", b":scheme", b":path"}:
        raise _malformed(f"expected :method, :scheme and :path, got {sorted(pseudo)}")
    return RequestHead(pseudo[b":method"], pseudo[b":path"], fields)


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name) or _UNFIT_VALUE.search(value):
        raise _malformed(f"header {name!r} has characters that no header may have")
    if name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
        raise _malformed(f"header {name!r} is not for HTTP/2")


def _malformed(reason: str) -> StreamViolation:
    return StreamViolation(ErrorCode.PROTOCOL_ERROR, reason)
