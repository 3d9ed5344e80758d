"""Batches of many requests on one thread: fairness, limits, failures, cancelling, deadlines."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from hfserver.encoder.engine import EncoderEngine
from hfserver.encoder.tokenization import TokenizedText
from kserve.errors import DeadlineExceeded, InvalidInput, ModelNotReady, TooManyRequests

BAD = 99


class Recorder:
    """Stands for a model: gives the sum of a text, notes batches, waits and fails when told."""

    kind = "packed"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.error: Callable[[], BaseException] = lambda: RuntimeError("a bad text")
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
        self.batches.append([int(text.input_ids[0]) for text in texts])
        self.threads.add(threading.get_ident())
        assert torch.is_inference_mode_enabled()
        self.started.set()
        assert self.go_on.wait(10)
        if any(BAD in text.input_ids for text in texts):
            raise self.error()
        return [np.array([text.input_ids.sum()], np.float32) for text in texts]

    async def has_started(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.started.wait, 10)


def text(first: int, length: int = 1) -> TokenizedText:
    return TokenizedText(np.array([first] + [0] * (length - 1), np.int64))


def make(executor: Recorder, name: str = "m", **limits: Any) -> EncoderEngine:
    return EncoderEngine(name, executor, 100, **limits)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def blocked(engine: EncoderEngine, executor: Recorder) -> "asyncio.Task[Any]":
    """Let the model be busy with a text."""
    executor.started.clear()
    executor.go_on.clear()
    task = asyncio.create_task(engine.run([text(1)]))
    await executor.has_started()
    return task


async def waiting(engine: EncoderEngine, *requests: Sequence[TokenizedText]) -> list[Any]:
    """Start requests, and give their tasks once they wait."""
    tasks = [asyncio.create_task(engine.run(texts)) for texts in requests]
    await asyncio.sleep(0)
    return tasks


def test_results_come_in_the_order_of_the_texts_whatever_batches_they_were_in() -> None:
    executor = Recorder()

    results = run(make(executor, max_batch_tokens=4).run([text(n, 1 + n % 3) for n in range(20)]))

    assert [result.tolist() for result in results] == [[n] for n in range(20)]
    assert len(executor.batches) > 5


def test_no_texts_are_no_work() -> None:
    executor = Recorder()

    assert run(make(executor).run([])) == []
    assert executor.batches == []


def test_what_waits_while_the_model_is_busy_is_one_batch_on_one_thread() -> None:
    executor = Recorder()

    async def work() -> list[Any]:
        engine = make(executor)
        busy = await blocked(engine, executor)
        tasks = await waiting(engine, [text(2)], [text(3), text(4)])
        executor.go_on.set()
        return await asyncio.gather(busy, *tasks)

    results = run(work())

    assert [[float(row[0]) for row in rows] for rows in results] == [[1], [2], [3, 4]]
    assert executor.batches == [[1], [2, 3, 4]]
    assert executor.threads.isdisjoint({threading.get_ident()})
    assert len(executor.threads) == 1


def test_a_small_request_is_done_before_a_large_one_that_came_first() -> None:
    executor = Recorder()
    done: list[str] = []

    async def work() -> None:
        engine = make(executor, max_batch_tokens=4)
        busy = await blocked(engine, executor)
        large, small = await waiting(engine, [text(2)] * 100, [text(3)])
        large.add_done_callback(lambda _: done.append("large"))
        small.add_done_callback(lambda _: done.append("small"))
        executor.go_on.set()
        await asyncio.gather(busy, large, small)

    run(work())

    assert done == ["small", "large"]
    assert executor.batches[1] == [2, 3, 2, 2]


def test_another_models_texts_are_done_while_one_is_busy() -> None:
    executor, other = Recorder(), Recorder()

    async def work() -> None:
        engine = make(executor)
        busy = await blocked(engine, executor)

        assert (await make(other, "other").run([text(5)]))[0] == 5

        assert not busy.done()
        executor.go_on.set()
        await busy

    run(work())


def test_a_bad_text_fails_its_own_request_and_no_other() -> None:
    executor = Recorder()

    async def work() -> list[Any]:
        engine = make(executor)
        busy = await blocked(engine, executor)
        tasks = await waiting(engine, [text(2)], [text(3), text(BAD)], [text(4)], [text(5)])
        executor.go_on.set()
        results = await asyncio.gather(busy, *tasks, return_exceptions=True)
        # The thread lives on.
        return [*results, *await engine.run([text(6)])]

    _, two, bad, four, five, six = run(work())

    assert (two, four, five, six) == ([2.0], [4.0], [5.0], 6.0)
    assert isinstance(bad, RuntimeError)
    assert str(bad) == "a bad text"
    # In halves until it is alone.
    assert executor.batches == [
        [1],
        [2, 3, 4, 5, BAD],
        *([2, 3], [4, 5, BAD], [4], [5, BAD], [5], [BAD]),
        [6],
    ]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration])
def test_what_would_end_the_thread_or_the_loop_fails_a_request(error: type[BaseException]) -> None:
    executor = Recorder()
    executor.error = error

    async def work() -> list[Any]:
        engine = make(executor)
        with pytest.raises(RuntimeError, match=error.__name__):
            await engine.run([text(BAD)])
        return await engine.run([text(2)])

    assert run(work()) == [2.0]


def test_a_device_that_failed_makes_the_model_unavailable() -> None:
    executor = Recorder()
    executor.error = lambda: torch.AcceleratorError("CUDA error: device-side assert triggered", 710)
    reasons: list[str] = []

    async def work() -> list[Any]:
        engine = make(executor, max_batch_tokens=2, on_failure=reasons.append)
        busy = await blocked(engine, executor)
        tasks = await waiting(engine, [text(BAD), text(3)], [text(4)])
        assert engine.is_healthy
        executor.go_on.set()
        results = await asyncio.gather(busy, *tasks, return_exceptions=True)
        with pytest.raises(ModelNotReady, match="Its device failed: AcceleratorError"):
            await engine.run([text(5)])
        assert not engine.is_healthy
        return results

    _, bad, waited = run(work())

    assert isinstance(bad, torch.AcceleratorError)
    assert isinstance(waited, torch.AcceleratorError | ModelNotReady)
    assert reasons == ["Its device failed: AcceleratorError."]
    # Nothing is tried again on it.
    assert len(executor.batches) == 2


def test_memory_that_is_out_fails_only_what_is_too_large() -> None:
    executor = Recorder()
    executor.error = lambda: torch.OutOfMemoryError("CUDA out of memory")

    async def work() -> list[Any]:
        engine = make(executor)
        busy = await blocked(engine, executor)
        tasks = await waiting(engine, [text(BAD)], [text(3)])
        executor.go_on.set()
        return [engine.is_healthy, *await asyncio.gather(busy, *tasks, return_exceptions=True)]

    is_healthy, _, bad, good = run(work())

    assert is_healthy
    assert isinstance(bad, torch.OutOfMemoryError)
    assert good == [3.0]


def test_texts_of_a_caller_that_went_never_reach_the_model() -> None:
    executor = Recorder()

    async def work() -> None:
        engine = make(executor)
        busy = await blocked(engine, executor)
        gone, stays = await waiting(engine, [text(2), text(3)], [text(4)])
        gone.cancel()
        await asyncio.wait([gone])
        assert engine.n_queued_tokens == 1
        executor.go_on.set()
        await asyncio.gather(busy, stays)

    run(work())

    assert executor.batches == [[1], [4]]


def test_the_rest_of_a_request_that_is_cancelled_while_it_runs_is_not_run() -> None:
    executor = Recorder()

    async def work() -> None:
        engine = make(executor, max_batch_tokens=2)
        executor.go_on.clear()
        (task,) = await waiting(engine, [text(2)] * 10)
        await executor.has_started()
        task.cancel()
        await asyncio.wait([task])
        executor.go_on.set()
        await engine.run([text(3)])

    run(work())

    assert executor.batches == [[2, 2], [3]]


def test_a_deadline_that_passes_is_told_and_the_texts_leave_the_queue() -> None:
    executor = Recorder()

    async def work() -> None:
        engine = make(executor)
        busy = await blocked(engine, executor)
        with pytest.raises(DeadlineExceeded, match="no answer by the deadline of the request"):
            await engine.run([text(2)], deadline=asyncio.get_running_loop().time())
        assert engine.n_queued_tokens == 0
        executor.go_on.set()
        await busy

    run(work())

    assert executor.batches == [[1]]


def test_a_timeout_that_the_model_raises_is_no_deadline() -> None:
    executor = Recorder()
    executor.error = lambda: TimeoutError("of the model")

    async def work() -> None:
        deadline = asyncio.get_running_loop().time() + 60
        with pytest.raises(TimeoutError, match="of the model"):
            await make(executor).run([text(BAD)], deadline)

    run(work())


def test_more_than_may_wait_is_refused_and_a_request_to_an_empty_queue_never() -> None:
    executor = Recorder()

    async def work() -> None:
        engine = make(executor, max_queued_tokens=10)
        busy = await blocked(engine, executor)
        (large,) = await waiting(engine, [text(2, 30)])
        with pytest.raises(TooManyRequests) as refused:
            await engine.run([text(3, 2)])
        assert str(refused.value) == (
            "30 tokens wait for this model, 2 more would be over 10 (--max_queued_tokens)"
        )
        assert refused.value.retry_after_s >= 1
        executor.go_on.set()
        await asyncio.gather(busy, large)
        await engine.run([text(4)])

    run(work())

    assert executor.batches == [[1], [2], [4]]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([], "text 1: expected one token or more, got none"),
        ([5, 100], "text 1: expected tokens from 0 to 99, got 100"),
        ([-1, 5], "text 1: expected tokens from 0 to 99, got -1"),
    ],
)
def test_what_the_model_has_no_embedding_of_does_not_reach_it(ids: list[int], reason: str) -> None:
    executor = Recorder()

    with pytest.raises(InvalidInput) as refused:
        run(make(executor).run([text(1), TokenizedText(np.array(ids, np.int64))]))

    assert str(refused.value) == reason
    assert executor.batches == []


def test_a_model_that_is_unloaded_refuses_what_waits_and_what_comes() -> None:
    executor = Recorder()

    async def work() -> None:
        engine = make(executor)
        busy = await blocked(engine, executor)
        (waits,) = await waiting(engine, [text(2)])
        await asyncio.get_running_loop().run_in_executor(None, engine.close)
        with pytest.raises(ModelNotReady, match="It is unloaded"):
            await waits
        with pytest.raises(ModelNotReady, match="It is unloaded"):
            await engine.run([text(3)])
        executor.go_on.set()
        # What runs is answered.
        assert await busy == [1.0]

    run(work())


def test_an_engine_serves_one_loop_after_the_other() -> None:
    executor = Recorder()
    engine = make(executor)

    async def abandoned() -> None:
        await blocked(engine, executor)
        await waiting(engine, [text(2)])

    run(abandoned())
    executor.go_on.set()

    assert run(engine.run([text(3)])) == [3.0]


def test_a_batch_that_hangs_makes_the_model_unhealthy() -> None:
    executor = Recorder()

    async def work() -> None:
        engine = make(executor, hang_timeout_s=0.01)
        busy = await blocked(engine, executor)
        while not engine.has_hung:
            await asyncio.wait([busy], timeout=0.01)
        assert not engine.is_healthy
        executor.go_on.set()
        await busy

    run(work())


def test_what_waits_and_what_ran_is_counted() -> None:
    executor = Recorder()
    counted: dict[str, float | None] = {}

    def sample(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"model_name": "engine-metrics", **labels})

    async def work() -> None:
        engine = make(executor, "engine-metrics", max_batch_tokens=20)
        busy = await blocked(engine, executor)
        gone, stays = await waiting(engine, [text(2, 5)], [text(3, 7), text(4, 8)])
        for name in ("kserve_queue_tokens", "kserve_queue_rows", "kserve_queue_requests"):
            counted[name] = sample(name)
        gone.cancel()
        executor.go_on.set()
        await asyncio.gather(busy, stays)

    run(work())

    assert counted == {
        "kserve_queue_tokens": 20,
        "kserve_queue_rows": 3,
        "kserve_queue_requests": 2,
    }
    assert sample("kserve_queue_tokens") == 0
    assert sample("kserve_queue_left_total") == 1
    assert sample("kserve_batch_tokens_sum") == 16
    assert sample("kserve_batch_tokens_count") == 2
    assert sample("kserve_batch_rows_sum") == 3
    assert sample("kserve_queue_seconds_count") == 2
    assert sample("kserve_batches_total", reason="free", runs_on="thread") == 2
