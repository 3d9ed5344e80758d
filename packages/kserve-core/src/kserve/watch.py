"""Following a model directory: what changes in it is loaded, what leaves it is unloaded."""

import asyncio
from collections.abc import Mapping

from kserve.directory_repository import DirectoryRepository
from kserve.errors import InferenceServerError, ModelNotFound
from kserve.executor import run_in_new_thread
from kserve.logging import logger
from kserve.model_control import ModelControl
from kserve.model_directory import Fingerprint
from kserve.model_repository import reason_of


class DirectoryWatch:
    """Looks at the directory of a repository again and again; for the event loop.

    A change is followed once two looks in a row have seen the same: until then it may still be
    written. What could not be loaded is tried again when it changes again.

    Args:
        repository: The models and their directory.
        control: Loads and unloads them.
        interval_s: Seconds between two looks, above 0.
    """

    def __init__(
        self, repository: DirectoryRepository, control: ModelControl, interval_s: float
    ) -> None:
        self._repository = repository
        self._control = control
        self._interval_s = interval_s
        self._last_look: Mapping[str, Mapping[str, Fingerprint]] = {}
        self._last_trouble = ""
        self._following: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._interval_s)
                for name, prints in (await self._look()).items():
                    task = asyncio.create_task(self._follow(name, is_gone=not prints))
                    self._following.add(task)
                    task.add_done_callback(self._following.discard)
        finally:
            for task in self._following:
                task.cancel()

    async def _look(self) -> dict[str, Mapping[str, Fingerprint]]:
        """Give what has changed and is stable."""
        try:
            changed = await run_in_new_thread(self._repository.find_changed)
        except Exception as exc:
            self._complain(reason_of(exc))
            return {}
        self._complain("")
        last_look, self._last_look = self._last_look, changed
        return {name: prints for name, prints in changed.items() if prints == last_look.get(name)}

    def _complain(self, trouble: str) -> None:
        """Log what keeps the directory from being read, once."""
        if trouble and trouble != self._last_trouble:
            logger.warning("The model directory cannot be followed: %s", trouble)
        self._last_trouble = trouble

    async def _follow(self, name: str, *, is_gone: bool) -> None:
        try:
            if is_gone:
                self._repository.forget(name)
                await self._control.unload(name)
            else:
                await self._control.load_changed(name)
        except ModelNotFound:
            pass  # It was unloaded by hand before.
        except InferenceServerError:
            pass  # The log says it, and the index.
