"""The JSON value of a body, and the reason why there is none."""

import pytest

from kserve.errors import InvalidInput
from kserve.protocol.codec import json_body
from kserve.protocol.infer_type import InferRequest


@pytest.mark.parametrize(
    ("body", "position"),
    [
        pytest.param(b"\xff", 0, id="at once"),
        pytest.param(b'{"instances":["Bj\xf8rn"]}', 17, id="Latin-1"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', 6, id="half a surrogate pair"),
    ],
)
def test_says_where_a_body_is_no_utf_8(body: bytes, position: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        json_body.parse(body)

    assert caught.value.reason == (f"Unrecognized request format: invalid UTF-8 at byte {position}")


def test_a_request_from_bytes_says_so_too() -> None:
    with pytest.raises(InvalidInput, match="invalid UTF-8 at byte 7"):
        InferRequest.from_bytes(b'{"id":"\xff"}', 10, "m")
