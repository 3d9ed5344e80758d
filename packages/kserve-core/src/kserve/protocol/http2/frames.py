"""Frames of HTTP/2, their numbers and their bytes; no I/O.

Source: RFC 9113, https://www.rfc-editor.org/rfc/rfc9113
"""

from collections.abc import Iterator, Mapping
from enum import IntEnum
from struct import Struct
from typing import Final

# "The client connection preface starts with a sequence of 24 octets". Source: RFC 9113, 3.4.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Kinds of frames. Plain numbers: they are compared for each frame. Source: RFC 9113, 6.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

# Flags.
ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

# Length (as two numbers), kind, flags, stream.
FRAME_HEAD: Final = Struct(">HBBBI")
HEAD_BYTES: Final = FRAME_HEAD.size

# The highest bit of a stream's number, and of a window, is reserved.
MAX_31_BIT: Final = (1 << 31) - 1

# What holds until a SETTINGS frame says otherwise. Source: RFC 9113, 6.5.2.
DEFAULT_WINDOW_BYTES: Final = 65_535
MIN_FRAME_BYTES: Final = 16_384
MAX_FRAME_BYTES: Final = (1 << 24) - 1

# As nghttp2's. A change of the window is one of all streams.
MAX_SETTINGS: Final = 32

# Of the reason of a GOAWAY, which may quote what came.
_MAX_REASON_BYTES: Final = 200

_SETTING: Final = Struct(">HI")
_NUMBER: Final = Struct(">I")
_TWO_NUMBERS: Final = Struct(">II")


class Setting(IntEnum):
    """What a SETTINGS frame can say. Source: RFC 9113, 6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class ErrorCode(IntEnum):
    """Why a stream or a connection ends. Source: RFC 9113, 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class Violation(Exception):
    """The peer breaks a rule of the protocol.

    Attributes:
        code: What the peer is told.
        reason: Which rule, for its log.
    """

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class ConnectionViolation(Violation):
    """Nothing on the connection can go on."""


class StreamViolation(Violation):
    """One stream cannot go on."""


def encode_head(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """Give the first nine bytes of a frame."""
    return FRAME_HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def decode_head(data: memoryview, start: int) -> tuple[int, int, int, int]:
    """Give length, kind, flags and stream of the frame that begins at `start`."""
    high, low, kind, flags, stream_id = FRAME_HEAD.unpack_from(data, start)
    return high << 8 | low, kind, flags, stream_id & MAX_31_BIT


def encode_frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Give a frame."""
    return encode_head(kind, flags, stream_id, len(payload)) + payload


def encode_block(stream_id: int, block: bytes, flags: int, max_bytes: int) -> bytes:
    """Give the frames of a block of headers.

    Args:
        stream_id: Their stream.
        block: The block.
        flags: `END_STREAM` or 0.
        max_bytes: What one frame may have.
    """
    if len(block) <= max_bytes:
        return encode_frame(HEADERS, flags | END_HEADERS, stream_id, block)
    encoded = [encode_frame(HEADERS, flags, stream_id, block[:max_bytes])]
    for start in range(max_bytes, len(block), max_bytes):
        is_last = start + max_bytes >= len(block)
        piece = block[start : start + max_bytes]
        encoded.append(encode_frame(CONTINUATION, END_HEADERS if is_last else 0, stream_id, piece))
    return b"".join(encoded)


def encode_settings(settings: Mapping[Setting, int]) -> bytes:
    """Give a SETTINGS frame."""
    payload = b"".join(_SETTING.pack(*item) for item in settings.items())
    return encode_frame(SETTINGS, 0, 0, payload)


def encode_window_update(stream_id: int, increment: int) -> bytes:
    """Give a WINDOW_UPDATE frame; stream 0 is the connection."""
    return encode_frame(WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(increment))


def encode_reset(stream_id: int, code: ErrorCode) -> bytes:
    """Give a RST_STREAM frame."""
    return encode_frame(RST_STREAM, 0, stream_id, _NUMBER.pack(code))


def encode_goaway(last_stream_id: int, code: ErrorCode, reason: str = "") -> bytes:
    """Give a GOAWAY frame.

    Args:
        last_stream_id: Streams above it were not looked at: the client may send them elsewhere.
        code: Why.
        reason: Why, in words, for whoever looks at the client's log.
    """
    text = reason.encode()[:_MAX_REASON_BYTES]
    return encode_frame(GOAWAY, 0, 0, _TWO_NUMBERS.pack(last_stream_id, code) + text)


def decode_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Give the settings of a frame, in their order.

    Raises:
        ConnectionViolation: They are no whole number of settings, or too many.
    """
    if len(payload) > MAX_SETTINGS * _SETTING.size:
        raise ConnectionViolation(ErrorCode.ENHANCE_YOUR_CALM, f"SETTINGS of {len(payload)} bytes")
    if len(payload) % _SETTING.size:
        raise ConnectionViolation(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    return _SETTING.iter_unpack(payload)


def decode_number(payload: bytes, kind: str) -> int:
    """Give the only number of a frame.

    Raises:
        ConnectionViolation: The frame has not the four bytes of it.
    """
    if len(payload) != _NUMBER.size:
        raise ConnectionViolation(ErrorCode.FRAME_SIZE_ERROR, f"{kind} of {len(payload)} bytes")
    number: int = _NUMBER.unpack(payload)[0]
    return number


def unpad(payload: bytes, flags: int) -> bytes:
    """Give a HEADERS frame's block of headers.

    Raises:
        ConnectionViolation: There is more padding than frame.
    """
    start, padding = 0, 0
    if flags & PADDED:
        start, padding = 1, payload[0] if payload else 1
    if flags & HAS_PRIORITY:
        start += 5
    if start + padding > len(payload):
        raise ConnectionViolation(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return payload[start : len(payload) - padding]
