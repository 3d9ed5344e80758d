"""JSON that passes through: kept as it is, changed where it was changed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve.protocol.rest.openai import OpenAIError
from kserve.protocol.rest.openai.upstream.documents import overlay, read, write


def test_keeps_every_digit_and_the_order() -> None:
    data = b'{"b":1.10,"model":"theirs","a":[1e-7,12345678901234567890,null],"c":"\\u00fc"}'

    assert write(read(data), "ours") == data.replace(b"theirs", b"ours")


def test_adds_no_model_where_there_is_none() -> None:
    assert write(read(b'{"a":1}'), "ours") == b'{"a":1}'


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b'{"a":}', b"<html>", b"\xff"])
def test_refuses_what_is_no_object(data: bytes) -> None:
    with pytest.raises(OpenAIError, match="no JSON object") as caught:
        read(data)

    assert caught.value.http_status == 502


@pytest.mark.parametrize(
    ("original", "before", "after", "expected"),
    [
        ({"a": 1, "x": 2}, {"a": 1}, {"a": 3}, {"a": 3, "x": 2}),
        ({"a": 1, "x": 2}, {"a": 1}, {}, {"x": 2}),
        ({"x": 2}, {}, {"a": 1}, {"x": 2, "a": 1}),
        ([{"b": 1, "x": 2}], [{"b": 1}], [{"b": 3}], [{"b": 3, "x": 2}]),
        ({"a": [1, 2]}, {"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
        # What was read has defaults that were not there.
        ({"x": 1}, {"a": None, "b": 1}, {"a": None, "b": 2}, {"x": 1, "b": 2}),
        ({"a": 1}, {"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
    ],
)
def test_overlay_changes_what_was_changed(
    original: Any, before: Any, after: Any, expected: Any
) -> None:
    assert overlay(original, before, after) == expected


values = st.recursive(
    st.none() | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values, values)
def test_overlay_of_what_was_read_whole_is_what_it_became(before: Any, after: Any) -> None:
    assert overlay(before, before, after) == after
    assert overlay(after, before, before) == after
