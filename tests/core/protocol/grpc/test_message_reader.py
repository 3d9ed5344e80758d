"""Messages are cut out of data however it comes."""

from itertools import pairwise
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve.errors import InvalidInput, RequestTooLarge
from kserve.protocol.grpc.message_reader import PREFIX, MessageReader

MESSAGES = st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=6)


def encode(messages: list[tuple[bool, bytes]]) -> bytes:
    return b"".join(PREFIX.pack(flag, len(data)) + data for flag, data in messages)


@given(MESSAGES, st.data())
def test_messages_come_out_however_they_come_in(
    messages: list[tuple[bool, bytes]], data: st.DataObject
) -> None:
    encoded = encode(messages)
    cuts = data.draw(st.lists(st.integers(0, len(encoded)), max_size=9))
    lengths: list[int] = []
    reader = MessageReader()

    for start, end in pairwise(sorted([0, *cuts, len(encoded)])):
        piece = memoryview(encoded)[start:end]
        place = reader.place()
        if place is not None and data.draw(st.booleans()):
            n_bytes = min(len(place), len(piece))
            place[:n_bytes] = piece[:n_bytes]
            reader.placed(n_bytes)
            piece = piece[n_bytes:]
        reader.receive(piece, lengths.append)

    assert list(reader.messages) == messages
    assert lengths == [len(content) for _, content in messages]
    assert not reader.is_amid_message


def test_a_message_that_is_not_complete_is_none() -> None:
    reader = MessageReader()

    for end in range(1, 8):
        reader.receive(memoryview(encode([(False, b"123")]))[end - 1 : end], lambda length: None)
        assert reader.is_amid_message
        assert not reader.messages


def test_a_large_message_is_a_view_of_memory_that_holds_it_alone() -> None:
    reader = MessageReader()
    content = bytes(range(256)) * 1024
    encoded = encode([(False, content)])

    reader.receive(memoryview(encoded[:100]), lambda length: None)
    place = reader.place()
    assert place is not None
    place[:] = encoded[100:]
    reader.placed(len(place))

    ((_, data),) = reader.messages
    assert isinstance(data, memoryview)
    assert data == content
    assert memoryview(data.obj).nbytes == len(content)


def test_another_flag_is_refused() -> None:
    with pytest.raises(InvalidInput, match="expected a message to begin with 0 or 1, got 2"):
        MessageReader().receive(memoryview(b"\x02\0\0\0\0"), lambda length: None)


def test_what_is_not_admitted_takes_no_memory() -> None:
    def refuse(length: int) -> NoReturn:
        raise RequestTooLarge(str(length))

    reader = MessageReader()

    with pytest.raises(RequestTooLarge, match="4294967295"):
        reader.receive(memoryview(b"\0\xff\xff\xff\xff"), refuse)

    assert reader.place() is None
