"""Where handlers run."""

import asyncio
import contextvars
import functools
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from time import perf_counter
from typing import Any

import pytest

from kserve.executor import (
    ModelThreads,
    awaited,
    is_async_callable,
    run_in_new_thread,
    run_user_code,
)
from kserve.logging import request_id_var

pytestmark = pytest.mark.anyio

_JOIN_S = 10


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


def fail(error: BaseException) -> None:
    raise error


async def test_runs_on_a_thread_of_the_model_and_gives_the_result() -> None:
    threads = ModelThreads("runs")

    result = await threads.run(lambda number: (number + 1, threading.current_thread().name), 41)

    assert result == (42, "runs-0")


async def test_a_result_is_freed_as_soon_as_its_caller_lets_go() -> None:
    class Result:
        pass

    threads = ModelThreads("frees")

    result = await threads.run(Result)
    is_freed = weakref.ref(result)
    del result

    # Neither the loop nor the thread has had a turn since.
    assert is_freed() is None


async def test_starts_no_thread_before_the_first_call() -> None:
    threads = ModelThreads("idle", 2)

    before = threads_of("idle")
    await threads.run(int)

    assert (len(before), len(threads_of("idle"))) == (0, 2)


async def test_one_thread_runs_calls_one_at_a_time_in_their_order_and_the_loop_goes_on() -> None:
    threads = ModelThreads("ordered")
    release, order = threading.Event(), []

    def first() -> None:
        release.wait(_JOIN_S)
        order.append(1)

    calls = [
        asyncio.ensure_future(threads.run(function))
        for function in (first, lambda: order.append(2), lambda: order.append(3))
    ]
    other = await run_in_new_thread(lambda: "another thread answers meanwhile")
    order.append(0)
    release.set()
    await asyncio.gather(*calls)

    assert other == "another thread answers meanwhile"
    assert order == [0, 1, 2, 3]


async def test_as_many_calls_run_at_the_same_time_as_there_are_threads() -> None:
    threads = ModelThreads("pair", 2)
    barrier = threading.Barrier(2)

    positions = await asyncio.gather(*(threads.run(barrier.wait, _JOIN_S) for _ in range(2)))

    assert sorted(positions) == [0, 1]


async def test_a_call_that_was_cancelled_while_it_waited_never_starts() -> None:
    threads = ModelThreads("cancelled")
    release = threading.Event()
    started: list[str] = []

    blocking = threads.submit(release.wait, _JOIN_S)
    waiting = asyncio.ensure_future(threads.run(started.append, "waiting"))
    await asyncio.sleep(0)
    waiting.cancel()
    release.set()
    await blocking
    await threads.run(started.append, "next")

    assert waiting.cancelled()
    assert started == ["next"]


async def test_a_call_that_is_cancelled_while_it_runs_leaves_the_thread_to_the_next() -> None:
    threads = ModelThreads("abandoned")
    entered, release = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        release.wait(_JOIN_S)

    running = asyncio.ensure_future(threads.run(block))
    await run_in_new_thread(entered.wait, _JOIN_S)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    release.set()

    assert await threads.run(lambda: "next") == "next"


async def test_sees_the_context_of_the_caller_and_keeps_its_changes_to_itself() -> None:
    threads = ModelThreads("context")
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("the caller's")

    def look() -> str:
        seen = variable.get()
        variable.set("the thread's")
        return seen

    assert [await threads.run(look), variable.get()] == ["the caller's", "the caller's"]
    assert [await run_in_new_thread(look), variable.get()] == ["the caller's", "the caller's"]


async def test_raises_the_very_exception_of_the_function() -> None:
    threads = ModelThreads("raises")
    error = KeyError("mine")

    with pytest.raises(KeyError) as caught:
        await threads.run(fail, error)

    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(SystemExit(3), id="SystemExit"),
        pytest.param(KeyboardInterrupt(), id="KeyboardInterrupt"),
        pytest.param(asyncio.CancelledError(), id="CancelledError"),
        pytest.param(GeneratorExit(), id="GeneratorExit"),
        pytest.param(StopIteration(1), id="StopIteration"),
    ],
)
async def test_what_would_end_the_loop_or_the_task_fails_the_call_alone(
    error: BaseException,
) -> None:
    threads = ModelThreads("fatal")

    with pytest.raises(RuntimeError) as caught:
        await threads.run(fail, error)

    assert str(caught.value) == f"{type(error).__name__} raised by a handler"
    assert caught.value.__cause__ is error
    assert await threads.run(lambda: "alive") == "alive"


