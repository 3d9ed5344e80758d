"""Compressed request and response bodies: gzip and deflate.

Source: RFC 9110, "Content Codings" and "Accept-Encoding".
https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1
"""

import zlib
from typing import Final

from kserve.config import DEFAULT_MAX_DECOMPRESSED_BYTES
from kserve.cpu import cpu_count
from kserve.errors import InvalidInput, RequestTooLarge, UnsupportedEncoding
from kserve.executor import ModelThreads

RawHeaders = list[tuple[bytes, bytes]]

# One TCP segment: a body below it travels as fast as a smaller one.
MIN_COMPRESSED_BYTES: Final = 1400

# What is compressed on the event loop. On one core this takes 0.2 to 0.3 ms, a thread's switch
# 0.1 ms.
_MAX_COMPRESSED_ON_LOOP_BYTES: Final = 32 << 10

# What is decompressed on the event loop; it can become a thousand times as much, in about 1 ms.
_MAX_DECOMPRESSED_ON_LOOP_BYTES: Final = 1 << 10

# Level 1 takes 10 to 15 ms for a megabyte of numbers and leaves half of it; level 6 takes 80 ms
# and leaves 45 %.
_LEVEL: Final = 1

SUPPORTED: Final = ("gzip", "deflate", "identity")

# The first bytes tell nothing certain, so `deflate` is tried as zlib has it, which is the standard,
# and then without the wrapping, as some clients send it.
_WINDOW_BITS: Final = {b"gzip": (31,), b"x-gzip": (31,), b"deflate": (15, -15)}

_PIECE_BYTES: Final = 64 << 10

# "A gzip file consists of a series of members"; each costs as much as it may be small.
_MAX_GZIP_MEMBERS: Final = 64


class Compression:
    """Reads compressed bodies and compresses responses, large ones on threads of its own.

    Attributes:
        max_decompressed_bytes: What a request body may become.
    """

    def __init__(self, max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES) -> None:
        self.max_decompressed_bytes = max_decompressed_bytes
        self._threads = ModelThreads("compression", max(cpu_count(), 1))

    async def decompress(self, body: bytes, encoding: bytes, room: int | None = None) -> bytes:
        """Give what a request body was before it was compressed.

        Args:
            body: The body.
            encoding: Its Content-Encoding.
            room: What there is room for, if that is less than the limit.

        Raises:
            UnsupportedEncoding: It is none that is read.
            InvalidInput: The body is not compressed so, or incomplete.
            RequestTooLarge: The body becomes larger than the limit or the room.
        """
        limit = self.max_decompressed_bytes
        if room is not None:
            limit = min(limit, room)
        if len(body) <= _MAX_DECOMPRESSED_ON_LOOP_BYTES:
            return decompress(body, encoding, limit)
        return await self._threads.run(decompress, body, encoding, limit)

    async def compress(
        self, body: bytes, headers: RawHeaders, accepted: bytes
    ) -> tuple[bytes, RawHeaders]:
        """Compress a response body if it is text, large enough, and the client reads it.

        Args:
            body: The body.
            headers: The response's, lower-case.
            accepted: The request's Accept-Encoding; empty without one.

        Returns:
            The body and its headers, the same ones if it is not compressed.
        """
        if len(body) < MIN_COMPRESSED_BYTES or not _is_compressible(headers):
            return body, headers
        headers = [*headers, (b"vary", b"accept-encoding")]
        encoding = choose(accepted)
        if encoding is None:
            return body, headers
        if len(body) <= _MAX_COMPRESSED_ON_LOOP_BYTES:
            compressed = _deflate(body, encoding)
        else:
            compressed = await self._threads.run(_deflate, body, encoding)
        return compressed, [*headers, (b"content-encoding", encoding)]


def decompress(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Decompress a body; stops at `max_bytes`.

    Raises:
        UnsupportedEncoding, InvalidInput, RequestTooLarge: As `Compression.decompress`.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name not in _WINDOW_BITS:
        raise UnsupportedEncoding(encoding.decode("latin-1")[:64], SUPPORTED)
    failures = []
    for window_bits in _WINDOW_BITS[name]:
        try:
            return _inflate(body, name.decode(), window_bits, max_bytes)
        except zlib.error as error:
            failures.append(error)
    raise InvalidInput(f"the body is no {name.decode()} data: {failures[0]}") from failures[0]


def choose(accepted: bytes) -> bytes | None:
    """Choose the coding of a response; None is none.

    Args:
        accepted: The request's Accept-Encoding; entries that cannot be read do not count.
    """
    weights = dict(map(_read_weight, accepted.lower().split(b",")))
    # "An asterisk [...] matches any available content coding not explicitly listed"
    other = weights.get(b"*", 0.0)
    gzip = weights.get(b"gzip", weights.get(b"x-gzip", other))
    deflate = weights.get(b"deflate", other)
    best = max(gzip, deflate)
    if best <= 0 or weights.get(b"identity", 0.0) > best:
        return None
    return b"gzip" if gzip == best else b"deflate"


def _read_weight(entry: bytes) -> tuple[bytes, float]:
    coding, _, parameter = entry.partition(b";")
    name, _, value = parameter.partition(b"=")
    if not parameter:
        return coding.strip(), 1.0
    try:
        weight = float(value) if name.strip() == b"q" else 0.0
    except ValueError:
        weight = 0.0
    # NaN is no weight either.
    return coding.strip(), weight if 0 <= weight <= 1 else 0.0


def _inflate(body: bytes, name: str, window_bits: int, max_bytes: int) -> bytes:
    """Decompress every member of a body.

    Raises:
        zlib.error: The body is not compressed so.
        InvalidInput, RequestTooLarge: As `decompress`.
    """
    output = bytearray()
    rest = memoryview(body)
    for _ in range(_MAX_GZIP_MEMBERS if name.endswith("gzip") else 1):
        rest = rest[_inflate_member(rest, name, window_bits, max_bytes, output) :]
        if not rest:
            return bytes(output)
    raise InvalidInput(f"the body goes on for {len(rest)} bytes after the end of its {name} data")


def _inflate_member(
    data: memoryview, name: str, window_bits: int, max_bytes: int, output: bytearray
) -> int:
    """Append what one member becomes to `output`, and give the bytes that it takes."""
    engine = zlib.decompressobj(window_bits)
    position = 0
    while not engine.eof:
        piece = data[position : position + _PIECE_BYTES]
        if not piece:
            raise InvalidInput(f"the body ends inside its {name} data, after {len(data)} bytes")
        position += len(piece)
        # One byte beyond the limit is enough to know.
        output += engine.decompress(piece, max_bytes + 1 - len(output))
        if len(output) > max_bytes:
            raise RequestTooLarge(
                f"the body becomes larger than {max_bytes} bytes when decompressed "
                "(--max_decompressed_bytes)"
            )
    return position - len(engine.unused_data)


def _deflate(body: bytes, encoding: bytes) -> bytes:
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding][0])
    return engine.compress(body) + engine.flush()


def _is_compressible(headers: RawHeaders) -> bool:
    content_type = b""
    for name, value in headers:
        if name == b"content-encoding":
            return False
        if name == b"content-type":
            content_type = value.partition(b";")[0].strip().lower()
    return content_type.startswith(b"text/") or content_type.endswith(b"json")
