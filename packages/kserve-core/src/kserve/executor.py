"""Where handlers run: threads that belong to one model, never the event loop.

All threads are daemons: the end of the process never waits for a handler that does not return.
"""

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Final, NamedTuple, TypeVar, TypeVarTuple, Unpack

from kserve.logging import logger

# How soon it is known that a call that had hung has returned, in seconds.
_HUNG_POLL_S: Final = 1.0

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Job(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    context: contextvars.Context
    function: Callable[..., Any]
    args: tuple[Any, ...]


class ModelThreads:
    """A bounded set of threads that run the handlers of one model, first come, first served.

    A call whose caller was cancelled while it waited is never started. Threads are started by
    the first call, so a model that nobody asks costs none. They end once nothing refers to this
    object any more and the calls that wait are done: a model that was replaced keeps its threads
    until its last request is answered.

    Args:
        name: The model's name, for the names of the threads.
        n_threads: How many handlers of this model may run at the same time, 1 or more.
        hang_timeout_s: Seconds after which a call is taken to have hung; 0 is never.
        on_hang: Called on the event loop with True when a call has hung, and with False if it
            returns after all.

    Attributes:
        has_hung: Whether a call that runs now has hung.
    """

    def __init__(
        self,
        name: str,
        n_threads: int = 1,
        hang_timeout_s: float = 0.0,
        on_hang: Callable[[bool], object] | None = None,
    ) -> None:
        self._name = name
        self._n_threads = n_threads
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        # When the call of each thread began; 0 while it has none.
        self._running = [0.0] * n_threads
        # How many calls each has done with, and how many were queued.
        self._done = [0] * n_threads
        self._n_submitted = 0
        self._hang_timeout_s = hang_timeout_s
        self._on_hang = on_hang
        self._hang_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.has_hung = False

    @property
    def workers(self) -> list[threading.Thread]:
        """The threads, those that are started later too: the list grows."""
        return self._threads

    def __del__(self) -> None:
        # "put() is reentrant": of Python's queues only SimpleQueue may be used here.
        for _ in self._threads:
            self._jobs.put(None)

    def submit(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        """Queue a function for one of the threads, from the event loop.

        The caller's context variables are seen by the function.

        Returns:
            A future of its result. The function does not run if that is cancelled before.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._start()
        job = _make_job(function, *args)
        self._n_submitted += 1
        self._jobs.put(job)
        # The timer of a loop that has ended never comes.
        if self._hang_timeout_s and (self._hang_timer is None or job.loop is not self._loop):
            self._look_later(job.loop, self._hang_timeout_s)
        return job.future

    async def run(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Run a function on one of the threads and wait for it; as `submit`.

        Raises:
            Exception: Whatever the function raises.
        """
        # Not as the result of the future: the thread, and the loop until the caller's next turn,
        # hold on to that, and with it to the arrays of a response that has been sent already.
        results: list[T] = []
        await self.submit(_append_result, results, function, args)
        return results.pop()

    def _start(self) -> None:
        while len(self._threads) < self._n_threads:
            index = len(self._threads)
            thread = threading.Thread(
                target=_work,
                args=(self._jobs, self._running, self._done, index),
                name=f"{self._name}-{index}",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)

    # One timer in a hang's time watches over all calls, none for each of them.

    def _look_later(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        self._loop = loop
        # The timer must not keep the threads of a model that was unloaded, and the request that
        # set it is mostly not the one that hangs: what is logged is under no request's id.
        self._hang_timer = loop.call_later(
            delay_s, _look, weakref.ref(self), loop, context=contextvars.Context()
        )

    def look_for_hang(self, loop: asyncio.AbstractEventLoop) -> None:
        """See whether a call has hung, or no longer; the timer calls it."""
        self._hang_timer = None
        began = min(filter(None, self._running), default=None)
        left_s = self._hang_timeout_s
        if began is not None:
            left_s -= perf_counter() - began
        has_hung = began is not None and left_s <= 0
        if has_hung:
            self._look_later(loop, _HUNG_POLL_S)
        elif self._n_submitted > sum(self._done):
            # A call that is on its way from the queue to a thread is seen in neither.
            self._look_later(loop, left_s)
        if has_hung != self.has_hung:
            self.has_hung = has_hung
            self._report(has_hung)

    def _report(self, has_hung: bool) -> None:
        if has_hung:
            stacks = "\n".join(
                _stack(thread)
                for thread, began in zip(self._threads, self._running, strict=False)
                if began
            )
            logger.error(
                "Model %s: a call has not returned for %g s; it is at\n%s",
                *(self._name, self._hang_timeout_s, stacks),
            )
        else:
            logger.warning("Model %s: the call that had hung has returned", self._name)
        if self._on_hang is not None:
            self._on_hang(has_hung)


async def run_in_new_thread(function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Run a function on a thread of its own and wait for it, from the event loop.

    For rare work that nothing may hold up and that may hold up nothing: a load, a health check of
    a user's model, a scrape. A thread costs about 60 us.

    Raises:
        Exception: Whatever the function raises.
    """
    return await _start_thread(function, *args)


async def run_user_code(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function of user code and await what it gives.

    An async one runs on the event loop, any other on a thread of its own; not for requests, whose
    plain handlers run on the threads of their model.

    Raises:
        Exception: Whatever the function raises.
    """
    if is_async_callable(function):
        return await awaited(function(*args))
    return await awaited(await run_in_new_thread(function, *args))


async def awaited(value: Any) -> Any:
    """Give the result of what user code gave to await; anything else as it is.

    An async generator is such another thing: it is awaited chunk by chunk, later.

    Raises:
        RuntimeError: SystemExit or KeyboardInterrupt was raised, or CancelledError though nobody
            cancelled the caller.
        Exception: Whatever else is raised.
    """
    if not hasattr(value, "__await__"):
        return value
    try:
        return await value
    except (SystemExit, KeyboardInterrupt, asyncio.CancelledError) as exc:
        task = asyncio.current_task()
        if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise raisable(exc) from exc


def is_async_callable(function: Any) -> bool:
    """Say whether calling a function, method or callable object only makes something to await."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = getattr(function, "__call__", function)  # noqa: B004 - the method is wanted
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _append_result(results: list[T], function: Callable[[Unpack[Ts]], T], args: tuple[*Ts]) -> None:
    results.append(function(*args))


def _start_thread(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    job = _make_job(function, *args)
    name = getattr(function, "__qualname__", "kserve")
    threading.Thread(target=_run, args=(job,), name=name, daemon=True).start()
    return job.future


def _make_job(function: Callable[..., Any], *args: Any) -> _Job:
    loop = asyncio.get_running_loop()
    return _Job(loop, loop.create_future(), contextvars.copy_context(), function, args)


def _look(threads_ref: weakref.ref[ModelThreads], loop: asyncio.AbstractEventLoop) -> None:
    threads = threads_ref()
    if threads is not None:
        threads.look_for_hang(loop)


def _stack(thread: threading.Thread) -> str:
    assert thread.ident is not None
    # Not kept in a variable: this frame is one of them, and they would wait for the collector.
    frame = sys._current_frames().get(thread.ident)
    return "" if frame is None else "".join(traceback.format_stack(frame))


def _work(
    jobs: SimpleQueue[_Job | None], running: list[float], done: list[int], index: int
) -> None:
    while (job := jobs.get()) is not None:
        running[index] = perf_counter()
        _run(job)
        done[index] += 1
        running[index] = 0.0
        # Otherwise the thread would hold the last request's arrays until the next one comes.
        del job


def _run(job: _Job) -> None:
    if job.future.cancelled():
        return
    result, error = None, None
    try:
        result = job.context.run(job.function, *job.args)
    except BaseException as exc:
        error = raisable(exc)
    try:
        job.loop.call_soon_threadsafe(_settle, job.future, result, error)
    except RuntimeError:
        return  # The loop is closed: the server has stopped and nobody waits.
    finally:
        # The traceback refers to this frame: without this the arrays would wait for the collector.
        del job, result, error


def raisable(exc: BaseException) -> Exception:
    """Give what fails one request only.

    SystemExit and KeyboardInterrupt would end the event loop, CancelledError the caller's task
    without an answer, and StopIteration looks like the end of a coroutine.
    """
    if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
        return exc
    error = RuntimeError(f"{type(exc).__name__} raised by a handler")
    error.__cause__ = exc
    return error


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
