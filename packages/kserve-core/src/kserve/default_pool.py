"""The event loop's default pool of threads, which `asyncio.to_thread` of user code runs on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DefaultPool(ThreadPoolExecutor):
    """A pool that knows what has not returned.

    Args:
        n_threads: How many threads there may be; None is Python's default.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        super().__init__(n_threads, thread_name_prefix="asyncio")
        self._running: set[Future[Any]] = set()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function on one of the threads; as `ThreadPoolExecutor.submit`."""
        future = super().submit(fn, *args, **kwargs)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def ends_within(self, timeout_s: float) -> bool:
        """Wait for what runs to return, and say whether all of it has."""
        return not wait(set(self._running), timeout_s).not_done
