"""The encoder engine: texts of all requests for a model, in batches, on the thread that owns it."""

import asyncio
import math
from collections.abc import Callable, Sequence
from copy import copy
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hfserver.encoder.fair_queue import Entry, FairQueue, Request
from hfserver.encoder.selfcheck import Executor
from hfserver.encoder.tokenization import TokenizedText
from kserve.errors import DeadlineExceeded, InvalidInput, ModelNotReady, TooManyRequests
from kserve.executor import ModelThreads, raisable
from kserve.logging import logger
from kserve.metrics import TokenBatchMetrics

# Tokens of a batch, by measuring: see benchmarks/embeddings.
DEFAULT_MAX_BATCH_TOKENS: Final = 2048

# Half a minute of work for a small model on two CPUs; longer no client waits.
DEFAULT_MAX_QUEUED_TOKENS: Final = 1 << 19

_MAX_RETRY_AFTER_S: Final = 60

# How much a batch counts for the speed that the time to wait is told by.
_SMOOTHING: Final = 0.2


class EncoderEngine:
    """Runs texts through one model; its methods are for one event loop at a time.

    A batch is what waits when the model is free, up to a number of tokens, of all requests. The
    texts of a batch that fails are run again in halves, until those that fail do so alone. Where
    the device itself failed, the model is not used again.

    Args:
        name: The model's name.
        executor: How its texts are run.
        vocabulary_size: How many tokens the model has embeddings of.
        max_batch_tokens: The tokens of a batch, 1 or more; a longer text runs alone.
        max_queued_tokens: The tokens that may wait, 1 or more; further requests are refused.
        hang_timeout_s: Seconds after which a batch is taken to have hung; 0 is never.
        on_failure: Called on the event loop with the reason, once, when the model cannot be used
            any more.

    Attributes:
        failure: Why the model cannot be used any more; empty while it can.
    """

    def __init__(
        self,
        name: str,
        executor: Executor,
        vocabulary_size: int,
        *,
        max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
        max_queued_tokens: int = DEFAULT_MAX_QUEUED_TOKENS,
        hang_timeout_s: float = 0.0,
        on_failure: Callable[[str], object] | None = None,
    ) -> None:
        # configuration
        self._name = name
        self._executor = executor
        self._vocabulary_size = vocabulary_size
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._on_failure = on_failure
        self._threads = ModelThreads(name, 1, hang_timeout_s)
        self._metrics = TokenBatchMetrics(name)

        # the event loop, and its queue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue = FairQueue(max_batch_tokens)
        self._is_start_due = False

        # the running batch
        self._is_running = False
        self._tokens_per_s = 0.0
        self.failure = ""

    @property
    def has_hung(self) -> bool:
        """Whether a batch has run for longer than any should."""
        return self._threads.has_hung

    @property
    def is_healthy(self) -> bool:
        """Whether the model can answer."""
        return not self.failure and not self.has_hung

    @property
    def n_queued_tokens(self) -> int:
        """How many tokens wait."""
        return self._queue.n_tokens

    async def run(
        self, texts: Sequence[TokenizedText], deadline: float | None = None
    ) -> list[NDArray[np.float32]]:
        """Run texts through the model and its head.

        A caller that is cancelled takes its texts out of the queue.

        Args:
            texts: Any number of texts, which are split over as many batches as they need.
            deadline: The event loop's time by which the results are wanted; None for any.

        Returns:
            An array for each text, whose shape is the head's.

        Raises:
            InvalidInput: A text is empty, or has a token that the model has not.
            TooManyRequests: As many tokens wait as may.
            DeadlineExceeded: The results were not there in time.
            ModelNotReady: The device that the model is on has failed.
            Exception: Whatever the model raises for a text alone.
        """
        if not texts:
            return []
        self._check(texts)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._begin(loop)
        self._admit(sum(map(len, texts)))
        request = Request(texts, loop.create_future())
        self._put(loop, request)
        try:
            async with asyncio.timeout_at(deadline):
                await request.future
            return request.results
        except TimeoutError:
            if deadline is None or not request.future.cancelled():
                raise
            raise DeadlineExceeded("no answer by the deadline of the request") from None
        finally:
            self._forget(request)
            # The traceback refers to this frame, and the request by its future to the error.
            del request

    def close(self, reason: str = "It is unloaded.") -> None:
        """Take no more texts, and fail those that wait; on any thread.

        Args:
            reason: What their callers are told.
        """
        self.failure = self.failure or reason
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._refuse_waiting)

    def _refuse_waiting(self) -> None:
        for request in self._queue.drop_all():
            request.fail(ModelNotReady(self._name, self.failure))
        self._tell_waiting()

    def _check(self, texts: Sequence[TokenizedText]) -> None:
        """Refuse what would make the model read beyond its embeddings: on a GPU that is fatal."""
        for index, text in enumerate(texts):
            if not len(text):
                raise InvalidInput(f"text {index}: expected one token or more, got none")
            least, most = int(text.input_ids.min()), int(text.input_ids.max())
            if least < 0 or most >= self._vocabulary_size:
                raise InvalidInput(
                    f"text {index}: expected tokens from 0 to {self._vocabulary_size - 1}, "
                    f"got {least if least < 0 else most}"
                )

    def _admit(self, n_tokens: int) -> None:
        if self.failure:
            raise ModelNotReady(self._name, self.failure)
        n_queued = self._queue.n_tokens
        if n_queued and n_queued + n_tokens > self._max_queued_tokens:
            wait_s = n_queued / self._tokens_per_s if self._tokens_per_s else 0.0
            raise TooManyRequests(
                f"{n_queued} tokens wait for this model, {n_tokens} more would be over "
                f"{self._max_queued_tokens} (--max_queued_tokens)",
                max(1, math.ceil(min(wait_s, _MAX_RETRY_AFTER_S))),
            )

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget what waited on a loop that has ended: nothing of it comes any more."""
        self._queue.drop_all()
        self._is_start_due = self._is_running = False
        self._loop = loop

    def _put(self, loop: asyncio.AbstractEventLoop, request: Request) -> None:
        self._queue.put(request)
        self._tell_waiting()
        self._schedule(loop)

    def _tell_waiting(self) -> None:
        queue = self._queue
        self._metrics.waiting(queue.n_requests, queue.n_texts, queue.n_tokens)

    def _forget(self, request: Request) -> None:
        """Take out what waits of a request that is done, one way or the other."""
        if self._queue.drop(request):
            self._metrics.gone()
            self._tell_waiting()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a batch at the loop's next turn: what arrives in this one is part of it."""
        if not self._is_start_due and not self._is_running:
            self._is_start_due = True
            loop.call_soon(self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_start_due = False
        entries = self._queue.take()
        if not entries:
            return
        batch = _Batch(entries, self._executor)
        self._count_out(batch)
        self._is_running = True
        try:
            running = self._threads.submit(batch.run)
        except RuntimeError as exc:
            # No thread can be started.
            batch.fail(exc)
            self._is_running = False
            return

        def done(_ended: asyncio.Future[None]) -> None:
            if loop is self._loop:
                self._finish(loop, batch)

        running.add_done_callback(done)

    def _count_out(self, batch: "_Batch") -> None:
        now = perf_counter()
        for request, index in batch.entries:
            if index == 0:
                self._metrics.waited(now - request.queued_at)
        reason = "full" if self._queue.n_texts else "free"
        self._metrics.released(reason, "thread", len(batch.entries))
        self._metrics.batch_tokens(batch.n_tokens)
        self._tell_waiting()

    def _finish(self, loop: asyncio.AbstractEventLoop, batch: "_Batch") -> None:
        """Give the texts of a batch their results, and start the next one."""
        self._is_running = False
        batch.settle()
        if batch.fatal is not None:
            self._fail(batch.fatal)
        elif batch.seconds:
            speed = batch.n_tokens / batch.seconds
            weight = _SMOOTHING if self._tokens_per_s else 1.0
            self._tokens_per_s += weight * (speed - self._tokens_per_s)
        if self._queue.n_texts:
            self._schedule(loop)

    def _fail(self, error: Exception) -> None:
        """Use the model no more: after such an error its device answers nothing right."""
        self.failure = f"Its device failed: {type(error).__name__}."
        logger.error("Model %s: the device failed, the model is unavailable", self._name)
        self._refuse_waiting()
        if self._on_failure is not None:
            self._on_failure(self.failure)


class _Batch:
    """The texts that run together, and what came of each."""

    def __init__(self, entries: Sequence[Entry], executor: Executor) -> None:
        self.entries = entries
        self.n_tokens = sum(len(request.texts[index]) for request, index in entries)
        self.seconds = 0.0
        self.fatal: Exception | None = None
        self._executor = executor
        self._outcomes: list[tuple[Entry, Any, Exception | None]] = []

    def run(self) -> None:
        """Run the texts that somebody still waits for; on the model's thread; never raises."""
        started = perf_counter()
        with torch.inference_mode():
            self._run([entry for entry in self.entries if not entry[0].is_gone])
        self.seconds = perf_counter() - started

    def _run(self, entries: Sequence[Entry]) -> None:
        """Run some of the texts, and if they fail, halves of them."""
        if not entries:
            return
        if self.fatal is not None:
            self._outcomes += [(entry, None, copy(self.fatal)) for entry in entries]
            return
        error = None
        try:
            results = self._executor.run([request.texts[index] for request, index in entries])
            self._outcomes += [
                (entry, result, None) for entry, result in zip(entries, results, strict=True)
            ]
        except BaseException as exc:
            error = raisable(exc)
        # Behind the handler, as the memory of the batch hangs on the exception until its end.
        if error is not None:
            self._retry(entries, error)

    def _retry(self, entries: Sequence[Entry], error: Exception) -> None:
        if _is_fatal(error):
            logger.error("A batch failed", exc_info=error)
            self.fatal = error
        if self.fatal is not None or len(entries) == 1:
            self._outcomes += [(entry, None, copy(error)) for entry in entries]
            return
        error.__traceback__ = None
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        middle = len(entries) // 2
        self._run(entries[:middle])
        self._run(entries[middle:])

    def fail(self, error: Exception) -> None:
        """Fail all requests that have a text in the batch; on the event loop."""
        for request, _ in self.entries:
            request.fail(copy(error))

    def settle(self) -> None:
        """Give the requests what came of their texts; on the event loop."""
        for (request, index), result, error in self._outcomes:
            if error is None:
                request.settle(index, result)
            else:
                request.fail(error)
        self._outcomes = []


def _is_fatal(error: Exception) -> bool:
    """Say whether a device is in no state to go on with, such as after a failed assertion on it."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(
        error, torch.OutOfMemoryError
    )
