"""Loading, reloading and unloading models while the server answers requests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from kserve.collector import freeze_more, release
from kserve.directory_repository import DirectoryRepository
from kserve.endpoints import Endpoints
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, StartError, without_paths
from kserve.executor import run_in_new_thread, run_user_code
from kserve.logging import logger
from kserve.metrics import forget_model
from kserve.model import BaseKServeModel
from kserve.model_repository import (
    IndexEntry,
    ModelRepository,
    check_model_name,
    public_reason_of,
    reason_of,
    stop,
    trace_of,
)


class ModelControl:
    """Changes which models are served; for the event loop.

    Models of different names are loaded side by side, those of one name one after the other. A
    model that was replaced or removed is stopped after its last request.

    Args:
        registry: The models.
        endpoints: What they are bound to.
    """

    def __init__(self, registry: ModelRepository, endpoints: Endpoints) -> None:
        self._registry = registry
        self._endpoints = endpoints
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._retiring: set[asyncio.Task[None]] = set()

    async def index(self) -> list[IndexEntry]:
        """Give the state of every version of every model."""
        return await run_in_new_thread(self._registry.index)

    async def load(self, name: str) -> None:
        """Load a model, or load it again beside the one that serves, and swap.

        Raises:
            InvalidInput: The name is not one of a directory.
            ModelNotFound: The repository has no such model.
            ModelNotReady: The load failed; the text says why. What served goes on serving.
        """
        check_model_name(name)
        await self._change(name, lambda: run_user_code(self._registry.load, name))

    async def load_changed(self, name: str) -> None:
        """Load what has changed of a directory's model, as `load`."""
        registry = self._registry
        assert isinstance(registry, DirectoryRepository)
        await self._change(name, lambda: registry.load_changed(name))

    async def unload(self, name: str, timeout_s: float | None = None) -> None:
        """Remove a model in all its versions, and free it after its last request.

        Args:
            name: The model's name.
            timeout_s: How long to wait for that request; it is freed then too, only later.

        Raises:
            ModelNotFound: There is none of this name.
        """
        async with self._turn(name):
            removed = await self._remove(name)
            self._endpoints.drop_name(name)
            forget_model(name)
            retiring = self._retire(removed)
        del removed
        logger.info("Model %s is unloaded", name)
        await asyncio.wait([retiring], timeout=timeout_s)

    async def close(self) -> None:
        """Wait for the models that are on their way out; if cancelled, leave them as they are."""
        try:
            await asyncio.gather(*self._retiring)
        finally:
            for task in self._retiring:
                task.cancel()

    async def _change(self, name: str, load: Callable[[], Awaitable[object]]) -> None:
        registry = self._registry
        async with self._turn(name):
            before = registry.objects_of(name)
            try:
                await load()
            except (InvalidInput, ModelNotFound):
                raise
            except Exception as exc:
                # The text of an error of ours says it all.
                trace = trace_of(exc)
                logger.error(
                    "Model %s cannot be loaded: %s",
                    *(name, reason_of(exc)),
                    exc_info=None if isinstance(trace, StartError) else trace,
                )
                raise ModelNotReady(name, without_paths(public_reason_of(exc))) from exc
            finally:
                gone = [model for model in before if not registry.is_served(model)]
                del before
                if gone:
                    # Not awaited: what takes its place serves already.
                    self._retire(gone)
            if name not in registry.names():
                raise ModelNotFound(name)
            if not await registry.is_model_ready(name):
                raise ModelNotReady(name)
            if not gone:
                # What is gone has it done once it is freed.
                await run_in_new_thread(freeze_more)

    async def _remove(self, name: str) -> list[BaseKServeModel]:
        registry = self._registry
        try:
            if type(registry).unload is ModelRepository.unload:
                return registry.remove(name)
            # One that user code has overridden stops the model itself.
            await run_user_code(registry.unload, name)
        except KeyError as exc:
            raise ModelNotFound(name) from exc
        return []

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        async with lock:
            yield

    def _retire(self, models: list[BaseKServeModel]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._free(models))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def _free(self, models: list[BaseKServeModel]) -> None:
        while models:
            model = models.pop()
            await self._endpoints.last_use(model)
            try:
                await run_in_new_thread(stop, model)
            except Exception as exc:
                logger.error("Model %s failed to stop: %s", model.name, exc, exc_info=exc)
            del model
        await run_in_new_thread(release)
