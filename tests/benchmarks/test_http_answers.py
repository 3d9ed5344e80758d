import socket
from collections.abc import Callable

import pytest
from benchmarks.http_answers import Answer, AnswerReader, UnreadableAnswer, ask_once

Serve = Callable[[Callable[[socket.socket], bool]], int]

WITH_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    # The first chunk ends as a last one does.
    b"9\r\nhell0\r\n\r\n\r\n1\r\no\r\n0\r\n\r\n"
)


def feed(reader: AnswerReader, data: bytes, size: int) -> list[Answer]:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    answers = [reader.feed(piece) for piece in pieces]
    return [answer for answer in answers if answer is not None]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_reads_an_answer_however_it_is_cut(size: int) -> None:
    answers = feed(AnswerReader(), WITH_LENGTH, size)

    assert answers == [Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5", b"hello")]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_reads_a_chunked_answer_however_it_is_cut(size: int) -> None:
    (answer,) = feed(AnswerReader(), CHUNKED, size)

    assert answer.body == b"hell0\r\n\r\no"


def test_reads_one_answer_behind_the_other() -> None:
    reader = AnswerReader()

    bodies = [feed(reader, data, 4)[0].body for data in (WITH_LENGTH, CHUNKED, WITH_LENGTH)]

    assert bodies == [b"hello", b"hell0\r\n\r\no", b"hello"]


def test_knows_what_the_head_says() -> None:
    head = (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n"
        b"inference-header-content-length: 17"
    )

    answer = AnswerReader().feed(head + b"\r\n\r\n")

    assert answer is not None
    assert (answer.status, answer.closes, answer.json_length) == (503, True, 17)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="without a length"),
        pytest.param(WITH_LENGTH + b"!", id="with more than its length"),
        pytest.param(CHUNKED.replace(b"9\r\n", b"x\r\n", 1), id="with a chunk without a size"),
    ],
)
def test_refuses_an_answer(data: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        AnswerReader().feed(data)


def test_an_answer_that_breaks_off_is_unreadable(serve: Serve) -> None:
    def break_off(connection: socket.socket) -> bool:
        connection.sendall(WITH_LENGTH[:-1])
        return False

    with pytest.raises(UnreadableAnswer):
        ask_once(serve(break_off), b"POST / HTTP/1.1\r\n\r\nask")
