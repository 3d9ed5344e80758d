"""Requests that fail, leave or are too many harm no others."""

import asyncio
import threading
import time
from typing import Any

import pytest
import torch

from hfserver.generation.interface import ContextLengthExceeded, PromptEvent, TokenEvent
from kserve.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    ModelNotReady,
    TooManyRequests,
)

pytestmark = pytest.mark.anyio


async def test_events_come_one_by_one_and_end_with_the_reason(
    executor: Any, make_engine: Any
) -> None:
    engine = make_engine(executor)

    events = [event async for event in engine.submit(engine.request([7], max_tokens=3))]

    assert events == [
        PromptEvent(0),
        TokenEvent(0, (8,), "<8>"),
        TokenEvent(0, (9,), "<9>"),
        TokenEvent(0, (10,), "<10>", finish_reason="length"),
    ]


async def test_cancelled_request_leaves_within_two_steps(
    executor: Any, make_engine: Any, until: Any
) -> None:
    executor.permits = threading.Semaphore(1)
    engine = make_engine(executor)
    stream = engine.submit(engine.request([1], request_id="gone"))
    assert isinstance(await anext(stream), PromptEvent)
    n_calls = len(executor.calls)

    engine.cancel("gone")
    executor.permits.release(2)

    await until(lambda: engine.stats().n_running == 0)
    assert len(executor.calls) <= n_calls + 2
    events = [event async for event in stream]
    assert events[-1] == TokenEvent(0, finish_reason="cancelled")


async def test_client_that_stops_reading_frees_its_place(
    executor: Any, make_engine: Any, until: Any
) -> None:
    executor.permits = threading.Semaphore(1)
    engine = make_engine(executor)
    stream = engine.submit(engine.request([1]))
    await anext(stream)
    n_calls = len(executor.calls)

    await stream.aclose()
    executor.permits.release(2)

    await until(lambda: engine.stats().n_running == 0)
    assert len(executor.calls) <= n_calls + 2
    assert engine.stats().kv_used_bytes == 0


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "dropped"])
async def test_stream_that_nobody_has_read_frees_its_place(
    closes: bool, executor: Any, make_engine: Any, until: Any
) -> None:
    executor.permits = threading.Semaphore(1)
    engine = make_engine(executor)
    stream = engine.submit(engine.request([1]))
    await until(lambda: engine.stats().n_running == 1)

    if closes:
        await stream.aclose()
    del stream
    executor.permits.release(2)

    await until(lambda: engine.stats().n_running == 0)
    assert len(executor.calls) <= 3


async def test_task_that_is_cancelled_while_it_waits_frees_its_place(
    executor: Any, make_engine: Any, until: Any
) -> None:
    executor.permits = threading.Semaphore(1)
    engine = make_engine(executor)
    task = asyncio.create_task(engine.ask([1]))
    await until(lambda: len(executor.calls) == 1)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    executor.permits.release(2)

    await until(lambda: engine.stats().n_running == 0)
    assert len(executor.calls) <= 3


async def test_queue_that_is_full_refuses_with_429(
    executor: Any, make_engine: Any, until: Any
) -> None:
    executor.permits = threading.Semaphore(0)
    engine = make_engine(executor, max_num_seqs=1, max_waiting_requests=1)
    first = asyncio.create_task(engine.ask([1], max_tokens=2))
    # It is in the forward, which has no permit yet.
    await until(lambda: executor.n_waiting == 1)
    second = asyncio.create_task(engine.ask([5], max_tokens=2))
    await asyncio.sleep(0)

    with pytest.raises(TooManyRequests, match="1 requests wait .*--max_waiting_requests") as info:
        await engine.ask([9], max_tokens=2)

    assert (info.value.http_status, info.value.http_headers) == (429, {"retry-after": "1"})
    executor.permits.release(10)
    assert (await first).tokens == {0: [2, 3]}
    assert (await second).tokens == {0: [6, 7]}