async def test_threads_end_once_nothing_refers_to_them() -> None:
    threads = ModelThreads("dropped", 2)
    await threads.run(int)
    started = threads_of("dropped")

    del threads
    for thread in started:
        thread.join(_JOIN_S)

    assert len(started) == 2
    assert threads_of("dropped") == []


async def test_calls_that_wait_are_done_before_the_threads_end() -> None:
    threads = ModelThreads("finishing")
    release = threading.Event()
    first = threads.submit(release.wait, _JOIN_S)
    second = threads.submit(lambda: "second")

    del threads
    release.set()

    assert [await first, await second] == [True, "second"]


async def test_a_thread_that_cannot_be_started_fails_the_call_and_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = ModelThreads("unstartable")

    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda self: fail(RuntimeError("can't start new thread"))
        )
        with pytest.raises(RuntimeError, match="^can't start new thread$"):
            await threads.run(int)

    assert await threads.run(lambda: "later") == "later"


def test_a_loop_that_closes_before_the_call_ends_costs_no_thread() -> None:
    threads = ModelThreads("reused")
    release = threading.Event()

    async def leave() -> None:
        threads.submit(release.wait, _JOIN_S)

    async def return_() -> str:
        return await threads.run(lambda: threading.current_thread().name)

    asyncio.run(leave())
    release.set()

    assert asyncio.run(return_()) == "reused-0"


class Payload:
    """Something that a weak reference can watch."""


@pytest.mark.parametrize("raises", [False, True], ids=["result", "exception"])
async def test_an_idle_thread_holds_no_payload_of_its_last_call(raises: bool) -> None:
    threads = ModelThreads("frugal")
    payload, is_freed = Payload(), threading.Event()
    weakref.finalize(payload, is_freed.set)

    def handle(payload: Payload) -> Payload:
        if raises:
            raise ValueError
        return payload

    gc.disable()
    try:
        try:
            await threads.run(handle, payload)
        except ValueError:
            pass
        del payload

        assert await run_in_new_thread(is_freed.wait, _JOIN_S)
    finally:
        gc.enable()


async def test_every_call_in_a_new_thread_has_one_of_its_own() -> None:
    barrier = threading.Barrier(3)

    def meet() -> threading.Thread:
        barrier.wait(_JOIN_S)
        return threading.current_thread()

    met = await asyncio.gather(*(run_in_new_thread(meet) for _ in range(3)))

    assert len(set(met)) == 3
    assert {thread.daemon for thread in met} == {True}
    assert threading.current_thread() not in met


async def test_a_call_in_a_new_thread_raises_the_exception_of_the_function() -> None:
    with pytest.raises(LookupError, match="^mine$"):
        await run_in_new_thread(fail, LookupError("mine"))


class PlainCall:
    def __call__(self) -> str:
        return threading.current_thread().name


class AsyncCall:
    async def __call__(self) -> str:
        return threading.current_thread().name


class AsyncFunc(PlainCall):
    """A plain callable with an attribute named as that of a partial."""

    def __init__(self) -> None:
        self.func = async_function


def plain_function() -> str:
    return threading.current_thread().name


async def async_function() -> str:
    return threading.current_thread().name


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(plain_function, False, id="function"),
        pytest.param(async_function, True, id="coroutine function"),
        pytest.param(generator, False, id="generator function"),
        pytest.param(async_generator, True, id="async generator function"),
        pytest.param(lambda: async_function(), False, id="lambda"),
        pytest.param(functools.partial(plain_function), False, id="partial"),
        pytest.param(
            functools.partial(functools.partial(async_function)), True, id="partial of a coroutine"
        ),
        pytest.param(functools.partial(async_generator), True, id="partial of an async generator"),
        pytest.param(PlainCall(), False, id="callable object"),
        pytest.param(AsyncCall(), True, id="async callable object"),
        pytest.param(AsyncCall().__call__, True, id="bound coroutine method"),
        pytest.param(functools.partial(AsyncCall()), True, id="partial of an async object"),
        pytest.param(AsyncFunc(), False, id="attribute named func"),
        pytest.param(print, False, id="builtin"),
        pytest.param(str, False, id="class"),
    ],
)
def test_tells_async_callables_from_plain_ones(
    function: Callable[..., Any], expected: bool
) -> None:
    assert is_async_callable(function) is expected


