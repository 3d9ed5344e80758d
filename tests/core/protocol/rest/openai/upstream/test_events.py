"""Events out of bytes, however they are cut, and against httpx2's own reader."""

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve.protocol.rest.openai.upstream.events import EventReader


def read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", [b"a", b"b"], id="two"),
        pytest.param(b"data:a\r\n\r\ndata:  b\r\n\r\n", [b"a", b" b"], id="CRLF"),
        pytest.param(b"data: a\r\rdata: b\r\r", [b"a", b"b"], id="CR"),
        pytest.param(b"data: a\ndata: b\n\n", [b"a\nb"], id="two lines"),
        pytest.param(b": ping\n\ndata: a\n\n: ping\n\n", [b"a"], id="comments"),
        pytest.param(b"event: message\nid: 1\nretry: 5\ndata: a\n\n", [b"a"], id="other fields"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [b"a"], id="byte order mark"),
        pytest.param(b"data\n\ndata:\n\n", [], id="no data"),
        pytest.param(b"data: a\n", [], id="not ended"),
        pytest.param(b"\n\n\n", [], id="empty lines"),
    ],
)
def test_reads_events_whole_and_byte_by_byte(text: bytes, events: list[bytes]) -> None:
    assert read(text) == events
    assert read(*(text[i : i + 1] for i in range(len(text)))) == events


def test_finish_gives_the_event_that_lacks_its_end() -> None:
    reader = EventReader()

    assert reader.feed(b"data: a\n\ndata: b") == [b"a"]
    assert reader.finish() == [b"b"]
    assert reader.finish() == []


@pytest.mark.parametrize("text", [b"x" * 11, b"data: 12345\ndata: 678901\n"])
def test_refuses_an_event_that_does_not_end(text: bytes) -> None:
    with pytest.raises(ValueError, match="more than 10 bytes"):
        EventReader(max_bytes=10).feed(text)


def test_counts_each_event_alone() -> None:
    reader = EventReader(max_bytes=10)

    assert [reader.feed(b"data: 123\n\n") for _ in range(9)] == [[b"123"]] * 9


def test_counts_a_line_that_comes_in_pieces_once() -> None:
    reader = EventReader(max_bytes=12)

    assert [reader.feed(piece) for piece in (b"data: ", b"12", b"345\n", b"\n")][-1] == [b"12345"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(
            [b"data: a", b"data:b", b"data", b": c", b"x", b"\n", b"\r\n", b"\r", b"\n"]
        )
    ),
    st.integers(1, 7),
)
def test_agrees_with_another_reader(parts: list[bytes], size: int) -> None:
    # The other one takes a CR at the very end for two line ends.
    text = b"".join((*parts, b"x"))

    ours = read(*(text[i : i + size] for i in range(0, len(text), size)))

    response = httpx2.Response(
        200,
        content=text,
        headers={"content-type": "text/event-stream"},
        request=httpx2.Request("GET", "http://127.0.0.1"),
    )
    theirs = [event.data.encode() for event in httpx2.EventSource(response)]
    assert ours == [data for data in theirs if data]
