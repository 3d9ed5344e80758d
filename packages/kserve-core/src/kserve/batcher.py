"""Rows that wait together run together: one queue for the requests of one model.

A batch is whatever waits when the model is free. It takes the oldest request and those after it
that may join it, up to a number of rows; a larger request runs alone, whole. A batch that fails is
halved until the culprits fail alone.
"""

import asyncio
import contextvars
import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from copy import copy
from time import perf_counter, thread_time
from typing import Any, Final

from kserve.cost_estimate import CostEstimate
from kserve.errors import RowCountError, TooManyRequests
from kserve.executor import ModelThreads, awaited, raisable
from kserve.logging import logger, request_id_var
from kserve.metrics import BatchMetrics

# What a batch may take on the event loop, in seconds: ten times what a thread's switch costs, and
# too little for a probe or another model's request to notice.
_MAX_ON_LOOP_S: Final = 1e-3

# So many failed batches in so many seconds, and the model runs unbatched for a while: halving costs
# every neighbour of a culprit log2(n) further runs.
_MAX_FAILURES: Final = 3
_FAILURES_S: Final = 10.0
_UNBATCHED_S: Final = 30.0

# Before a deadline the batch is released early enough for what the estimate does not know.
_DEADLINE_MARGIN_S: Final = 0.005

# What a client is told to wait at most: it is an estimate of a queue that grows and shrinks.
_MAX_RETRY_AFTER_S: Final = 60

# The event loop's time by which a client wants its answer, where it said so.
deadline_var: ContextVar[float] = ContextVar("kserve_deadline", default=math.inf)

# Values that run together -> one result for each.
Run = Callable[[list[Any]], list[Any]]
RunAsync = Callable[[list[Any]], Awaitable[list[Any]]]


