"""Vectors in fewer dimensions, and in the encodings of the API."""

import base64
from typing import Literal

import msgspec
import numpy as np
import pytest

from kserve.protocol.rest.openai import OpenAIError
from kserve.protocol.rest.openai.vectors import encodable, truncated

VECTORS = np.array([[3, 4, 12], [0, 0, 1]], np.float32)


def test_keeps_all_dimensions_as_they_are() -> None:
    assert truncated(VECTORS, None) is VECTORS
    assert truncated(VECTORS, 3) is VECTORS


def test_shorter_vectors_have_the_length_one() -> None:
    shorter = truncated(VECTORS, 2)

    assert shorter.dtype == np.float32
    np.testing.assert_allclose(shorter, np.array([[0.6, 0.8], [0, 0]]), rtol=1e-6)


def test_shorter_vectors_may_keep_their_length() -> None:
    np.testing.assert_array_equal(truncated(VECTORS, 1, normalize=False), [[3], [0]])


@pytest.mark.parametrize("dimensions", [0, 4])
def test_refuses_dimensions_that_are_not_there(dimensions: int) -> None:
    with pytest.raises(OpenAIError, match=f"expected 1 to 3, got {dimensions}") as caught:
        truncated(VECTORS, dimensions)

    assert caught.value.response.error.param == "dimensions"


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4", np.int32], ids=str)
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_any_numbers_become_little_endian_float32(
    dtype: str, encoding_format: Literal["float", "base64"]
) -> None:
    encoded = msgspec.json.encode(
        encodable(np.array([1, 2, 3], dtype)[::2], encoding_format),
        enc_hook=lambda array: array.tolist(),
    )

    expected = np.array([1, 3], "<f4")
    if encoding_format == "base64":
        assert encoded == b'"%b"' % base64.b64encode(expected.tobytes())
    else:
        assert encoded == b"[1.0,3.0]"


def test_what_is_encoded_already_stays() -> None:
    assert encodable("AAAA", "base64") == "AAAA"
    assert encodable([1.5], "float") == [1.5]