@pytest.mark.parametrize(
    ("function", "is_on_loop"),
    [
        pytest.param(plain_function, False, id="function"),
        pytest.param(PlainCall(), False, id="callable object"),
        pytest.param(async_function, True, id="coroutine function"),
        pytest.param(functools.partial(async_function), True, id="partial of a coroutine"),
        pytest.param(lambda: async_function(), True, id="plain function that gives a coroutine"),
    ],
)
async def test_user_code_runs_on_the_loop_only_if_it_is_async(
    function: Callable[..., Any], is_on_loop: bool
) -> None:
    name = await run_user_code(function)

    assert (name == threading.current_thread().name) is is_on_loop


async def test_a_plain_function_that_gives_a_coroutine_is_itself_called_on_a_thread() -> None:
    called_on = []

    def wrapper() -> Any:
        called_on.append(threading.current_thread())
        return async_function()

    await run_user_code(wrapper)

    assert called_on != [threading.current_thread()]


async def test_an_async_generator_is_nothing_to_await() -> None:
    chunks = async_generator()

    assert await awaited(chunks) is chunks

    assert [chunk async for chunk in chunks] == [1]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr
)
async def test_async_user_code_cannot_end_the_loop_or_the_task(error: BaseException) -> None:
    async def handler() -> None:
        raise error

    with pytest.raises(RuntimeError) as caught:
        await awaited(handler())

    assert str(caught.value) == f"{type(error).__name__} raised by a handler"
    assert caught.value.__cause__ is error


