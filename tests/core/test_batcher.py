"""Rows that wait together run together."""

import asyncio
import contextlib
import gc
import itertools
import math
import threading
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from kserve.batcher import Batcher, BatchLimits, deadline_var
from kserve.errors import RowCountError, TooManyRequests
from kserve.executor import ModelThreads, run_in_new_thread
from kserve.logging import request_id_var
from kserve.metrics import BatchMetrics

pytestmark = pytest.mark.anyio

_WAIT_S = 10
_names = (f"batcher-{n}" for n in itertools.count())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Doubler:
    """Doubles numbers, once it may; keeps what it was called with, and where."""

    def __init__(self, *, may_run: bool = True) -> None:
        self.batches: list[list[Any]] = []
        self.ran_on: list[str] = []
        self.has_begun = threading.Event()
        self.may_run = threading.Event()
        if may_run:
            self.may_run.set()

    def run(self, values: list[Any]) -> list[Any]:
        self.batches.append(values)
        self.ran_on.append("loop" if threading.current_thread().name == "MainThread" else "thread")
        self.has_begun.set()
        assert self.may_run.wait(_WAIT_S)
        return [2 * value for value in values]


class Clock:
    """The time, which passes only where the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("kserve.batcher.perf_counter", lambda: self.now)
        monkeypatch.setattr("kserve.batcher.thread_time", lambda: self.now)


def make(
    run: Callable[[list[Any]], list[Any]],
    max_batch_size: int = 8,
    *,
    threads: ModelThreads | None = None,
    run_async: Callable[[list[Any]], Awaitable[list[Any]]] | None = None,
    may_run_on_loop: bool = False,
    name: str = "",
    **limits: Any,
) -> Batcher:
    name = name or next(_names)
    return Batcher(
        run,
        threads or ModelThreads(name, limits.get("max_running", 1)),
        BatchLimits(max_batch_size, **limits),
        BatchMetrics(name),
        may_run_on_loop=may_run_on_loop,
        run_async=run_async,
    )


def ask(batcher: Batcher, value: Any, key: Hashable = "same", n_rows: int = 1) -> asyncio.Task[Any]:
    return asyncio.ensure_future(batcher.submit(value, key, n_rows))


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def until_begun(model: Doubler) -> None:
    assert await run_in_new_thread(model.has_begun.wait, _WAIT_S)


async def busy(batcher: Batcher, model: Doubler) -> asyncio.Task[Any]:
    """Begin a request that holds up the model."""
    task = ask(batcher, 0, "the first")
    await until_begun(model)
    return task


def counted(batcher: Batcher, sample: str, **labels: str) -> float:
    name = batcher._metrics.model_name
    # The rest of the registry would cost a property test seconds.
    families = REGISTRY.restricted_registry([sample]).collect()
    samples = (found for family in families for found in family.samples)
    return sum(found.value for found in samples if found.labels == {"model_name": name, **labels})


def released(batcher: Batcher) -> dict[tuple[str, str], float]:
    """Give the number of batches by why they were released and where they ran."""
    return {
        (reason, place): n
        for reason in ("free", "full", "delay", "deadline", "retry")
        for place in ("loop", "thread")
        if (n := counted(batcher, "kserve_batches_total", reason=reason, runs_on=place))
    }


def waiting(batcher: Batcher) -> tuple[float, float]:
    """Give the gauges of requests and rows that wait."""
    return counted(batcher, "kserve_queue_requests"), counted(batcher, "kserve_queue_rows")


# What is a batch.


async def test_what_waits_while_the_model_is_busy_runs_together_oldest_first() -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run)

    first = await busy(batcher, model)
    others = [ask(batcher, value) for value in (1, 2, 3)]
    await turns()
    seen = waiting(batcher)
    model.may_run.set()
    answers = await asyncio.gather(first, *others)

    assert answers == [0, 2, 4, 6]
    assert model.batches == [[0], [1, 2, 3]]
    assert (seen, waiting(batcher)) == ((3, 3), (0, 0))
    assert released(batcher) == {("free", "thread"): 2}
    assert counted(batcher, "kserve_batch_rows_sum") == 4
    assert counted(batcher, "kserve_queue_seconds_count") == 4


async def test_what_arrives_in_one_turn_of_the_loop_runs_together() -> None:
    model = Doubler()
    batcher = make(model.run)

    await asyncio.gather(*(ask(batcher, value) for value in (1, 2, 3)))

    assert model.batches == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([2, 2, 1], [[2, 2], [1]], id="as many rows as fit"),
        pytest.param([3, 2, 1], [[3], [2, 1]], id="none overtakes one that does not fit"),
        pytest.param([1, 9, 1], [[1], [9], [1]], id="a larger request alone and whole"),
        pytest.param([4, 4], [[4], [4]], id="full by itself"),
    ],
)
async def test_the_size_of_a_batch_is_in_rows(rows: list[int], expected: list[list[int]]) -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run, 4)

    tasks = [await busy(batcher, model)]
    tasks += [ask(batcher, n, n_rows=n) for n in rows]
    await turns()
    model.may_run.set()
    await asyncio.gather(*tasks)

    assert model.batches == [[0], *expected]
    assert waiting(batcher) == (0, 0)


async def test_requests_of_other_keys_or_of_none_never_join() -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run)

    tasks = [await busy(batcher, model)]
    keys: list[Hashable] = ["a", None, "b", "a", None, "b"]
    tasks += [ask(batcher, value, key) for value, key in enumerate(keys, 1)]
    await turns()
    model.may_run.set()
    answers = await asyncio.gather(*tasks)

    assert answers == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches == [[0], [1, 4], [2], [3, 6], [5]]


async def test_the_oldest_goes_first_however_many_of_another_key_keep_coming() -> None:
    batcher: Batcher
    tasks: list[asyncio.Task[Any]] = []
    batches: list[list[str]] = []

    async def run(values: list[Any]) -> list[Any]:
        batches.append(values)
        if len(batches) < 4:
            tasks.append(ask(batcher, f"a{len(batches)}", "a"))
            await turns()
        return values

    batcher = make(Doubler().run, run_async=run)
    tasks += [ask(batcher, "a0", "a"), ask(batcher, "b0", "b"), ask(batcher, "c0", "c")]

    while not all(task.done() for task in tasks):
        await asyncio.gather(*tasks)

    assert batches == [["a0"], ["b0"], ["c0"], ["a1", "a2", "a3"]]


async def test_a_key_without_a_hash_fails_its_request_and_leaves_nothing_behind() -> None:
    model = Doubler()
    batcher = make(model.run)

    with pytest.raises(TypeError, match="unhashable"):
        await batcher.submit(1, [], 1)  # type: ignore[arg-type]

    assert await batcher.submit(2, "same", 1) == 4
    assert (model.batches, waiting(batcher)) == ([[2]], (0, 0))


async def test_a_batch_is_under_no_request_s_id_or_deadline() -> None:
    seen = []

    def run(values: list[Any]) -> list[Any]:
        seen.append((request_id_var.get(), deadline_var.get()))
        return values

    request_id_var.set("mine")
    deadline_var.set(5.0)
    batcher = make(run)
    await batcher.submit(1, "same", 1)

    assert seen == [("", math.inf)]


# When a batch is released.


async def test_a_full_batch_is_released_at_once() -> None:
    model = Doubler()
    batcher = make(model.run, 2, max_batch_delay_s=3600)

    answers = await asyncio.gather(ask(batcher, 1), ask(batcher, 2))

    assert [*answers] == [2, 4]
    assert (model.batches, released(batcher)) == ([[1, 2]], {("full", "thread"): 1})


async def test_a_request_that_fills_a_waiting_batch_releases_it() -> None:
    model = Doubler()
    batcher = make(model.run, 2, max_batch_delay_s=3600)

    first = ask(batcher, 1)
    await turns(5)
    before = list(model.batches)
    await asyncio.gather(first, ask(batcher, 2))

    assert (before, model.batches) == ([], [[1, 2]])
    assert released(batcher) == {("full", "thread"): 1}


async def test_a_batch_that_does_not_fill_is_released_after_the_delay() -> None:
    model = Doubler()
    batcher = make(model.run, 8, max_batch_delay_s=0.001)

    assert await batcher.submit(1, "same", 1) == 2

    assert released(batcher) == {("delay", "thread"): 1}


@pytest.mark.parametrize("is_first", [True, False], ids=["of the oldest", "of a later one"])
async def test_a_batch_is_released_in_time_for_a_deadline(is_first: bool) -> None:
    model = Doubler()
    batcher = make(model.run, 8, max_batch_delay_s=3600)

    async def hurried() -> Any:
        deadline_var.set(asyncio.get_running_loop().time() + 0.03)
        return await batcher.submit(1, "same", 1)

    tasks = [ask(batcher, 2)]
    await turns(0 if is_first else 5)
    tasks.insert(0 if is_first else 1, asyncio.ensure_future(hurried()))
    await asyncio.gather(*tasks)

    assert (sorted(model.batches[0]), released(batcher)) == ([1, 2], {("deadline", "thread"): 1})


@pytest.mark.parametrize("key", ["another", None])
async def test_a_free_model_waits_for_no_rows_while_others_wait_that_cannot_join(
    key: Hashable,
) -> None:
    model = Doubler()
    batcher = make(model.run, 8, max_batch_delay_s=3600)

    first = ask(batcher, 1)
    await turns(5)
    before = list(model.batches)
    other = ask(batcher, 2, key)

    assert (before, await first) == ([], 2)
    if key is not None:
        # It waits to fill now; whoever cannot join ends that.
        ask(batcher, 3, None)
    assert await other == 4
    assert model.batches[:2] == [[1], [2]]


async def test_a_timer_ends_with_the_last_request_that_it_is_for() -> None:
    model = Doubler()
    batcher = make(model.run, 2, max_batch_delay_s=3600)

    task = ask(batcher, 1)
    await turns(5)
    was_set = batcher._delay_timer is not None
    task.cancel()
    await turns()
    is_set = batcher._delay_timer is not None

    assert [*await asyncio.gather(ask(batcher, 2), ask(batcher, 3))] == [4, 6]
    assert (was_set, is_set) == (True, False)


async def test_as_many_batches_run_at_the_same_time_as_may() -> None:
    barrier = threading.Barrier(2)
    batches = []

    def run(values: list[Any]) -> list[Any]:
        batches.append(values)
        barrier.wait(_WAIT_S)
        return values

    batcher = make(run, 1, max_running=2)
    answers = await asyncio.gather(*(ask(batcher, value) for value in range(4)))

    assert answers == [0, 1, 2, 3]
    assert sorted(batches[:2]) == [[0], [1]]


async def test_no_more_batches_run_than_may() -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run, 1, threads=ModelThreads("wide", 4), max_running=2)

    tasks = [ask(batcher, value) for value in range(4)]
    await until_begun(model)
    await turns()
    begun = waiting(batcher)
    model.may_run.set()
    await asyncio.gather(*tasks)

    assert (begun, waiting(batcher)) == ((2, 2), (0, 0))


async def test_parts_of_a_failed_batch_do_not_wait_for_another_batch_to_fill() -> None:
    may_fail = asyncio.Event()

    async def run(values: list[Any]) -> list[Any]:
        if len(values) > 1:
            await may_fail.wait()
            raise OSError
        return values

    batcher = make(Doubler().run, 2, run_async=run, max_running=2, max_batch_delay_s=3600)
    failing = [ask(batcher, value) for value in (1, 2)]
    await turns()
    filling = ask(batcher, 3)
    await turns()
    may_fail.set()

    assert await asyncio.gather(*failing) == [1, 2]
    filling.cancel()


# Who goes.


async def test_a_cancelled_request_leaves_the_queue_and_is_counted() -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run)

    first = await busy(batcher, model)
    gone, stays = ask(batcher, 1, n_rows=5), ask(batcher, 2)
    await turns()
    gone.cancel()
    await turns()
    seen = waiting(batcher)
    model.may_run.set()
    await asyncio.gather(first, stays)

    assert gone.cancelled()
    assert (seen, waiting(batcher)) == ((1, 1), (0, 0))
    assert model.batches == [[0], [2]]
    assert counted(batcher, "kserve_queue_left_total") == 1


@pytest.mark.parametrize("index", [0, 1], ids=["the oldest", "another"])
async def test_a_request_that_is_cancelled_in_the_turn_of_the_release_does_not_run(
    index: int,
) -> None:
    model = Doubler()
    batcher = make(model.run)

    tasks = [ask(batcher, value) for value in (1, 2, 3)]
    # Each is in the queue now, and the release comes next: before their turns, if not before this.
    await asyncio.sleep(0)
    tasks[index].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    left = [value for value in (1, 2, 3) if value != index + 1]
    assert model.batches == [left]
    assert [answer for answer in answers if isinstance(answer, int)] == [2 * v for v in left]
    assert waiting(batcher) == (0, 0)
    assert counted(batcher, "kserve_queue_left_total") == 1


@pytest.mark.parametrize("n_gone", [1, 2], ids=["one of them", "all of them"])
async def test_callers_that_go_while_their_batch_waits_for_a_thread_disturb_nobody(
    n_gone: int,
) -> None:
    model = Doubler()
    threads = ModelThreads("shared")
    batcher = make(model.run, threads=threads)
    release = threading.Event()
    # As a handler of the same model does.
    blocking = threads.submit(release.wait, _WAIT_S)

    tasks = [ask(batcher, value) for value in (1, 2)]
    await turns()
    for task in tasks[:n_gone]:
        task.cancel()
    await turns()
    release.set()
    await blocking
    answers = await asyncio.gather(*tasks, ask(batcher, 3), return_exceptions=True)

    assert answers[n_gone:] == [4, 6][n_gone - 1 :]
    assert model.batches == ([[2], [3]] if n_gone == 1 else [[3]])
    assert counted(batcher, "kserve_batches_total", reason="retry", runs_on="thread") == 0


async def test_a_caller_that_goes_while_its_batch_runs_leaves_the_others_their_answers() -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run)

    tasks = [ask(batcher, value) for value in (1, 2)]
    await until_begun(model)
    tasks[0].cancel()
    await turns()
    model.may_run.set()

    assert await tasks[1] == 4
    assert tasks[0].cancelled()
    assert model.batches == [[1, 2]]
    assert await batcher.submit(3, "same", 1) == 6


async def test_a_caller_that_is_cancelled_in_the_turn_of_its_answer_is_cancelled() -> None:
    async def run(values: list[Any]) -> list[Any]:
        batch = asyncio.current_task()
        assert batch is not None
        # After the answer has been given, and before the caller has its turn.
        batch.add_done_callback(lambda _: task.cancel())
        return values

    batcher = make(Doubler().run, run_async=run)
    task = ask(batcher, 1)
    await asyncio.wait([task])
    was_cancelled = task.cancelled()
    task = ask(batcher, 2)
    await asyncio.wait([task])

    assert (was_cancelled, task.cancelled()) == (True, True)
    assert (batcher._n_running, waiting(batcher)) == (0, (0, 0))


async def test_an_async_batch_is_cancelled_once_all_its_callers_have_gone() -> None:
    outcome = []
    started = asyncio.Event()

    async def run(values: list[Any]) -> list[Any]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            outcome.append(values)
        return values

    batcher = make(Doubler().run, run_async=run)
    tasks = [ask(batcher, value) for value in (1, 2)]
    await started.wait()
    tasks[0].cancel()
    await turns()
    after_one = list(outcome)
    tasks[1].cancel()
    await turns()

    assert (after_one, outcome) == ([], [[1, 2]])
    assert (batcher._n_running, waiting(batcher)) == (0, (0, 0))


async def test_callers_that_go_before_their_async_batch_has_begun_are_left_out() -> None:
    batches = []

    async def run(values: list[Any]) -> list[Any]:
        batches.append(values)
        return values

    batcher = make(Doubler().run, run_async=run)
    tasks = [ask(batcher, value) for value in (1, 2)]
    while batcher._n_running == 0:
        await asyncio.sleep(0)
        if batcher._n_running:
            tasks[0].cancel()

    assert await tasks[1] == 2
    assert batches in ([[2]], [[1, 2]])


# How many may wait.


async def test_more_rows_than_may_wait_are_refused_while_others_wait() -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run, max_queued_rows=4)

    first = await busy(batcher, model)
    tasks = [ask(batcher, 1, n_rows=3)]
    await turns()
    with pytest.raises(TooManyRequests) as refused:
        await batcher.submit(2, "same", 2)
    tasks.append(ask(batcher, 3))
    await turns()
    model.may_run.set()
    answers = await asyncio.gather(first, *tasks)

    assert str(refused.value) == (
        "3 rows wait for this model, 2 more would be over 4 (--max_queued_rows)"
    )
    # Nothing is known of this model yet.
    assert refused.value.retry_after_s == 1
    assert (answers, waiting(batcher)) == ([0, 2, 6], (0, 0))


async def test_a_request_is_never_refused_while_nothing_waits() -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run, max_queued_rows=4)

    first = await busy(batcher, model)
    large = ask(batcher, 1, n_rows=100)
    await turns()
    seen = waiting(batcher)
    model.may_run.set()

    assert [*await asyncio.gather(first, large)] == [0, 2]
    assert seen == (1, 100)


@pytest.mark.parametrize(
    ("row_s", "expected"),
    [pytest.param(0.5, 12, id="what the queue takes"), pytest.param(50.0, 60, id="at most 60 s")],
)
async def test_a_refusal_tells_when_to_try_again(
    row_s: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    model = Doubler()

    def run(values: list[Any]) -> list[Any]:
        clock.now += row_s * sum(values)
        return model.run(values)

    batcher = make(run, 8, max_queued_rows=20)
    for n_rows in (4, 8, 4, 8, 4):
        await batcher.submit(n_rows, "same", n_rows)
    model.may_run.clear()
    model.has_begun.clear()
    first = await busy(batcher, model)
    waits = ask(batcher, 20, n_rows=20)
    await turns()

    with pytest.raises(TooManyRequests) as refused:
        await batcher.submit(1, "same", 1)
    model.may_run.set()
    await asyncio.gather(first, waits)

    assert refused.value.retry_after_s == expected


# What fails.


class Picky(Doubler):
    """Raises for a batch that holds a culprit."""

    def __init__(self, *culprits: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.culprits = set(culprits)
        self.error = error or OSError("a culprit")

    def run(self, values: list[Any]) -> list[Any]:
        super().run(values)
        if self.culprits.intersection(values):
            raise self.error
        return [2 * value for value in values]


async def test_a_batch_that_fails_is_halved_until_only_the_culprit_fails() -> None:
    model = Picky(3)
    batcher = make(model.run)

    answers = await asyncio.gather(
        *(ask(batcher, value) for value in range(8)), return_exceptions=True
    )

    assert answers[:3] + answers[4:] == [0, 2, 4, 8, 10, 12, 14]
    assert answers[3] is model.error
    assert model.batches == [[*range(8)], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7]]
    assert released(batcher) == {("full", "thread"): 1, ("retry", "thread"): 6}
    assert waiting(batcher) == (0, 0)


async def test_parts_of_a_failed_batch_go_before_what_waits() -> None:
    batcher: Batcher
    later: list[asyncio.Task[Any]] = []
    batches: list[list[Any]] = []

    async def run(values: list[Any]) -> list[Any]:
        batches.append(values)
        if len(values) == 2:
            later.append(ask(batcher, 9))
            await turns()
            raise OSError
        return values

    batcher = make(Doubler().run, run_async=run)
    answers = await asyncio.gather(ask(batcher, 1), ask(batcher, 2))
    await asyncio.gather(*later)

    assert ([*answers], batches) == ([1, 2], [[1, 2], [1], [2], [9]])


async def test_a_caller_that_goes_while_its_part_waits_is_not_run_again() -> None:
    batches: list[list[Any]] = []
    tasks: list[asyncio.Task[Any]] = []

    async def run(values: list[Any]) -> list[Any]:
        batches.append(values)
        if len(values) == 4:
            raise OSError
        if values == [1, 2]:
            tasks[3].cancel()
            await turns()
        return values

    batcher = make(Doubler().run, run_async=run)
    tasks += [ask(batcher, value) for value in (1, 2, 3, 4)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert answers[:3] == [1, 2, 3]
    assert batches == [[1, 2, 3, 4], [1, 2], [3]]


@pytest.mark.parametrize("raises", [True, False], ids=["raised", "counted here"])
async def test_a_wrong_row_count_is_not_tried_again_and_each_has_an_error_of_its_own(
    raises: bool,
) -> None:
    batches = []

    def run(values: list[Any]) -> list[Any]:
        batches.append(values)
        if raises:
            raise RowCountError("too few")
        return values[:1]

    batcher = make(run)
    answers = await asyncio.gather(ask(batcher, 1), ask(batcher, 2), return_exceptions=True)

    reason = "too few" if raises else "1 results for a batch of 2 requests"
    assert [(type(answer), str(answer)) for answer in answers] == [(RowCountError, reason)] * 2
    assert answers[0] is not answers[1]
    assert batches == [[1, 2]]


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration(1)],
    ids=lambda error: type(error).__name__,
)
async def test_what_would_end_the_loop_or_a_task_fails_the_culprit_alone(
    error: BaseException,
) -> None:
    model = Picky(1, error=error)
    batcher = make(model.run)

    answers = await asyncio.gather(ask(batcher, 1), ask(batcher, 2), return_exceptions=True)

    assert isinstance(answers[0], RuntimeError)
    assert (str(answers[0]), answers[1]) == (f"{type(error).__name__} raised by a handler", 4)


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), asyncio.CancelledError(), OSError()],
    ids=lambda error: type(error).__name__,
)
async def test_what_an_async_batch_raises_fails_the_culprit_alone(error: BaseException) -> None:
    async def run(values: list[Any]) -> list[Any]:
        if 1 in values:
            raise error
        return values

    batcher = make(Doubler().run, run_async=run)
    answers = await asyncio.gather(ask(batcher, 1), ask(batcher, 2), return_exceptions=True)

    assert isinstance(answers[0], Exception)
    assert answers[1] == 2
    assert await batcher.submit(3, "same", 1) == 3


async def test_threads_that_cannot_be_started_fail_what_waits_and_nothing_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    batcher = make(Doubler().run, 2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        answers = await asyncio.gather(
            *(ask(batcher, value) for value in range(3)), return_exceptions=True
        )

    assert [str(answer) for answer in answers] == ["can't start new thread"] * 3
    assert len(set(map(id, answers))) == 3
    assert await batcher.submit(3, "same", 1) == 6
    assert waiting(batcher) == (0, 0)


async def fail_batches(batcher: Batcher, model: Picky, n: int) -> None:
    for _ in range(n):
        await asyncio.gather(ask(batcher, -1), ask(batcher, 1), return_exceptions=True)


async def test_a_model_whose_batches_keep_failing_runs_unbatched_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    model = Picky(-1)
    batcher = make(model.run, max_batch_delay_s=0)

    await fail_batches(batcher, model, 3)
    model.batches.clear()
    await asyncio.gather(*(ask(batcher, value) for value in (1, 2, 3)))
    clock.now += 29.9
    await asyncio.gather(*(ask(batcher, value) for value in (4, 5)))
    clock.now += 0.2
    await asyncio.gather(*(ask(batcher, value) for value in (6, 7)))

    assert model.batches == [[1], [2], [3], [4], [5], [6, 7]]
    assert counted(batcher, "kserve_unbatched_spells_total") == 1


@pytest.mark.parametrize(("pause_s", "expected"), [(4.9, 1), (5.1, 0)], ids=["often", "seldom"])
async def test_failures_count_for_ten_seconds(
    pause_s: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    model = Picky(-1)
    batcher = make(model.run)

    for _ in range(3):
        await fail_batches(batcher, model, 1)
        clock.now += pause_s

    assert counted(batcher, "kserve_unbatched_spells_total") == expected


async def test_a_model_that_runs_unbatched_waits_for_no_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Clock(monkeypatch)
    model = Picky(-1)
    batcher = make(model.run, 2, max_batch_delay_s=3600)
    await fail_batches(batcher, model, 3)

    assert await batcher.submit(1, "same", 1) == 2


async def test_errors_of_single_requests_are_no_failures_of_batches() -> None:
    model = Picky(-1)
    batcher = make(model.run)

    for _ in range(5):
        with pytest.raises(OSError, match="a culprit"):
            await batcher.submit(-1, "same", 1)

    assert counted(batcher, "kserve_unbatched_spells_total") == 0


# Where it runs.


def timed(clock: Clock, seconds: float, model: Doubler) -> Callable[[list[Any]], list[Any]]:
    def run(values: list[Any]) -> list[Any]:
        clock.now += seconds * sum(values)
        return model.run(values)

    return run


@pytest.mark.parametrize(
    ("row_s", "may_run_on_loop", "expected"),
    [
        pytest.param(0.0009, True, ["thread"] * 3 + ["loop"] * 2, id="cheap"),
        pytest.param(0.0011, True, ["thread"] * 5, id="dear"),
        pytest.param(0.0009, False, ["thread"] * 5, id="code of the user"),
    ],
)
async def test_a_batch_runs_on_the_loop_once_it_is_known_to_be_cheap(
    row_s: float, may_run_on_loop: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Doubler()
    batcher = make(timed(Clock(monkeypatch), row_s, model), may_run_on_loop=may_run_on_loop)

    for _ in range(5):
        await batcher.submit(1, "same", 1)

    assert model.ran_on == expected


async def test_more_rows_than_are_cheap_run_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Doubler()
    batcher = make(timed(Clock(monkeypatch), 0.0001, model), 64, may_run_on_loop=True)

    for n_rows in (1, 1, 1, 9, 11):
        await batcher.submit(n_rows, "same", n_rows)

    assert model.ran_on == ["thread"] * 3 + ["loop", "thread"]


async def test_rows_of_a_much_larger_size_run_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Doubler()
    batcher = make(timed(Clock(monkeypatch), 0.0001, model), 64, may_run_on_loop=True)

    for size in (1, 1, 1, 9, 1000):
        await batcher.submit(size, "same", 1, size)

    assert model.ran_on == ["thread"] * 3 + ["loop", "thread"]


async def test_a_dear_kind_of_request_never_runs_on_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Doubler()
    batcher = make(timed(Clock(monkeypatch), 0.0001, model), may_run_on_loop=True)

    # Taken for one kind, every dear one would be an outlier among the cheap.
    for value, kind in [(1, None), (50, "dear")] * 5:
        await batcher.submit(value, kind, 1, 1, kind)

    assert model.ran_on[0::2] == ["thread"] * 3 + ["loop"] * 2
    assert model.ran_on[1::2] == ["thread"] * 5


async def test_a_model_that_becomes_slow_leaves_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    model = Doubler()
    row_s = 0.0001

    def run(values: list[Any]) -> list[Any]:
        clock.now += row_s
        return model.run(values)

    batcher = make(run, may_run_on_loop=True)
    for _ in range(20):
        await batcher.submit(1, "same", 1)
    row_s = 0.005
    model.ran_on.clear()
    for _ in range(5):
        await batcher.submit(1, "same", 1)

    assert model.ran_on == ["loop", "loop", "thread", "thread", "thread"]


async def test_one_batch_a_turn_runs_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Doubler()
    turn = 0
    ran_in = []

    def run(values: list[Any]) -> list[Any]:
        ran_in.append(turn)
        return model.run(values)

    def count() -> None:
        nonlocal turn
        turn += 1
        if turn < 50:
            loop.call_soon(count)

    Clock(monkeypatch)
    loop = asyncio.get_running_loop()
    batcher = make(run, 1, may_run_on_loop=True)
    for _ in range(3):
        await batcher.submit(1, "same", 1)
    ran_in.clear()
    tasks = [ask(batcher, value) for value in (1, 2, 3)]
    count()
    answers = await asyncio.gather(*tasks)

    assert answers == [2, 4, 6]
    assert ran_in == [ran_in[0], ran_in[0] + 1, ran_in[0] + 2]


async def test_what_the_model_raises_on_the_loop_fails_the_culprit_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Clock(monkeypatch)
    model = Picky(-1, error=SystemExit(3))
    batcher = make(model.run, may_run_on_loop=True)
    for _ in range(3):
        await batcher.submit(1, "same", 1)

    answers = await asyncio.gather(ask(batcher, -1), ask(batcher, 1), return_exceptions=True)

    assert [str(answers[0]), answers[1]] == ["SystemExit raised by a handler", 2]
    assert released(batcher)["retry", "loop"] == 2


# What is left.


class Payload:
    """Something that a weak reference can watch."""


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def give(values: list[Any]) -> list[Any]:
    return [Payload() for _ in values]


def raise_error(values: list[Any]) -> list[Any]:
    raise OSError


def give_too_few(values: list[Any]) -> list[Any]:
    return []


async def give_async(values: list[Any]) -> list[Any]:
    return give(values)


async def raise_async(values: list[Any]) -> list[Any]:
    raise OSError


@pytest.mark.parametrize(
    ("run", "run_async"),
    [
        pytest.param(give, None, id="result"),
        pytest.param(raise_error, None, id="error"),
        pytest.param(give_too_few, None, id="too few rows"),
        pytest.param(give, give_async, id="async result"),
        pytest.param(give, raise_async, id="async error"),
    ],
)
@pytest.mark.parametrize("on_loop", [False, True], ids=["thread", "loop"])
async def test_nothing_of_a_request_waits_for_the_collector(
    run: Any, run_async: Any, on_loop: bool, without_collector: None
) -> None:
    batcher = make(run, run_async=run_async, may_run_on_loop=on_loop)
    if on_loop:
        for _ in range(3):
            batcher._estimates[None].add(1, 1e-6, 1e-6, on_loop=True)
    freed = []

    async def once() -> None:
        payload = Payload()
        freed.append(weakref.ref(payload))
        with contextlib.suppress(OSError, RowCountError):
            freed.append(weakref.ref(await batcher.submit(payload, "same", 1)))

    await asyncio.gather(once(), once())
    await turns()
    # The thread lets go a moment after the loop has the result.
    await batcher._threads.run(int)

    assert [ref() for ref in freed] == [None] * len(freed)


async def test_nothing_of_a_request_that_was_cancelled_waits_for_the_collector(
    without_collector: None,
) -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run)
    first = await busy(batcher, model)

    async def leave() -> weakref.ref[Payload]:
        payload = Payload()
        task = ask(batcher, payload)
        await turns()
        task.cancel()
        await asyncio.wait([task])
        return weakref.ref(payload)

    is_freed = await leave()

    assert is_freed() is None
    model.may_run.set()
    await first


async def test_nothing_waits_for_the_collector_if_no_thread_can_be_started(
    without_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    batcher = make(give)

    async def fail() -> weakref.ref[Payload]:
        payload = Payload()
        task = ask(batcher, payload)
        await asyncio.wait([task])
        assert str(task.exception()) == "can't start new thread"
        return weakref.ref(payload)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        is_freed = await fail()

    assert is_freed() is None


# A server that is stopped and started again has another event loop.


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({}, id="release due"),
        pytest.param({"max_batch_delay_s": 3600}, id="waiting to fill"),
    ],
)
def test_a_loop_that_ends_with_requests_in_the_queue_does_not_stop_the_next(
    limits: dict[str, Any],
) -> None:
    model = Doubler()
    batcher = make(model.run, 2, **limits)

    async def leave() -> None:
        ask(batcher, 1)
        await turns(5 if limits else 1)

    async def return_() -> Any:
        return await asyncio.gather(ask(batcher, 2), ask(batcher, 3))

    asyncio.run(leave())

    assert asyncio.run(return_()) == [4, 6]
    assert waiting(batcher) == (0, 0)


def test_a_loop_that_ends_while_a_batch_runs_does_not_stop_the_next() -> None:
    model = Doubler(may_run=False)
    batcher = make(model.run)

    async def leave() -> None:
        await busy(batcher, model)

    async def return_() -> Any:
        return await batcher.submit(2, "same", 1)

    asyncio.run(leave())
    model.may_run.set()

    assert asyncio.run(return_()) == 4


# All of it.


class Wrong(Exception):
    """What a culprit raises."""


cases_of_requests = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", None]),
        st.integers(1, 6),
        st.sampled_from(["good", "good", "good", "culprit", "cancelled", "late"]),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=16,
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    cases_of_requests,
    st.integers(1, 8),
    st.integers(1, 2),
    st.sampled_from([0.0, 0.001]),
    st.sampled_from(["thread", "loop", "async"]),
)
def test_every_answer_is_that_of_its_own_request(
    cases: list[tuple[Any, int, str, int]], size: int, n_running: int, delay_s: float, place: str
) -> None:
    def run(values: list[Any]) -> list[Any]:
        (key,) = {key for _, key, _, _ in values}
        assert key is not None or len(values) == 1
        assert len(values) == 1 or sum(n_rows for _, _, n_rows, _ in values) <= size
        if any(kind == "culprit" for *_, kind in values):
            raise Wrong
        return [number for number, *_ in values]

    async def run_async(values: list[Any]) -> list[Any]:
        await asyncio.sleep(0)
        return run(values)

    async def request(batcher: Batcher, number: int, case: tuple[Any, int, str, int]) -> Any:
        key, n_rows, kind, n_turns = case
        await turns(n_turns)
        return await batcher.submit((number, key, n_rows, kind), key, n_rows)

    async def scenario() -> tuple[list[Any], Batcher]:
        batcher = make(
            run,
            size,
            name="batcher-property",
            max_running=n_running,
            max_batch_delay_s=delay_s,
            may_run_on_loop=place == "loop",
            run_async=run_async if place == "async" else None,
        )
        if place == "loop":
            for _ in range(3):
                batcher._estimates[None].add(1, 1e-6, 1e-6, on_loop=True)
        tasks = [
            asyncio.ensure_future(request(batcher, number, case))
            for number, case in enumerate(cases)
        ]
        for task, (*_, kind, n_turns) in zip(tasks, cases, strict=True):
            if kind == "cancelled":
                await turns(n_turns)
                task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        # A batch whose callers have gone still runs.
        while batcher._n_running:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
        return answers, batcher

    answers, batcher = asyncio.run(scenario())

    for number, (answer, (_, _, kind, _)) in enumerate(zip(answers, cases, strict=True)):
        if kind == "culprit":
            assert isinstance(answer, Wrong)
        elif kind == "cancelled":
            assert answer == number or isinstance(answer, asyncio.CancelledError)
        else:
            assert answer == number
    assert (waiting(batcher), batcher._queue, batcher._groups) == ((0, 0), {}, {})
    assert (batcher._n_rows, batcher._n_running, list(batcher._parts)) == (0, 0, [])