async def test_prompt_that_breaks_the_forward_fails_alone(executor: Any, make_engine: Any) -> None:
    executor.permits = threading.Semaphore(0)
    executor.broken = lambda ids: RuntimeError("boom") if 66 in ids else None
    engine = make_engine(executor)
    tasks = [asyncio.create_task(engine.ask([start], max_tokens=8)) for start in (10, 63, 30, 50)]
    await asyncio.sleep(0)
    executor.permits.release(100)

    good = [await task for task in (tasks[0], tasks[2], tasks[3])]

    assert [answer.tokens[0] for answer in good] == [
        list(range(start + 1, start + 9)) for start in (10, 30, 50)
    ]
    with pytest.raises(RuntimeError, match="boom"):
        await tasks[1]
    assert engine.health() is None
    assert (await engine.ask([1], max_tokens=1)).tokens == {0: [2]}


@pytest.mark.parametrize("family", ["llama", "bloom", "qwen3_next", "t5"])
async def test_neighbours_of_what_breaks_a_forward_get_the_same_tokens(
    family: str, toy_model: Any, make_engine: Any, plain_generate: Any
) -> None:
    model = toy_model(family)
    prompts = [[20, 30, 40], [21, 31, 41, 51], [7, 8, 9, 10, 11]]
    expected = [plain_generate(model, prompt, 10) for prompt in prompts]
    engine = make_engine(model)
    run = engine.executor.run
    n_broken = 0

    def run_or_break(chunks: Any) -> Any:
        nonlocal n_broken
        rows = run(chunks)
        if any(chunk.state in poisoned for chunk in chunks):
            n_broken += 1
            raise RuntimeError("boom")
        return rows

    poisoned: list[Any] = []
    engine.executor.run = run_or_break
    tasks = [asyncio.create_task(engine.ask(prompt, max_tokens=10)) for prompt in prompts]
    stream = engine.submit(engine.request([99, 98], request_id="poison"))
    async for event in stream:
        if isinstance(event, TokenEvent):
            break
    # Its state is that of the one that nobody waits for.
    job = next(job for job in engine._scheduler._running if job.request.request_id == "poison")
    poisoned.append(job.sequences[0].state)

    answers = [await task for task in tasks]

    assert [answer.tokens[0] for answer in answers] == expected
    with pytest.raises(RuntimeError, match="boom"):
        async for _ in stream:
            pass
    assert n_broken > 0


class _Raising:
    def apply(self, logits: torch.Tensor) -> None:
        raise LookupError("no such rule")

    def accept(self, token_id: int) -> None:
        pass


class _Spoiling(_Raising):
    def apply(self, logits: torch.Tensor) -> None:
        logits[3] = torch.nan


async def test_constraint_that_raises_fails_its_request_alone(
    executor: Any, make_engine: Any
) -> None:
    engine = make_engine(executor)

    results: Any = await asyncio.gather(
        engine.ask([10], max_tokens=5),
        engine.ask([20], max_tokens=5, constraint=_Raising),
        engine.ask([30], max_tokens=5, constraint=_Spoiling),
        engine.ask([40], max_tokens=5),
        return_exceptions=True,
    )

    assert results[0].tokens == {0: [11, 12, 13, 14, 15]}
    assert isinstance(results[1], LookupError)
    assert isinstance(results[2], InferenceError)
    assert "NaN" in str(results[2])
    assert results[3].tokens == {0: [41, 42, 43, 44, 45]}
    assert engine.stats().kv_used_bytes == 0


async def test_maker_of_a_constraint_that_raises_fails_its_request_alone(
    executor: Any, make_engine: Any
) -> None:
    def make() -> Any:
        raise LookupError("no such grammar")

    engine = make_engine(executor)

    with pytest.raises(LookupError):
        await engine.ask([10], max_tokens=5, constraint=make)

    assert (await engine.ask([10], max_tokens=1)).tokens == {0: [11]}


