"""Protobuf's variable-length integers.

Source: https://protobuf.dev/programming-guides/encoding/#varints
"""

from typing import Final

# "ten bytes": 64 bits, 7 in each.
_MAX_SHIFT: Final = 63


def encode_varint(value: int) -> bytes:
    """Give the bytes of a number of 0 or more."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Read a number at a position.

    Returns:
        The number, and the position after it.

    Raises:
        IndexError: The data ends inside the number.
        ValueError: It has more than ten bytes.
    """
    value = 0
    for shift in range(0, _MAX_SHIFT + 1, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a varint of more than ten bytes")
