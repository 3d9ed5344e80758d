"""Texts that wait for the model: who got the fewest tokens is next."""

import asyncio
from collections.abc import Sequence
from heapq import heappop, heappush
from time import perf_counter
from typing import Any, Final

from hfserver.encoder.tokenization import TokenizedText


class Request:
    """The texts of one request, and what came of them.

    Args:
        texts: The texts, of which there is one at least.
        future: It is done when all of them are.

    Attributes:
        texts: As given.
        results: What there is for each, None where there is nothing yet.
        future: As given.
        n_left: How many have no result yet.
        queued_at: When it came.
        next_index: The first text that waits.
    """

    __slots__ = ("future", "n_left", "next_index", "queued_at", "results", "texts")

    def __init__(self, texts: Sequence[TokenizedText], future: asyncio.Future[None]) -> None:
        self.texts = texts
        self.results: list[Any] = [None] * len(texts)
        self.future = future
        self.n_left = len(texts)
        self.queued_at = perf_counter()
        self.next_index = 0

    @property
    def n_waiting(self) -> int:
        """How many texts wait."""
        return len(self.texts) - self.next_index

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for it any more: it was cancelled, or a text of it failed."""
        return self.future.done()

    def settle(self, index: int, result: Any) -> None:
        """Keep the result of a text; the last one wakes who waits."""
        self.results[index] = result
        self.n_left -= 1
        if self.n_left == 0 and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        """Fail the request."""
        if not self.future.done():
            self.future.set_exception(error)


# A text in a batch: the request, and which of its texts.
Entry = tuple[Request, int]

# Texts that are too long for what is left of a batch are passed by for shorter ones, so many times.
_MAX_PASSED: Final = 16


class FairQueue:
    """Forms batches of the texts of many requests; for the event loop.

    The next text is of the request that got the fewest tokens so far, among those that wait; one
    that comes is put level with the one that was served last. So a request of one text is not
    behind all texts of a large one, and long texts get no more of the model than short ones.
    Source: S. J. Golestani, A Self-Clocked Fair Queueing Scheme, 1994.

    Args:
        max_batch_tokens: The tokens of a batch; a longer text is a batch alone.

    Attributes:
        n_tokens: The tokens that wait.
        n_texts: The texts that wait.
        n_requests: The requests that have texts waiting.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        # By the tokens that each got, and then by when it came.
        self._heap: list[tuple[int, int, Request]] = []
        self._now = 0
        self._n_put = 0
        self.n_tokens = self.n_texts = self.n_requests = 0

    def put(self, request: Request) -> None:
        """Let the texts of a request wait."""
        self._n_put += 1
        heappush(self._heap, (self._now, self._n_put, request))
        self.n_requests += 1
        self.n_texts += len(request.texts)
        self.n_tokens += sum(map(len, request.texts))

    def drop(self, request: Request) -> int:
        """Count the texts out that still wait; says how many. `take` finds that it is gone."""
        waiting = request.texts[request.next_index :]
        request.next_index = len(request.texts)
        self.n_requests -= bool(waiting)
        self.n_texts -= len(waiting)
        self.n_tokens -= sum(map(len, waiting))
        return len(waiting)

    def drop_all(self) -> list[Request]:
        """Take out everything; gives the requests that had texts waiting."""
        requests = [request for _, _, request in self._heap if request.n_waiting]
        for request in requests:
            self.drop(request)
        self._heap.clear()
        return requests

    def take(self) -> list[Entry]:
        """Take the texts of the next batch out; empty where none wait."""
        batch: list[Entry] = []
        n_left = self._max_batch_tokens
        passed: list[tuple[int, int, Request]] = []
        while self._heap and len(passed) <= _MAX_PASSED:
            n_got, number, request = heappop(self._heap)
            if not request.n_waiting:
                continue
            length = len(request.texts[request.next_index])
            if batch and length > n_left:
                # As it got the fewest it is the first of the next batch.
                passed.append((n_got, number, request))
                continue
            batch.append((request, request.next_index))
            request.next_index += 1
            n_left -= length
            self.n_texts -= 1
            self.n_tokens -= length
            self._now = max(self._now, n_got)
            if request.n_waiting:
                heappush(self._heap, (n_got + length, number, request))
            else:
                self.n_requests -= 1
        for entry in passed:
            heappush(self._heap, entry)
        return batch