async def test_request_waits_until_the_cache_has_room(executor: Any, make_engine: Any) -> None:
    executor.permits = threading.Semaphore(0)
    engine = make_engine(executor, kv_cache_bytes=12)
    tasks = [asyncio.create_task(engine.ask([n], max_tokens=5)) for n in (10, 20, 30)]
    await asyncio.sleep(0)
    executor.permits.release(100)

    answers = [await task for task in tasks]

    assert [answer.tokens[0][-1] for answer in answers] == [15, 25, 35]
    # Each takes 6 of 12, so two at a time run, and nobody is put back.
    assert max(map(len, executor.calls)) == 2
    assert sum(map(sum, executor.calls)) == 15


async def test_request_that_the_cache_never_has_room_for_is_refused(
    executor: Any, make_engine: Any
) -> None:
    engine = make_engine(executor, kv_cache_bytes=12)

    with pytest.raises(InvalidInput, match="take 18 bytes of the KV cache, which has 12"):
        await engine.ask([1], max_tokens=5, n=3)


async def test_prompt_beyond_the_context_is_refused(executor: Any, make_engine: Any) -> None:
    engine = make_engine(executor, max_model_len=10)

    with pytest.raises(ContextLengthExceeded, match="10 tokens.* got a prompt of 10$"):
        await engine.ask([1] * 10)
    with pytest.raises(ContextLengthExceeded, match="a prompt of 8 and 3 to generate"):
        await engine.ask([1] * 8, max_tokens=3)


async def test_answer_without_a_limit_ends_with_the_context(
    executor: Any, make_engine: Any
) -> None:
    engine = make_engine(executor, max_model_len=10)

    answer = await engine.ask([1] * 6)

    assert (answer.tokens, answer.finish) == ({0: [2, 3, 4, 5]}, {0: ("length", None)})


@pytest.mark.parametrize(
    ("kv_cache_bytes", "n", "count"),
    [
        # To the end of the context.
        (8 * 2000, 1, 1900),
        # An eighth of the cache, which all `n` share.
        (8 * 1000, 1, 900),
        (8 * 1000, 2, 400),
        # No less than 256, unless there is no room for as many.
        (8 * 200, 1, 256),
        (150, 1, 50),
    ],
)
async def test_answer_without_a_limit_leaves_room_for_others(
    kv_cache_bytes: int, n: int, count: int, executor: Any, make_engine: Any
) -> None:
    engine = make_engine(executor, max_model_len=2000, kv_cache_bytes=kv_cache_bytes)

    answer = await engine.ask([1] * 100, n=n)

    assert [len(tokens) for tokens in answer.tokens.values()] == [count] * n
    assert answer.finish == dict.fromkeys(range(n), ("length", None))


async def test_answer_without_a_limit_has_that_of_the_model(
    executor: Any, make_engine: Any
) -> None:
    engine = make_engine(executor, max_model_len=20, default_max_tokens=5)

    assert len((await engine.ask([1])).tokens[0]) == 5
    assert len((await engine.ask([1], max_tokens=6)).tokens[0]) == 6
    # It is no wish, which could be refused.
    assert len((await engine.ask([1] * 18)).tokens[0]) == 2


@pytest.mark.parametrize(("field", "value"), [("n", 0), ("n", 129)])
async def test_number_of_sequences_is_checked(
    field: str, value: int, executor: Any, make_engine: Any
) -> None:
    engine = make_engine(executor)

    with pytest.raises(InvalidInput, match=f"n: expected 1 to 128, got {value}"):
        await engine.ask([1], **{field: value})


async def test_empty_prompt_is_refused(executor: Any, make_engine: Any) -> None:
    with pytest.raises(InvalidInput, match="at least one token"):
        await make_engine(executor).ask([])


