"""The bound models of a server, and how the last request of a model that goes is awaited."""

import asyncio
import gc
import threading
import weakref
from contextlib import suppress
from typing import Final

from kserve.endpoint import Endpoint, bind
from kserve.executor import ModelThreads, run_in_new_thread
from kserve.model import BaseKServeModel

# Seconds after which a model that nothing should refer to any more is looked for in cycles, which
# only the collector frees: an exception and the frame that it passed, for one.
_COLLECT_AFTER_S: Final = 1.0
_COLLECT_AGAIN_S: Final = 10.0


class Endpoints:
    """Endpoints by the name, or the name and version, under which they are asked for.

    A request holds its endpoint from the moment it is found until it is answered, and an endpoint
    holds the threads of its model. So the last request of a model that was taken out of here is
    over when nothing refers to these threads any more: nothing is counted for each request.

    Args:
        max_concurrent_predicts: How many plain handlers of one model may run at the same time.

    Attributes:
        bound: The endpoints; for one version the key is the pair.
    """

    def __init__(self, max_concurrent_predicts: int = 1) -> None:
        self.bound: dict[str | tuple[str, str], Endpoint] = {}
        self._max_concurrent_predicts = max_concurrent_predicts
        self._threads: weakref.WeakValueDictionary[int, ModelThreads] = (
            weakref.WeakValueDictionary()
        )

    def bind(self, model: BaseKServeModel, name: str, version: str | None = None) -> Endpoint:
        """Bind a model to a name, in place of the one that had it.

        A model with several names is still called by one thread at a time.

        Raises:
            ValueError: The model cannot answer requests at all.
        """
        threads = self._threads.get(id(model))
        if threads is None:
            threads = ModelThreads(name, self._max_concurrent_predicts)
        endpoint = bind(model, name, threads)
        self._threads[id(model)] = threads
        self.bound[name if version is None else (name, version)] = endpoint
        return endpoint

    def drop_name(self, name: str) -> None:
        """Take out every endpoint of a name: what is bound would keep its model in memory."""
        for key in list(self.bound):
            if key == name or (isinstance(key, tuple) and key[0] == name):
                del self.bound[key]

    def drop_model(self, model: BaseKServeModel) -> None:
        """Take out every endpoint of a model."""
        for key in [key for key, endpoint in self.bound.items() if endpoint.model is model]:
            del self.bound[key]

    async def last_use(self, model: BaseKServeModel) -> None:
        """Take a model out and wait until its last request is over and its threads have ended."""
        self.drop_model(model)
        threads = self._threads.get(id(model))
        if threads is None:
            return
        workers = threads.workers
        unused = asyncio.Event()
        loop = asyncio.get_running_loop()
        weakref.finalize(threads, _set, loop, unused).atexit = False
        del threads
        await _wait(unused)
        await run_in_new_thread(_join, workers)


async def _wait(unused: asyncio.Event) -> None:
    timeout_s = _COLLECT_AFTER_S
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await unused.wait()
                return
        await run_in_new_thread(gc.collect)
        timeout_s = _COLLECT_AGAIN_S


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    # A closed loop is a server that has stopped.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


def _join(workers: list[threading.Thread]) -> None:
    for worker in workers:
        worker.join()
