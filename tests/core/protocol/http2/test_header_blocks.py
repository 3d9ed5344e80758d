"""Blocks of headers, made and read by `hpack`."""

from itertools import count
from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from kserve.protocol.http2.frames import ConnectionViolation, StreamViolation
from kserve.protocol.http2.header_blocks import HeaderBlocks, RequestHead, encode_headers

PSEUDO = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"x")]
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"user-agent", b"x-request-id", b"grpc-timeout", b"trace-bin"]),
        st.sampled_from([b"", b"1", b"22", b"abc" * 99]),
    ),
    max_size=6,
)


@given(st.lists(st.tuples(FIELDS, st.booleans()), max_size=12))
def test_heads_are_read_whatever_came_before_them(requests: list[Any]) -> None:
    encoder, blocks = Encoder(), HeaderBlocks(lambda head: head)

    for fields, is_huffman in requests:
        block = encoder.encode(PSEUDO + fields, huffman=is_huffman)
        assert blocks.read(block) == RequestHead(b"POST", b"/a", fields)


def test_a_block_that_repeats_another_is_not_made_again() -> None:
    encoder, numbering = Encoder(), count(1)
    blocks = HeaderBlocks(lambda head: next(numbering))

    numbers = [blocks.read(encoder.encode(PSEUDO)) for _ in range(4)]

    # The first fills the table, the second one is kept.
    assert numbers == [1, 2, 2, 2]


def test_the_same_block_means_something_else_after_a_change_of_the_table() -> None:
    encoder, blocks = Encoder(), HeaderBlocks(lambda head: head)
    for value in (b"1", b"1"):
        blocks.read(encoder.encode([*PSEUDO, (b"a", value)]))
    # An index of the table, of what was added last.
    last = encoder.encode([*PSEUDO, (b"a", b"1")])
    before = blocks.read(last)
    # Its entry is the first now, where that of the path was.
    blocks.decode(b"\x40\x01b\x012")

    assert before.fields == [(b"a", b"1")]
    with pytest.raises(StreamViolation, match="expected :method, :scheme and :path"):
        blocks.read(last)


def test_a_smaller_table_forgets_what_was_kept() -> None:
    encoder, blocks = Encoder(), HeaderBlocks(lambda head: head)
    for _ in range(2):
        blocks.read(encoder.encode([*PSEUDO, (b"a", b"1")]))
    block = encoder.encode([*PSEUDO, (b"a", b"1")])
    blocks.read(block)

    # "Dynamic Table Size Update" to 0: the index of `block` leads nowhere.
    blocks.decode(b"\x20")

    with pytest.raises(ConnectionViolation, match="COMPRESSION_ERROR"):
        blocks.read(block)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_a_violation(data: bytes) -> None:
    blocks = HeaderBlocks(lambda head: head)

    try:
        blocks.read(data)
    except (ConnectionViolation, StreamViolation):
        pass


def test_headers_that_become_too_large_are_refused() -> None:
    blocks = HeaderBlocks(lambda head: head)
    block = b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 20

    with pytest.raises(ConnectionViolation, match="larger than 65536"):
        blocks.decode(block)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([*PSEUDO, (b"Name", b"a")], id="an upper-case name"),
        pytest.param([*PSEUDO, (b"", b"a")], id="an empty name"),
        pytest.param([*PSEUDO, (b"a", b"1\n2")], id="a line end in a value"),
        pytest.param([*PSEUDO, (b"connection", b"close")], id="for the connection"),
        pytest.param([*PSEUDO, (b"te", b"gzip")], id="another te"),
        pytest.param([*PSEUDO, (b":path", b"/b")], id="two paths"),
        pytest.param([*PSEUDO, (b":status", b"200")], id="of a response"),
        pytest.param([(b"a", b"1"), *PSEUDO], id="pseudo-headers last"),
        pytest.param(PSEUDO[:2], id="no path"),
        pytest.param([], id="nothing"),
    ],
)
def test_malformed_heads_end_their_stream(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(StreamViolation, match="PROTOCOL_ERROR"):
        HeaderBlocks(lambda head: head).read(encode_headers(headers))


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=9))
def test_encoded_headers_are_read_by_others(headers: list[tuple[bytes, bytes]]) -> None:
    block = encode_headers(headers)

    assert Decoder(1 << 20).decode(block, raw=True) == headers
