"""Whose texts are in the next batch."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfserver.encoder.fair_queue import FairQueue, Request
from hfserver.encoder.tokenization import TokenizedText


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def request_of(loop: asyncio.AbstractEventLoop, *lengths: int) -> Request:
    texts = [TokenizedText(np.zeros(length, np.int64)) for length in lengths]
    return Request(texts, loop.create_future())


def test_a_batch_is_what_waits_up_to_its_tokens(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(10)
    request = request_of(loop, 4, 4, 4)
    queue.put(request)

    batches = [queue.take(), queue.take(), queue.take()]

    assert batches == [[(request, 0), (request, 1)], [(request, 2)], []]
    assert (queue.n_tokens, queue.n_texts, queue.n_requests) == (0, 0, 0)


def test_a_text_longer_than_a_batch_runs_alone(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(10)
    short, long = request_of(loop, 3), request_of(loop, 30)
    queue.put(long)
    queue.put(short)

    assert queue.take() == [(long, 0)]
    assert queue.take() == [(short, 0)]


def test_a_request_of_one_text_is_not_behind_all_of_a_large_one(
    loop: asyncio.AbstractEventLoop,
) -> None:
    queue = FairQueue(10)
    large, small = request_of(loop, *[5] * 100), request_of(loop, 5)
    queue.put(large)
    queue.take()
    queue.put(small)

    # They got as many tokens since the small one came.
    assert queue.take() == [(small, 0), (large, 2)]


def test_long_texts_get_no_more_tokens_than_short_ones(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(40)
    long, short = request_of(loop, *[10] * 100), request_of(loop, *[1] * 1000)
    queue.put(long)
    queue.put(short)

    tokens = {long: 0, short: 0}
    for _ in range(10):
        for request, index in queue.take():
            tokens[request] += len(request.texts[index])

    assert tokens == {long: 200, short: 200}


def test_what_is_left_of_a_batch_is_filled_and_who_was_passed_is_first_in_the_next(
    loop: asyncio.AbstractEventLoop,
) -> None:
    queue = FairQueue(10)
    first, long, short = request_of(loop, 6), request_of(loop, 9), request_of(loop, 3)
    for request in (first, long, short):
        queue.put(request)
    late = request_of(loop, 1)

    assert queue.take() == [(first, 0), (short, 0)]
    queue.put(late)
    assert queue.take() == [(long, 0), (late, 0)]


def test_what_is_dropped_is_in_no_batch(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(10)
    gone, stays = request_of(loop, 4, 4, 4), request_of(loop, 4)
    queue.put(gone)
    queue.take()
    queue.put(stays)

    assert queue.drop(gone) == 1
    assert queue.drop(gone) == 0

    assert (queue.n_tokens, queue.n_texts, queue.n_requests) == (4, 1, 1)
    assert queue.take() == [(stays, 0)]
    assert (queue.n_tokens, queue.n_texts, queue.n_requests) == (0, 0, 0)


@given(
    requests=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), max_size=12),
    dropped=st.sets(st.integers(0, 11)),
    n_before=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_text_is_in_one_batch_and_no_batch_is_too_large(
    requests: list[list[int]], dropped: set[int], n_before: int
) -> None:
    loop = asyncio.new_event_loop()
    queue = FairQueue(20)
    waiting = [request_of(loop, *lengths) for lengths in requests]
    for request in waiting:
        queue.put(request)

    batches = [queue.take() for _ in range(n_before)]
    for index in dropped & set(range(len(waiting))):
        queue.drop(waiting[index])
    while batch := queue.take():
        batches.append(batch)

    assert (queue.n_tokens, queue.n_texts, queue.n_requests) == (0, 0, 0)
    assert all(
        len(batch) == 1 or sum(len(request.texts[index]) for request, index in batch) <= 20
        for batch in batches
    )
    taken = [(id(request), index) for batch in batches for request, index in batch]
    assert len(taken) == len(set(taken))
    for number, request in enumerate(waiting):
        if number not in dropped:
            indices = [index for key, index in taken if key == id(request)]
            assert indices == list(range(len(request.texts)))
    loop.close()