async def test_cancelling_the_caller_cancels_async_user_code() -> None:
    outcome = []

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            outcome.append("cancelled")

    task = asyncio.ensure_future(awaited(handler()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert outcome == ["cancelled"]


# Calls that do not return.


class Hangs:
    """Hears of hangs, and waits to be told of them."""

    def __init__(self) -> None:
        self.heard: list[bool] = []
        self._news = asyncio.Event()

    def __call__(self, has_hung: bool) -> None:
        self.heard.append(has_hung)
        self._news.set()

    async def news(self) -> None:
        await self._news.wait()
        self._news.clear()


@pytest.fixture
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve.executor._HUNG_POLL_S", 0.005)


async def test_a_call_that_does_not_return_is_told_and_so_is_its_return(
    quick_look: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    hangs, release = Hangs(), threading.Event()
    threads = ModelThreads("hangs", 1, 0.2, hangs)

    def call_of_the_model() -> bool:
        return release.wait(_JOIN_S)

    call = threads.submit(call_of_the_model)
    await hangs.news()
    while_it_hangs = threads.has_hung
    release.set()
    await hangs.news()

    assert (while_it_hangs, threads.has_hung, await call) == (True, False, True)
    assert hangs.heard == [True, False]
    first, second = caplog.records
    assert first.message.startswith("Model hangs: a call has not returned for 0.2 s; it is at\n")
    assert "in call_of_the_model" in first.message
    assert second.message == "Model hangs: the call that had hung has returned"


async def test_what_is_told_of_a_hang_is_under_the_id_of_no_request(
    quick_look: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    ids: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        ids.append(request_id_var.get())
        return True

    caplog.handler.addFilter(note)
    hangs, release = Hangs(), threading.Event()
    threads = ModelThreads("nameless", 1, 0.01, hangs)
    token = request_id_var.set("one that set the timer")

    call = threads.submit(release.wait, _JOIN_S)
    await hangs.news()
    release.set()
    await hangs.news()
    await call
    request_id_var.reset(token)

    assert ids == ["", ""]


async def test_one_thread_that_hangs_is_enough(quick_look: None) -> None:
    hangs, release = Hangs(), threading.Event()
    threads = ModelThreads("half", 2, 0.01, hangs)

    call = threads.submit(release.wait, _JOIN_S)
    await threads.run(int)
    await hangs.news()
    release.set()
    await call
    await hangs.news()

    assert hangs.heard == [True, False]


async def look_until_idle(threads: ModelThreads) -> None:
    """Look as the timer does, until there is nothing to look for."""
    while threads._hang_timer is not None:
        threads._hang_timer.cancel()
        threads.look_for_hang(asyncio.get_running_loop())
        await asyncio.sleep(0.001)


async def test_calls_that_return_have_not_hung_and_the_timer_ends_with_them() -> None:
    hangs = Hangs()
    threads = ModelThreads("brisk", 1, 3600, hangs)

    for _ in range(20):
        await threads.run(int)
    is_watched = threads._hang_timer is not None
    await look_until_idle(threads)

    assert is_watched
    assert (hangs.heard, threads.has_hung) == ([], False)


async def test_a_call_after_a_pause_is_watched_again() -> None:
    threads = ModelThreads("again", 1, 3600)
    await threads.run(int)
    await look_until_idle(threads)

    await threads.run(int)

    assert threads._hang_timer is not None


async def test_a_call_that_began_before_another_s_time_was_over_has_its_whole_time() -> None:
    hangs, release, entered = Hangs(), threading.Event(), threading.Event()
    threads = ModelThreads("whole", 1, 3600, hangs)
    loop = asyncio.get_running_loop()

    def block() -> None:
        entered.set()
        release.wait(_JOIN_S)

    await threads.run(int)
    call = threads.submit(block)
    await run_in_new_thread(entered.wait, _JOIN_S)
    timer = threads._hang_timer
    assert timer is not None
    timer.cancel()
    threads.look_for_hang(loop)

    assert threads._hang_timer is not timer
    assert (hangs.heard, threads.has_hung) == ([], False)
    release.set()
    await call


async def test_a_call_on_its_way_to_its_thread_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, go_on, arrived = Hangs(), threading.Event(), threading.Event()
    threads = ModelThreads("arriving", 1, 3600, hangs)
    await threads.run(int)

    def slow_clock() -> float:
        if threading.current_thread().name == "arriving-0":
            # The call is no longer in the queue, and has not begun.
            arrived.set()
            go_on.wait(_JOIN_S)
        return perf_counter()

    monkeypatch.setattr("kserve.executor.perf_counter", slow_clock)
    call = threads.submit(int)
    await run_in_new_thread(arrived.wait, _JOIN_S)
    threads.look_for_hang(asyncio.get_running_loop())
    is_watched = threads._hang_timer is not None
    go_on.set()
    await call

    assert is_watched


async def test_the_timer_keeps_nothing_alive() -> None:
    threads = ModelThreads("forgotten", 1, 3600)
    await threads.run(int)
    (worker,) = threads.workers
    is_freed = weakref.ref(threads)

    del threads
    worker.join(_JOIN_S)

    assert (is_freed(), worker.is_alive()) == (None, False)


async def test_no_hang_timeout_sets_no_timer() -> None:
    threads = ModelThreads("untimed")

    await threads.run(int)

    assert threads._hang_timer is None


async def test_a_hang_is_told_although_a_thread_could_not_be_started_before(
    quick_look: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, release = Hangs(), threading.Event()
    threads = ModelThreads("retried", 1, 0.01, hangs)
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda self: fail(RuntimeError("can't start new thread"))
        )
        with pytest.raises(RuntimeError):
            threads.submit(int)

    call = threads.submit(release.wait, _JOIN_S)
    await hangs.news()
    release.set()

    # The timer may have seen its return already.
    assert (hangs.heard[0], await call) == (True, True)


async def test_telling_of_a_hang_leaves_nothing_to_the_collector(quick_look: None) -> None:
    hangs, release = Hangs(), threading.Event()
    threads = ModelThreads("tidy", 1, 0.01, hangs)
    payload = Payload()
    is_freed = weakref.ref(payload)

    async def hang(payload: Payload) -> None:
        await threads.run(lambda held: release.wait(_JOIN_S), payload)

    gc.disable()
    try:
        task = asyncio.ensure_future(hang(payload))
        del payload
        await hangs.news()
        release.set()
        await task
        del task
        await threads.run(int)

        assert is_freed() is None
    finally:
        gc.enable()


def test_a_hang_is_told_on_the_loop_of_a_server_that_is_started_again(quick_look: None) -> None:
    heard: list[bool] = []
    threads = ModelThreads("restarted", 1, 0.5, heard.append)
    release = threading.Event()

    async def leave() -> None:
        await threads.run(int)

    async def return_() -> None:
        call = threads.submit(release.wait, _JOIN_S)
        while not heard:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
        release.set()
        await call

    asyncio.run(leave())
    asyncio.run(return_())

    # The timer may have seen its return already.
    assert heard[0] is True
