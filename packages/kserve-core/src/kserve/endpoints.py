"""The bound models of a server, and how the last request of a model that goes is awaited."""

import asyncio
import gc
import threading
import weakref
from contextlib import suppress
from typing import Final, NamedTuple

from kserve.config import ServerConfig
from kserve.endpoint import Endpoint, bind
from kserve.executor import ModelThreads, run_in_new_thread
from kserve.model import BaseKServeModel
from kserve.model_resources import ModelResources, OnHang

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
        config: The limits of each model.
        on_hang: Called with a model that has hung, and True, and with False if it answers again.

    Attributes:
        bound: The endpoints; for one version the key is the pair.
    """

    def __init__(self, config: ServerConfig | None = None, on_hang: OnHang | None = None) -> None:
        self.bound: dict[str | tuple[str, str], Endpoint] = {}
        self._config = config or ServerConfig()
        self._on_hang = on_hang
        # By the model's identity, which no other object has while one of its threads still works.
        self._uses: dict[int, _Use] = {}

    def bind(self, model: BaseKServeModel, name: str, version: str | None = None) -> Endpoint:
        """Bind a model to a name, in place of the one that had it.

        A model with several names is still called by one thread at a time.

        Raises:
            ValueError: The model cannot answer requests at all, or it wants batches and streams.
        """
        use = self._uses.get(id(model))
        resources = None if use is None else use.resources()
        if resources is None:
            # A stream may still be drawn on the threads when no endpoint is left.
            threads = None if use is None else use.threads()
            resources = ModelResources(model, name, self._config, threads, self._on_hang)
        endpoint = bind(model, name, resources)
        if use is None or use.resources() is not resources:
            # Also those of models that user code took out of the repository itself.
            self._uses = {key: old for key, old in self._uses.items() if not old.is_over()}
            threads = resources.threads
            self._uses[id(model)] = _Use(
                weakref.ref(resources), weakref.ref(threads), threads.workers
            )
        self.bound[name if version is None else (name, version)] = endpoint
        return endpoint

    def have_hung(self) -> bool:
        """Say whether a call of any model has hung."""
        return any(
            threads.has_hung
            for use in self._uses.values()
            if (threads := use.threads()) is not None
        )

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
        use = self._uses.pop(id(model), None)
        if use is None:
            return
        threads = use.threads()
        if threads is not None:
            unused = asyncio.Event()
            loop = asyncio.get_running_loop()
            weakref.finalize(threads, _set, loop, unused).atexit = False
            del threads
            await _wait(unused)
        # One may still be in the handler of a client that has gone.
        await run_in_new_thread(_join, use.workers)


class _Use(NamedTuple):
    """The threads of a model, for as long as they are used, and what they start."""

    resources: weakref.ref[ModelResources]
    threads: weakref.ref[ModelThreads]
    workers: list[threading.Thread]

    def is_over(self) -> bool:
        return self.threads() is None and not any(worker.is_alive() for worker in self.workers)


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
