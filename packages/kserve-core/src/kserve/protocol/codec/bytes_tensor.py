"""The binary form of BYTES elements, in both directions.

Source: Open Inference Protocol v2, "Binary tensor data": each element is its length in bytes as a
4-byte little-endian unsigned integer, then the bytes; elements follow in row-major order.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import struct
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InvalidInput

_LENGTH: Final = struct.Struct("<I")


def encode_bytes_tensor(array: NDArray[Any]) -> bytes:
    """Join the elements of `array`, each behind its length.

    Args:
        array: Any shape, of strings, bytes or objects. Bytes go as they are, anything else as the
            UTF-8 form of its `str()`.

    Raises:
        InvalidInput: A string holds half a surrogate pair, which UTF-8 cannot express.
    """
    elements = encode_elements(array)
    lengths = map(_LENGTH.pack, map(len, elements))
    return b"".join(chain.from_iterable(zip(lengths, elements, strict=True)))


def encode_elements(array: NDArray[Any]) -> list[bytes]:
    """Give the bytes of each element, row-major; as `encode_bytes_tensor`, without the lengths.

    Raises:
        InvalidInput: A string holds half a surrogate pair, which UTF-8 cannot express.
    """
    try:
        return [_element_bytes(element) for element in array.ravel().tolist()]
    except UnicodeEncodeError as error:
        raise InvalidInput(f"a string of a BYTES tensor is no valid Unicode: {error}") from error


def decode_bytes_tensor(raw: bytes | bytearray | memoryview) -> NDArray[np.object_]:
    """Split `raw` into its elements.

    Returns:
        `bytes` objects, shape (n_elements,).

    Raises:
        InvalidInput: `raw` ends inside a length or inside an element.
    """
    buffer = bytes(raw)
    end = len(buffer)
    elements: list[bytes] = []
    position = 0
    while position < end:
        start = position + _LENGTH.size
        if start > end:
            raise InvalidInput(
                f"BYTES data is truncated: expected a 4-byte length at byte {position}, "
                f"got {end - position} bytes"
            )
        position = start + _LENGTH.unpack_from(buffer, position)[0]
        if position > end:
            raise InvalidInput(
                f"BYTES data is truncated: element {len(elements)} has a length of "
                f"{position - start} bytes, got {end - start} bytes"
            )
        elements.append(buffer[start:position])
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


def _element_bytes(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, bytearray | memoryview):
        return bytes(element)
    return str(element).encode()