async def test_deadline_ends_a_request_that_runs_and_one_that_waits(
    executor: Any, make_engine: Any
) -> None:
    executor.permits = threading.Semaphore(1)
    engine = make_engine(executor, max_num_seqs=1)
    deadline = time.perf_counter() + 0.05
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.06, event.set)
    running = asyncio.create_task(engine.ask([1], deadline=deadline))
    waiting = asyncio.create_task(engine.ask([5], deadline=deadline))
    await event.wait()
    assert time.perf_counter() >= deadline

    executor.permits.release(2)

    for task in (running, waiting):
        with pytest.raises(DeadlineExceeded):
            await task
    assert len(executor.calls) <= 3


async def test_step_that_fails_by_itself_fails_what_runs_and_no_more(
    executor: Any, make_engine: Any
) -> None:
    engine = make_engine(executor)
    plan, n_failures = engine._scheduler._plan, 1

    def plan_or_fail() -> Any:
        nonlocal n_failures
        if n_failures:
            n_failures -= 1
            raise ZeroDivisionError
        return plan()

    engine._scheduler._plan = plan_or_fail

    with pytest.raises(RuntimeError, match="the engine failed"):
        await engine.ask([1], max_tokens=2)

    assert engine.health() is None
    assert (await engine.ask([1], max_tokens=2)).tokens == {0: [2, 3]}


async def test_engine_whose_steps_all_fail_gives_up(executor: Any, make_engine: Any) -> None:
    engine = make_engine(executor)
    engine._scheduler._plan = lambda: 1 / 0

    for _ in range(5):
        with pytest.raises((RuntimeError, ModelNotReady)):
            await engine.ask([1], max_tokens=2)

    assert engine.health() == "5 steps failed one after the other"
    with pytest.raises(ModelNotReady, match="5 steps failed"):
        await engine.ask([1], max_tokens=2)


async def test_lost_device_fails_everything_and_is_said(executor: Any, make_engine: Any) -> None:
    executor.permits = threading.Semaphore(0)
    executor.broken = lambda ids: RuntimeError("CUDA error: device-side assert triggered")
    engine = make_engine(executor, max_num_seqs=1)
    tasks = [asyncio.create_task(engine.ask([n], max_tokens=2)) for n in (1, 2)]
    await asyncio.sleep(0)
    executor.permits.release(10)

    for task in tasks:
        with pytest.raises(ModelNotReady, match="the device failed"):
            await task

    assert "device-side assert" in engine.health()
    with pytest.raises(ModelNotReady, match="the device failed"):
        await engine.ask([1], max_tokens=2)


async def test_device_without_memory_is_not_lost(executor: Any, make_engine: Any) -> None:
    executor.broken = lambda ids: torch.OutOfMemoryError("CUDA out of memory") if 5 in ids else None
    engine = make_engine(executor)

    with pytest.raises(torch.OutOfMemoryError):
        await engine.ask([5], max_tokens=2)

    assert engine.health() is None
    assert (await engine.ask([1], max_tokens=2)).tokens == {0: [2, 3]}


async def test_engine_that_is_stopped_fails_what_is_left(executor: Any, make_engine: Any) -> None:
    executor.permits = threading.Semaphore(0)
    engine = make_engine(executor)
    task = asyncio.create_task(engine.ask([1]))
    await asyncio.sleep(0)
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    executor.permits.release(1)

    with pytest.raises(ModelNotReady, match="unloaded"):
        await task
    stopping.join()

    with pytest.raises(ModelNotReady, match="unloaded"):
        await engine.ask([1])


async def test_events_of_a_loop_that_is_closed_are_dropped(executor: Any, make_engine: Any) -> None:
    executor.permits = threading.Semaphore(0)
    engine = make_engine(executor)

    def abandon() -> None:
        async def submit() -> None:
            engine.submit(engine.request([1], max_tokens=2))

        asyncio.run(submit())

    await asyncio.to_thread(abandon)
    executor.permits.release(10)

    assert (await engine.ask([5], max_tokens=2)).tokens == {0: [6, 7]}
