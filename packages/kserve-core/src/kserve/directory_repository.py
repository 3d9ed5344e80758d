"""Models in directories: what is loaded, in which versions, and what has changed since."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from kserve.artifact import list_model_directories, local_path
from kserve.errors import (
    ModelLoadError,
    ModelMissingError,
    ModelNotFound,
    NoModelReady,
    without_paths,
)
from kserve.executor import run_in_new_thread
from kserve.logging import logger
from kserve.model import BaseKServeModel
from kserve.model_directory import (
    UNVERSIONED,
    Contents,
    Fingerprint,
    classify,
    find_versions,
    fingerprint,
    fingerprints,
    wait_until_filled,
)
from kserve.model_repository import (
    IndexEntry,
    ModelRepository,
    ModelState,
    check_model_name,
    load,
    load_blocking,
    public_reason_of,
    reason_of,
    trace_of,
)

# As Triton's --model-load-thread-count.
_PARALLEL_LOADS: Final = 4


@dataclass(slots=True)
class _Plan:
    """What one load of a model does.

    Attributes:
        name: The model's name.
        wanted: The versions that shall serve, newest first.
        new: The directories of those of them that are loaded now, in the same order.
        loaded: What was made of them.
        errors: Why some of these could not be.
    """

    name: str
    wanted: list[str]
    new: dict[str, Path]
    loaded: dict[str, BaseKServeModel] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)


class DirectoryRepository(ModelRepository):
    """A repository whose models are directories.

    A model is the directory of one artifact, or of several versions of it: sub-directories named
    by a number, of which the newest ones are loaded.

    Args:
        make_model: Makes an unloaded model from its name and its directory; called on a thread.
        models_dir: The directory whose sub-directories are models, or a `file://` address of it.
        suffixes: Those of the artifacts; if None, the `artifact_suffixes` of `make_model` where
            that is a class that has them, else any file is an artifact.
        preferred: Of several artifacts in one directory, the name of the one that is meant; if
            None, the `preferred_artifact` of `make_model`.
        model_name: What a single model is called, where `load_at_start` finds that `models_dir`
            itself is the directory of one.
        max_versions: How many of the newest versions of a model are loaded; None for all.
    """

    def __init__(
        self,
        make_model: Callable[[str, str], BaseKServeModel],
        models_dir: str,
        *,
        suffixes: Sequence[str] | None = None,
        preferred: str | None = None,
        model_name: str = "model",
        max_versions: int | None = 1,
    ) -> None:
        super().__init__(models_dir)
        self._make_model = make_model
        if suffixes is None:
            suffixes = getattr(make_model, "artifact_suffixes", ())
        if preferred is None:
            preferred = getattr(make_model, "preferred_artifact", "")
        self._suffixes: Sequence[str] = suffixes
        self._preferred: str = preferred
        self._model_name = model_name
        self._max_versions = max_versions
        self._is_one_model = False
        # Of every version that was tried, loaded or not.
        self._tried: dict[str, Mapping[str, Fingerprint]] = {}

    @property
    def loads_by_name(self) -> bool:
        """Whether the sub-directories are the models."""
        return not self._is_one_model

    async def load_at_start(self, wait_s: float = 0) -> list[str]:
        """Find out what the directory holds, and load it.

        Several models are loaded side by side, and those that cannot be are `unavailable`.

        Args:
            wait_s: Seconds to wait for a directory that is not there yet or empty.

        Returns:
            The names of the models that the server needs to be ready: that of a single one.

        Raises:
            ModelLoadError: There is nothing to serve, or a mixture.
            NoModelReady: The single model cannot be loaded.
        """
        await wait_until_filled(self.models_dir, wait_s)
        contents = await run_in_new_thread(self._classify)
        self._is_one_model = contents is not Contents.MODELS
        names = await run_in_new_thread(self._directory_names)
        for name in names:
            self.set_status(name, ModelState.LOADING)
        if self._is_one_model:
            await self._load_only(self._model_name)
            return names
        turn = asyncio.Semaphore(_PARALLEL_LOADS)
        await asyncio.gather(*(self._load_one_of_many(name, turn) for name in names))
        return []

    async def load(self, name: str) -> bool:
        """Load the newest versions of one model, off the event loop.

        What served under the name goes on serving if the new one cannot be loaded.

        Raises:
            InvalidInput: The name is no plain directory name.
            ModelNotFound: The directory is that of one model, and its name is another.
            ModelLoadError: The artifact is missing or cannot be loaded.
            Exception: Whatever the model's `load` raises.
        """
        return await self._load(name, only_changed=False)

    async def load_changed(self, name: str) -> bool:
        """Load those versions of one model that have changed, or are new; else as `load`."""
        return await self._load(name, only_changed=True)

    def load_model(self, name: str) -> bool:
        """Load the newest versions of one model; blocks, else as `load`."""
        plan = self._plan(name, only_changed=False)
        for version, directory in plan.new.items():
            try:
                model = self._make(name, version, directory)
                load_blocking(model)
                model.start()
                plan.loaded[version] = model
            except Exception as exc:
                plan.errors[version] = exc
        return self._publish(plan)

    def index(self) -> list[IndexEntry]:
        """Give the state of every version, and the directories that are not loaded; blocks."""
        entries = super().index()
        known = {entry.name for entry in entries}
        try:
            names = self._directory_names()
        except ModelLoadError:
            names = []
        return entries + [
            IndexEntry(name, UNVERSIONED, ModelState.UNAVAILABLE, "not loaded")
            for name in names
            if name not in known
        ]

    def find_changed(self) -> dict[str, Mapping[str, Fingerprint]]:
        """Give the models that differ from what was last tried to load; blocks.

        Returns:
            The fingerprints of their versions by name; none for a model whose directory is gone.

        Raises:
            ModelLoadError: The directory cannot be read, or is no longer that of a single model.
        """
        contents = self._classify() if self._is_one_model else None
        if contents is Contents.MODELS:
            raise ModelLoadError(f"{self.models_dir}: no model file, and no versions of one")
        present = {name: self._fingerprints(name) for name in self._directory_names()}
        present |= {name: {} for name in self._tried if name not in present}
        return {name: prints for name, prints in present.items() if prints != self._tried.get(name)}

    def forget(self, name: str) -> None:
        """Forget a model whose directory is gone: one that comes under its name is new."""
        self._tried.pop(name, None)

    def _classify(self) -> Contents:
        return classify(self.models_dir, self._suffixes, self._preferred)

    async def _load_only(self, name: str) -> None:
        try:
            await self.load(name)
        except Exception as exc:
            logger.error(
                "Model %s cannot be loaded: %s", name, reason_of(exc), exc_info=trace_of(exc)
            )
            # Of several versions, another one may serve.
            if name not in self.models:
                raise NoModelReady([name], reason_of(exc)) from exc

    async def _load_one_of_many(self, name: str, turn: asyncio.Semaphore) -> None:
        async with turn:
            try:
                await self.load(name)
            except Exception as exc:
                logger.error(
                    "Model %s cannot be loaded: %s", name, reason_of(exc), exc_info=trace_of(exc)
                )

    async def _load(self, name: str, *, only_changed: bool) -> bool:
        plan = await run_in_new_thread(self._plan, name, only_changed)
        if name not in self.models:
            self.set_status(name, ModelState.LOADING)
        await asyncio.gather(*(self._try_load(plan, version) for version in plan.new))
        return self._publish(plan)

    def _plan(self, name: str, only_changed: bool) -> _Plan:
        directory = self._directory_of(name)
        tried = self._tried.get(name, {})
        # Before anything is read: what changes while it is read has changed since.
        present = self._tried[name] = self._fingerprints(name)
        try:
            directories = self._wanted(directory)
            new = {
                version: path
                for version, path in directories.items()
                if not only_changed
                or present.get(version) != tried.get(version)
                or not self._is_known(name, version)
            }
        except Exception as exc:
            self._record(name, {UNVERSIONED: exc})
            raise
        return _Plan(name, list(directories), new)

    async def _try_load(self, plan: _Plan, version: str) -> None:
        try:
            # It may be user code that makes it.
            model = await run_in_new_thread(self._make, plan.name, version, plan.new[version])
            await load(model)
            await run_in_new_thread(model.start)
            plan.loaded[version] = model
        except Exception as exc:
            plan.errors[version] = exc

    def _make(self, name: str, version: str, directory: Path) -> BaseKServeModel:
        model = self._make_model(name, str(directory))
        model.version = version or None
        return model

    def _publish(self, plan: _Plan) -> bool:
        """Put what was loaded in the place of what served, all versions at once."""
        loaded = {version: plan.loaded[version] for version in plan.new if version in plan.loaded}
        kept = {v: model for v, model in self._serving(plan.name).items() if v in plan.wanted}
        serving = {**kept, **loaded}
        if UNVERSIONED in serving:
            self.update(serving[UNVERSIONED], plan.name)
        elif serving:
            self.update_versions(serving, plan.name)
        # Where nothing new can serve, what nobody wants any more serves on.
        self._record(plan.name, plan.errors, kept=set(plan.wanted) - set(plan.new))
        for error in plan.errors.values():
            raise error
        return plan.name in self.models

    def _record(self, name: str, errors: Mapping[str, Exception], kept: Iterable[str] = ()) -> None:
        """Record why loads failed, beside the failures of versions that were not tried again."""
        before = self.failures(name)
        reasons = {version: before[version] for version in kept if version in before}
        reasons |= {version: public_reason_of(exc) for version, exc in errors.items()}
        self.set_failures(name, reasons)
        if errors and name not in self.models:
            reason = without_paths(public_reason_of(next(iter(errors.values()))))
            self.set_status(name, ModelState.UNAVAILABLE, reason)

    def _serving(self, name: str) -> dict[str, BaseKServeModel]:
        return {model.version or UNVERSIONED: model for model in self.objects_of(name)}

    def _is_known(self, name: str, version: str) -> bool:
        return version in self._serving(name) or version in self.failures(name)

    def _directory_names(self) -> list[str]:
        if self._is_one_model:
            return [self._model_name]
        return list_model_directories(self.models_dir)

    def _directory_of(self, name: str) -> Path:
        """Give the directory of a model, which is there.

        Raises:
            InvalidInput, ModelNotFound, ModelMissingError: There can be none, or there is none.
        """
        check_model_name(name)
        root = local_path(self.models_dir)
        if self._is_one_model and name != self._model_name:
            raise ModelNotFound(name)
        directory = root if self._is_one_model else root / name
        if not directory.is_dir():
            raise ModelMissingError(directory, "no such directory")
        return directory

    def _wanted(self, directory: Path) -> dict[str, Path]:
        """Give the versions to load, newest first."""
        versions = find_versions(directory, self._suffixes, self._preferred)
        return dict(islice(versions.items(), self._max_versions))

    def _fingerprints(self, name: str) -> dict[str, Fingerprint]:
        directory = self._directory_of(name)
        try:
            return fingerprints(self._wanted(directory))
        except ModelLoadError:
            # It cannot be loaded as it is, until anything in it changes.
            return {UNVERSIONED: fingerprint(directory)}


def _log_failure(name: str, exc: Exception) -> None:
    logger.error("Model %s cannot be loaded: %s", name, reason_of(exc), exc_info=trace_of(exc))


class LoadedRepository(DirectoryRepository):
    """Models in the sub-directories of a directory, each loaded now, as KServe's servers have them.

    Args:
        make_model: Makes an unloaded model from its name and its directory.
        models_dir: The directory, or a `file://` address of it. It may be empty, or not be there
            yet: models can be loaded later.
        suffixes: As for `DirectoryRepository`.
    """

    def __init__(
        self,
        make_model: Callable[[str, str], BaseKServeModel],
        models_dir: str,
        suffixes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(make_model, models_dir, suffixes=suffixes)
        try:
            self.load_models()
        except ModelMissingError as exc:
            logger.warning("No model is loaded: %s", exc)