class BatchLimits:
    """What one model's batches and queue are bounded by.

    Attributes:
        max_batch_size: Rows of a batch, 1 or more; a larger request runs alone.
        max_batch_delay_s: Seconds that a free model waits for a batch to fill, 0 or more.
        max_queued_rows: Rows that may wait; further requests are refused.
        max_running: Batches that may run at the same time, 1 or more.
    """

    __slots__ = ("max_batch_delay_s", "max_batch_size", "max_queued_rows", "max_running")

    def __init__(
        self,
        max_batch_size: int,
        max_batch_delay_s: float = 0.0,
        max_queued_rows: int = 1 << 17,
        max_running: int = 1,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_batch_delay_s = max_batch_delay_s
        self.max_queued_rows = max_queued_rows
        self.max_running = max_running


class _Item:
    """One request in the queue, then in a batch."""

    __slots__ = (
        "batch",
        "deadline",
        "future",
        "key",
        "kind",
        "n_rows",
        "queued_at",
        "result",
        "size",
        "value",
    )

    def __init__(
        self,
        value: Any,
        key: Hashable,
        kind: Hashable,
        n_rows: int,
        size: int,
        future: asyncio.Future[None],
    ) -> None:
        self.value = value
        self.key = key
        self.kind = kind
        self.n_rows = n_rows
        self.size = size
        self.future = future
        self.deadline = deadline_var.get()
        self.queued_at = perf_counter()
        # Not in the future: the event loop holds on to that for longer than to this.
        self.result: Any = None
        self.batch: _Batch | None = None


class _Group:
    """The requests in the queue that may join one another, oldest first."""

    __slots__ = ("deadline", "items", "n_rows")

    def __init__(self) -> None:
        self.items: OrderedDict[_Item, None] = OrderedDict()
        self.n_rows = 0
        # The earliest of all that have been in it.
        self.deadline = math.inf


class _Batch:
    """Requests that run together, and what came of it."""

    __slots__ = (
        "cpu_seconds",
        "error",
        "is_part",
        "items",
        "kind",
        "n_rows",
        "n_waiting",
        "results",
        "seconds",
        "size",
        "task",
    )

    def __init__(self, items: list[_Item], *, is_part: bool) -> None:
        self.items = items
        self.is_part = is_part
        self.kind = items[0].kind
        self.n_rows = sum(item.n_rows for item in items)
        self.size = sum(item.size for item in items)
        self.n_waiting = len(items)
        self.results: list[Any] = []
        self.error: Exception | None = None
        self.seconds = self.cpu_seconds = 0.0
        self.task: asyncio.Task[None] | None = None
        for item in items:
            item.batch = self

    def drop_gone(self) -> None:
        """Leave out the requests whose callers went while the batch waited to start."""
        self.items = [item for item in self.items if not item.future.done()]
        self.size = sum(item.size for item in self.items)

    def run(self, function: Run) -> None:
        """Run it on the calling thread, and time it; never raises."""
        self.drop_gone()
        if not self.items:
            return
        cpu_started, started = thread_time(), perf_counter()
        try:
            self.results = function([item.value for item in self.items])
        except BaseException as exc:
            self.error = raisable(exc)
        self.seconds = perf_counter() - started
        self.cpu_seconds = thread_time() - cpu_started

    async def run_async(self, function: RunAsync) -> None:
        """Run it on the event loop, between other things; never raises but CancelledError.

        That one only if it was cancelled itself.
        """
        self.drop_gone()
        if not self.items:
            return
        try:
            self.results = await awaited(function([item.value for item in self.items]))
        except Exception as exc:
            self.error = exc


class Batcher:
    """Queues the requests of one model and runs them in batches; for its event loop.

    Args:
        run: Runs values of equal keys, or one value of key None; blocks. Gives as many results.
        threads: Where it runs.
        limits: Sizes and numbers.
        metrics: Where batches are counted.
        may_run_on_loop: Batches that are known to be cheap run on the event loop.
        run_async: In place of `run`, for what is awaited on the event loop.
    """

    def __init__(
        self,
        run: Run,
        threads: ModelThreads,
        limits: BatchLimits,
        metrics: BatchMetrics,
        *,
        may_run_on_loop: bool = False,
        run_async: RunAsync | None = None,
    ) -> None:
        # configuration
        self._run = run
        self._run_async = run_async
        self._threads = threads
        self._limits = limits
        self._metrics = metrics
        self._may_run_on_loop = may_run_on_loop
        # Batches belong to no request: what they log is under no request's id.
        self._context = contextvars.copy_context()
        self._context.run(request_id_var.set, "")
        self._context.run(deadline_var.set, math.inf)

        # the event loop, and its queue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: OrderedDict[_Item, None] = OrderedDict()
        self._groups: dict[Hashable, _Group] = {}
        self._n_rows = 0
        # Parts of failed batches, which go first.
        self._parts: deque[list[_Item]] = deque()
        self._is_release_due = False
        self._delay_timer: asyncio.TimerHandle | None = None

        # running batches
        self._n_running = 0
        self._estimates: defaultdict[Hashable, CostEstimate] = defaultdict(CostEstimate)
        self._failures: deque[float] = deque(maxlen=_MAX_FAILURES)
        self._unbatched_until = 0.0

    async def submit(
        self, value: Any, key: Hashable, n_rows: int, size: int = 0, kind: Hashable = None
    ) -> Any:
        """Queue one request and wait for its result.

        A caller that is cancelled takes its request out of the queue.

        Args:
            value: What `run` gets.
            key: Requests of equal keys may join; None runs alone.
            n_rows: Its rows.
            size: What its cost grows with, in a unit that all requests of the model share, if that
                is not `n_rows`.
            kind: Requests of equal kinds cost as much for their size, and those of equal keys are
                of equal kinds. There must be few of them: what each costs is kept.

        Returns:
            What `run` gave for it.

        Raises:
            TooManyRequests: As many rows as may wait are waiting.
            Exception: Whatever `run` raises for it alone.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._begin(loop)
        if self._queue and self._n_rows + n_rows > self._limits.max_queued_rows:
            raise self._refusal(n_rows)
        item = _Item(value, key, kind, n_rows, size or n_rows, loop.create_future())
        self._put(item)
        self._schedule(loop, item)
        try:
            await item.future
            return item.result
        except asyncio.CancelledError:
            self._leave(item)
            raise
        finally:
            # The traceback refers to this frame, and the item by its future to the error.
            del item

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget what waited on a loop that has ended: nothing of it comes any more."""
        for item in list(self._queue):
            self._drop(item)
        self._parts.clear()
        self._is_release_due = False
        self._delay_timer = None
        self._n_running = 0
        self._loop = loop

    def _refusal(self, n_rows: int) -> TooManyRequests:
        limits = self._limits
        n_batches = math.ceil(self._n_rows / limits.max_batch_size)
        batch_s = self._full_batch_s(next(iter(self._queue)))
        wait_s = 0.0 if math.isinf(batch_s) else n_batches * batch_s
        return TooManyRequests(
            f"{self._n_rows} rows wait for this model, {n_rows} more would be over "
            f"{limits.max_queued_rows} (--max_queued_rows)",
            max(1, math.ceil(min(wait_s, _MAX_RETRY_AFTER_S))),
        )

    # The queue.

    def _put(self, item: _Item) -> None:
        if item.key is not None:
            # First, as a key that has no hash raises.
            group = self._groups.get(item.key)
            if group is None:
                group = self._groups[item.key] = _Group()
            group.items[item] = None
            group.n_rows += item.n_rows
            group.deadline = min(group.deadline, item.deadline)
        self._queue[item] = None
        self._n_rows += item.n_rows
        self._metrics.queue_rows.inc(item.n_rows)
        self._metrics.queue_requests.inc()

    def _take(self, item: _Item) -> None:
        del self._queue[item]
        self._n_rows -= item.n_rows
        if item.key is None:
            return
        group = self._groups[item.key]
        del group.items[item]
        group.n_rows -= item.n_rows
        if not group.items:
            del self._groups[item.key]

    def _leave(self, item: _Item) -> None:
        """Forget a request whose caller has gone."""
        if item in self._queue:
            self._drop(item)
            if not self._queue and self._delay_timer is not None:
                # It would keep the model until then.
                self._delay_timer.cancel()
                self._delay_timer = None
        elif item.batch is not None:
            item.batch.n_waiting -= 1
            if item.batch.n_waiting == 0 and item.batch.task is not None:
                item.batch.task.cancel()

    def _drop(self, item: _Item) -> None:
        """Take a request out of the queue that nobody waits for any more."""
        self._take(item)
        self._metrics.left(item.n_rows)

    # When a batch is released.

    def _schedule(self, loop: asyncio.AbstractEventLoop, item: _Item | None = None) -> None:
        """Look for a batch at the loop's next turn: what arrives in this one is part of it."""
        if self._is_release_due or self._n_running >= self._limits.max_running:
            return
        if self._delay_timer is not None:
            # A batch is waiting to fill; this request may have ended that, or be in more hurry.
            if item is not None and item.deadline == math.inf and self._is_filling(item.key):
                return
            self._delay_timer.cancel()
            self._delay_timer = None
        self._is_release_due = True
        loop.call_soon(self._release, loop, context=self._context)

    def _is_filling(self, key: Hashable) -> bool:
        """Say whether all that wait may be one batch with room for more.

        A free model does not wait for rows while others wait that cannot join; as Triton's dynamic
        batcher, which sends a batch off when a request of another shape comes.
        """
        group = self._groups.get(key)
        return (
            group is not None
            and len(group.items) == len(self._queue)
            and group.n_rows < self._limits.max_batch_size
        )

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the next batch if there is one and it need not wait."""
        self._is_release_due = False
        self._delay_timer = None
        while self._n_running < self._limits.max_running:
            batch, reason = self._next_part() or self._next_batch(loop)
            if batch is None:
                return
            if self._runs_on_loop(batch):
                self._metrics.released(reason, "loop", batch.n_rows)
                batch.run(self._run)
                self._finish(batch, on_loop=True)
                # Others have their turn before the next one.
                self._go_on(loop)
                return
            self._start(loop, batch, reason)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._parts or self._queue:
            self._schedule(loop)

    def _next_part(self) -> tuple[_Batch, str] | None:
        while self._parts:
            items = [item for item in self._parts.popleft() if not item.future.done()]
            if items:
                return _Batch(items, is_part=True), "retry"
        return None

    def _next_batch(self, loop: asyncio.AbstractEventLoop) -> tuple[_Batch | None, str]:
        while self._queue:
            head = next(iter(self._queue))
            if head.future.done():
                # Its caller was cancelled in this very turn, and could not take it out yet.
                self._drop(head)
                continue
            reason = self._release_reason(loop, head)
            return (_Batch(self._form(head), is_part=False) if reason else None), reason
        return None, ""

    def _release_reason(self, loop: asyncio.AbstractEventLoop, head: _Item) -> str:
        """Give why the oldest request's batch may start now; empty after setting a timer."""
        if head.key is None or self._is_unbatched():
            return "free"
        if self._groups[head.key].n_rows >= self._limits.max_batch_size:
            return "full"
        if self._limits.max_batch_delay_s <= 0 or not self._is_filling(head.key):
            return "free"
        return self._wait_to_fill(loop, head)

    def _wait_to_fill(self, loop: asyncio.AbstractEventLoop, head: _Item) -> str:
        left_s = head.queued_at + self._limits.max_batch_delay_s - perf_counter()
        if left_s <= 0:
            return "delay"
        estimate = self._full_batch_s(head)
        run_s = (0.0 if math.isinf(estimate) else estimate) + _DEADLINE_MARGIN_S
        to_deadline_s = self._groups[head.key].deadline - loop.time() - run_s
        if to_deadline_s <= 0:
            return "deadline"
        wait_s = min(left_s, to_deadline_s)
        self._delay_timer = loop.call_later(wait_s, self._release, loop, context=self._context)
        return ""

    def _full_batch_s(self, item: _Item) -> float:
        """Estimate the seconds of a full batch of such requests."""
        return self._estimates[item.kind].seconds(
            math.ceil(self._limits.max_batch_size * item.size / item.n_rows)
        )

    def _form(self, head: _Item) -> list[_Item]:
        """Take the oldest request, and those that may join it, out of the queue."""
        items = [head]
        if head.key is not None and not self._is_unbatched():
            n_left = self._limits.max_batch_size - head.n_rows
            for item in self._groups[head.key].items:
                if item is head or item.future.done():
                    continue
                if item.n_rows > n_left:
                    break
                items.append(item)
                n_left -= item.n_rows
        now = perf_counter()
        for item in items:
            self._take(item)
            self._metrics.waited(now - item.queued_at)
        self._metrics.took(len(items), sum(item.n_rows for item in items))
        return items

    # Where it runs, and what comes of it.

    def _runs_on_loop(self, batch: _Batch) -> bool:
        if not self._may_run_on_loop:
            return False
        return self._estimates[batch.kind].seconds(batch.size) < _MAX_ON_LOOP_S

    def _start(self, loop: asyncio.AbstractEventLoop, batch: _Batch, reason: str) -> None:
        running: asyncio.Future[None]
        if self._run_async is None:
            self._metrics.released(reason, "thread", batch.n_rows)
            try:
                running = self._threads.submit(batch.run, self._run)
            except RuntimeError as exc:
                # No thread can be started.
                _fail(batch.items, exc)
                batch.items = []
                return
        else:
            self._metrics.released(reason, "loop", batch.n_rows)
            work = batch.run_async(self._run_async)
            running = batch.task = loop.create_task(work, context=self._context.copy())
        self._n_running += 1

        def done(ended: asyncio.Future[None]) -> None:
            self._n_running -= 1
            if ended.cancelled():
                # Nobody waits for it any more.
                for item in batch.items:
                    item.future.cancel()
                batch.items = []
            else:
                self._finish(batch, on_loop=False)
            self._go_on(loop)

        running.add_done_callback(done, context=self._context)

    def _finish(self, batch: _Batch, *, on_loop: bool) -> None:
        """Give every request of a batch its result, or make parts of it to try again."""
        error = batch.error
        if error is None and len(batch.results) != len(batch.items):
            error = RowCountError(
                f"{len(batch.results)} results for a batch of {len(batch.items)} requests"
            )
        if error is None:
            if self._run_async is None and batch.items:
                self._estimates[batch.kind].add(
                    batch.size, batch.seconds, batch.cpu_seconds, on_loop=on_loop
                )
            for item, result in zip(batch.items, batch.results, strict=True):
                if not item.future.done():
                    item.result = result
                    item.future.set_result(None)
        else:
            self._fail_or_halve(batch, error)
        # They refer to one another, and the error to the frame that ran the batch: without this the
        # arrays would wait for the collector.
        batch.items = []
        batch.results = []
        batch.error = None

    def _fail_or_halve(self, batch: _Batch, error: Exception) -> None:
        if len(batch.items) == 1:
            _fail(batch.items, error)
            return
        if not batch.is_part:
            self._note_failure()
        if isinstance(error, RowCountError):
            # Whoever gives too few rows to many requests does not know which were whose.
            _fail(batch.items, error)
        else:
            middle = len(batch.items) // 2
            self._parts.extendleft([batch.items[middle:], batch.items[:middle]])

    def _is_unbatched(self) -> bool:
        return perf_counter() < self._unbatched_until

    def _note_failure(self) -> None:
        now = perf_counter()
        self._failures.append(now)
        is_often = len(self._failures) == _MAX_FAILURES and now - self._failures[0] < _FAILURES_S
        if is_often and not self._is_unbatched():
            self._unbatched_until = now + _UNBATCHED_S
            self._failures.clear()
            self._metrics.unbatched_spells.inc()
            logger.warning(
                "Model %s: %d batches failed in %.0f s, requests run one by one for %.0f s",
                self._metrics.model_name,
                _MAX_FAILURES,
                _FAILURES_S,
                _UNBATCHED_S,
            )


def _fail(items: list[_Item], error: Exception) -> None:
    for item in items:
        if not item.future.done():
            # Each raises its own, and adds to its traceback.
            item.future.set_exception(copy(error) if len(items) > 1 else error)
