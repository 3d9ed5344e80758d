"""Frames, read by a library that is not the server's."""

from collections.abc import Callable
from typing import Any

import pytest
from hpack import Decoder
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from kserve.protocol.http2 import frames
from kserve.protocol.http2.frames import ConnectionViolation, ErrorCode, Setting
from kserve.protocol.http2.header_blocks import encode_headers

NUMBERS = st.integers(0, frames.MAX_31_BIT)


def parse(data: bytes) -> list[Any]:
    parsed: list[Frame] = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        parsed.append(frame)
        data = data[9 + length :]
    return parsed


@given(st.dictionaries(st.sampled_from(Setting), st.integers(0, 2**32 - 1)))
def test_settings_are_read_as_they_were_made(settings: dict[Setting, int]) -> None:
    encoded = frames.encode_settings(settings)

    (frame,) = parse(encoded)

    assert isinstance(frame, SettingsFrame)
    assert frame.settings == settings
    assert dict(frames.decode_settings(encoded[9:])) == settings


@given(NUMBERS, st.integers(1, frames.MAX_31_BIT), st.sampled_from(ErrorCode), st.text(max_size=9))
def test_small_frames_are_read_as_they_were_made(
    stream_id: int, number: int, code: ErrorCode, text: str
) -> None:
    update, reset, goaway = parse(
        frames.encode_window_update(stream_id, number)
        + frames.encode_reset(number, code)
        + frames.encode_goaway(stream_id, code, text)
    )

    assert isinstance(update, WindowUpdateFrame)
    assert isinstance(reset, RstStreamFrame)
    assert isinstance(goaway, GoAwayFrame)
    assert (update.stream_id, update.window_increment) == (stream_id, number)
    assert (reset.stream_id, reset.error_code) == (number, code)
    assert (goaway.last_stream_id, goaway.error_code) == (stream_id, code)
    assert goaway.additional_data.decode() == text


@pytest.mark.parametrize("n_values", [1, 1000, 5000], ids=["one frame", "two", "several"])
def test_a_block_is_cut_into_frames_that_the_client_takes(n_values: int) -> None:
    headers = [(b"name", b"v" * 9)] * n_values

    first, *others = parse(
        frames.encode_block(5, encode_headers(headers), frames.END_STREAM, frames.MIN_FRAME_BYTES)
    )

    assert isinstance(first, HeadersFrame)
    assert "END_STREAM" in first.flags
    assert all(isinstance(frame, ContinuationFrame) for frame in others)
    assert ["END_HEADERS" in frame.flags for frame in (first, *others)] == [False] * len(others) + [
        True
    ]
    assert {frame.stream_id for frame in (first, *others)} == {5}
    assert max(frame.body_len for frame in (first, *others)) <= frames.MIN_FRAME_BYTES
    block = b"".join(frame.data for frame in (first, *others))
    assert Decoder(1 << 20).decode(block, raw=True) == headers


@given(st.binary(max_size=64), st.booleans(), st.booleans())
def test_padding_and_priority_are_taken_off(block: bytes, is_padded: bool, is_first: bool) -> None:
    frame = HeadersFrame(1, block, flags=["END_HEADERS"])
    if is_padded:
        frame.flags.add("PADDED")
        frame.pad_length = 7
    if is_first:
        frame.flags.add("PRIORITY")
    data = frame.serialize()

    assert frames.unpad(data[9:], data[4]) == block


@pytest.mark.parametrize(
    ("payload", "flags"),
    [
        pytest.param(b"", frames.PADDED, id="no length of the padding"),
        pytest.param(b"\x03ab", frames.PADDED, id="more padding than frame"),
        pytest.param(b"1234", frames.HAS_PRIORITY, id="no priority"),
    ],
)
def test_a_frame_smaller_than_what_is_around_it_is_refused(payload: bytes, flags: int) -> None:
    with pytest.raises(ConnectionViolation, match="PROTOCOL_ERROR: more padding than frame"):
        frames.unpad(payload, flags)


@pytest.mark.parametrize(
    "decode",
    [
        pytest.param(lambda: frames.decode_settings(b"1234567"), id="SETTINGS"),
        pytest.param(lambda: frames.decode_number(b"12345", "RST_STREAM"), id="one number"),
    ],
)
def test_frames_of_a_wrong_size_are_refused(decode: Callable[[], object]) -> None:
    with pytest.raises(ConnectionViolation, match="FRAME_SIZE_ERROR"):
        decode()
