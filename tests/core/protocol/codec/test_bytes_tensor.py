"""The binary form of BYTES, against literal bytes and tritonclient."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from kserve.errors import InvalidInput
from kserve.protocol.codec.bytes_tensor import decode_bytes_tensor, encode_bytes_tensor

CODEC_SETTINGS = settings(derandomize=True, max_examples=100, deadline=None)


def objects(elements: list[object]) -> np.ndarray:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


@pytest.mark.parametrize(
    ("array", "raw"),
    [
        pytest.param(objects([]), b"", id="no elements"),
        pytest.param(objects([b""]), b"\x00\x00\x00\x00", id="empty element"),
        pytest.param(objects([b"a\x00b"]), b"\x03\x00\x00\x00a\x00b", id="bytes with NUL"),
        pytest.param(objects(["é"]), b"\x02\x00\x00\x00\xc3\xa9", id="str as UTF-8"),
        pytest.param(objects([b"\xff"]), b"\x01\x00\x00\x00\xff", id="bytes that are not UTF-8"),
        pytest.param(objects([7]), b"\x01\x00\x00\x007", id="number as text"),
        pytest.param(objects([bytearray(b"a")]), b"\x01\x00\x00\x00a", id="bytearray"),
        pytest.param(objects([np.str_("a")]), b"\x01\x00\x00\x00a", id="numpy string"),
        pytest.param(np.array(["a", "bc"]), b"\x01\x00\x00\x00a\x02\x00\x00\x00bc", id="unicode"),
        pytest.param(np.array([b"a"]), b"\x01\x00\x00\x00a", id="byte strings"),
        pytest.param(
            np.array([["a", "b"], ["c", "d"]], dtype=np.object_).T,
            b"".join(b"\x01\x00\x00\x00" + letter for letter in (b"a", b"c", b"b", b"d")),
            id="row-major, not in memory order",
        ),
    ],
)
def test_encodes_each_element_behind_its_length(array: np.ndarray, raw: bytes) -> None:
    assert encode_bytes_tensor(array) == raw


def test_refuses_to_encode_half_a_surrogate_pair() -> None:
    with pytest.raises(InvalidInput, match="a string of a BYTES tensor is no valid Unicode"):
        encode_bytes_tensor(objects(["\ud800"]))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(
            b"\x01\x00\x00",
            "BYTES data is truncated: expected a 4-byte length at byte 0, got 3 bytes",
            id="within a length",
        ),
        pytest.param(
            b"\x01\x00\x00\x00a\x02\x00\x00\x00b",
            "BYTES data is truncated: element 1 has a length of 2 bytes, got 1 bytes",
            id="within an element",
        ),
        pytest.param(
            b"\xff\xff\xff\xff",
            "BYTES data is truncated: element 0 has a length of 4294967295 bytes, got 0 bytes",
            id="length far beyond the end",
        ),
    ],
)
def test_refuses_data_that_ends_early(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_bytes_tensor(raw)

    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_decodes_any_buffer_to_bytes(kind: type) -> None:
    array = decode_bytes_tensor(kind(b"\x01\x00\x00\x00a\x00\x00\x00\x00"))

    assert array.dtype == np.object_
    assert array.tolist() == [b"a", b""]


@CODEC_SETTINGS
@given(st.lists(st.binary(max_size=20), max_size=20))
def test_decoding_gives_back_what_was_encoded(elements: list[bytes]) -> None:
    assert decode_bytes_tensor(encode_bytes_tensor(objects([*elements]))).tolist() == elements


@CODEC_SETTINGS
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=20))
def test_agrees_with_tritonclient_in_both_directions(elements: list[bytes]) -> None:
    array = objects([*elements])

    raw = serialize_byte_tensor(array).item()

    assert encode_bytes_tensor(array) == raw
    assert decode_bytes_tensor(raw).tolist() == deserialize_bytes_tensor(raw).tolist()


@CODEC_SETTINGS
@given(st.binary(max_size=64))
def test_any_bytes_give_elements_or_invalid_input(raw: bytes) -> None:
    try:
        array = decode_bytes_tensor(raw)
    except InvalidInput:
        return

    assert encode_bytes_tensor(array) == raw
