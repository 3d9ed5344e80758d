"""The models of a server by name, their states, and how they are loaded and unloaded."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import Any, Final

from kserve.artifact import list_model_directories
from kserve.endpoint import is_healthy
from kserve.errors import (
    InvalidInput,
    ModelMissingError,
    StartError,
    UserCodeError,
    without_paths,
)
from kserve.executor import run_in_new_thread, run_user_code
from kserve.listing import shortened
from kserve.logging import logger
from kserve.metrics import MODEL_LOAD_SECONDS, MODEL_STATE
from kserve.model import BaseKServeModel, TensorModel
from kserve.model_directory import UNVERSIONED
from kserve.warmup import warm_up

MODEL_MOUNT_DIRS: Final = "/mnt/models"


class ModelState(StrEnum):
    """Where a model is in its life."""

    LOADING = "loading"
    READY = "ready"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A state, and why where it is `unavailable`."""

    state: ModelState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What the index says of one version of a model.

    Attributes:
        name: The model's name.
        version: The version; empty where the model has none.
        state: Where it is in its life.
        reason: Why it is `unavailable`, or why it is still the old one that is `ready`; no paths.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""


class ModelRepository:
    """Models by name.

    Args:
        models_dir: The directory whose sub-directories are models, for subclasses that load them.
    """

    def __init__(self, models_dir: str = MODEL_MOUNT_DIRS) -> None:
        self.models: dict[str, BaseKServeModel] = {}
        self.models_dir = models_dir
        self._statuses: dict[str, ModelStatus] = {}
        self._versions: dict[str, Mapping[str, BaseKServeModel]] = {}
        self._failures: dict[str, Mapping[str, str]] = {}

        # Models are unloaded on threads.
        self._lock = threading.Lock()

    @property
    def loads_by_name(self) -> bool:
        """Whether a model can be loaded by its name while the server runs."""
        own = type(self)
        return (
            own.load is not ModelRepository.load or own.load_model is not ModelRepository.load_model
        )

    def load_models(self) -> None:
        """Load every sub-directory of `models_dir` as a model of its name; blocks.

        A model that cannot be loaded is `unavailable` with the reason; the others are not held up.

        Raises:
            ModelMissingError: The directory does not exist or has no sub-directory.
        """
        names = list_model_directories(self.models_dir)
        if not names:
            raise ModelMissingError(self.models_dir, "no model and no directories of models")
        for name in names:
            try:
                self.load_model(name)
            except Exception as exc:
                self.set_status(name, ModelState.UNAVAILABLE, public_reason_of(exc))
                logger.error("Model %s cannot be loaded: %s", name, reason_of(exc))

    def set_models_dir(self, models_dir: str) -> None:
        """Set the directory whose sub-directories are models."""
        self.models_dir = models_dir

    def get_model(self, name: str) -> BaseKServeModel | None:
        """Give the model of a name, or None."""
        return self.models.get(name)

    def get_version(self, name: str, version: str) -> BaseKServeModel | None:
        """Give one version of a model, or None."""
        return self._versions.get(name, {}).get(version)

    def versions(self, name: str) -> list[str]:
        """Give the versions of a model that can be asked for, lowest number first."""
        return sorted(self._versions.get(name, ()), key=int)

    def get_models(self) -> dict[str, BaseKServeModel]:
        """Give all models by name."""
        return self.models

    def names(self) -> list[str]:
        """Give the names of all models, those that could not be loaded included."""
        return list({**self._statuses, **self.models})

    def objects_of(self, name: str) -> list[BaseKServeModel]:
        """Give every model under a name: that which serves by default, and all versions."""
        default = self.models.get(name)
        others = [model for model in self._versions.get(name, {}).values() if model is not default]
        return others if default is None else [default, *others]

    def index(self) -> list[IndexEntry]:
        """Give the state of every version of every model; may read directories."""
        return [entry for name in self.names() for entry in self._entries(name)]

    async def is_model_ready(self, name: str) -> bool:
        """Say whether a model is there and healthy; a plain `healthy` runs on a thread."""
        model = self.get_model(name)
        return model is not None and await is_healthy(model)

    def status(self, name: str) -> ModelStatus | None:
        """Give the state of a model, or None for an unknown name.

        The model's own `ready` comes first: user code may change it at any time.
        """
        model = self.get_model(name)
        if model is not None and model.ready:
            return ModelStatus(ModelState.READY)
        if model is not None and model.fatal_error:
            return ModelStatus(ModelState.UNAVAILABLE, model.fatal_error)
        status = self._statuses.get(name)
        if status is not None and status.state is not ModelState.READY:
            return status
        return None if model is None else ModelStatus(ModelState.UNAVAILABLE)

    def set_status(self, name: str, state: ModelState, reason: str = "") -> None:
        """Record the state of a model."""
        self._statuses[name] = ModelStatus(state, reason)
        _publish_state(name, state)

    def publish_states(self) -> None:
        """Bring the metric of the states up to date, before a scrape.

        User code may change `ready` at any time, and nobody is told.
        """
        for name in self.names():
            status = self.status(name)
            if status is not None:
                _publish_state(name, status.state)

    def update(self, model: BaseKServeModel, name: str | None = None) -> None:
        """Add a model, or replace the one of its name.

        Args:
            model: The model.
            name: Another name to serve it under.
        """
        name = name or model.name
        self.models[name] = model
        if not any(version is model for version in self._versions.get(name, {}).values()):
            self._versions.pop(name, None)
        if model.ready:
            self.set_status(name, ModelState.READY)

    def update_versions(self, models: Mapping[str, BaseKServeModel], name: str) -> None:
        """Replace all versions of a model at once; the highest number serves by default.

        Args:
            models: At least one, by version.
            name: The name to serve them under.
        """
        self._versions[name] = models
        self.update(models[max(models, key=int)], name)

    def failures(self, name: str) -> Mapping[str, str]:
        """Give why versions could not be loaded, as `set_failures` recorded it."""
        return self._failures.get(name, {})

    def set_failures(self, name: str, reasons: Mapping[str, str]) -> None:
        """Record why versions could not be loaded, in place of what was recorded before.

        Args:
            name: The model's name.
            reasons: By version, empty for a model that has none.
        """
        self._failures[name] = {version: without_paths(text) for version, text in reasons.items()}

    def load(self, name: str) -> Any:
        """Load the model of a name; may be overridden, with a coroutine function too."""
        return self.load_model(name)

    def load_model(self, name: str) -> Any:
        """Load the model of a name; what a subclass overrides."""

    def unload(self, name: str) -> None:
        """Remove a model in all its versions, and stop what has no other name; blocks.

        Raises:
            KeyError: There is none of this name, not even one that could not be loaded.
        """
        for model in self.remove(name):
            stop(model)

    def remove(self, name: str) -> list[BaseKServeModel]:
        """Remove a model in all its versions, without stopping it.

        Returns:
            What has no other name, to be stopped after its last request.

        Raises:
            KeyError: There is none of this name, not even one that could not be loaded.
        """
        with self._lock:
            removed = self.objects_of(name)
            self.models.pop(name, None)
            self._versions.pop(name, None)
            self._failures.pop(name, None)
            status = self._statuses.pop(name, None)
            without_name = [model for model in removed if not self.is_served(model)]
        if not removed and status is None:
            raise KeyError(f"model {name} does not exist")
        for state in ModelState:
            with suppress(KeyError):
                MODEL_STATE.remove(name, state.value)
        return without_name

    def is_served(self, model: BaseKServeModel) -> bool:
        """Say whether a model is here, under any name."""
        return any(other is model for name in list(self.models) for other in self.objects_of(name))

    def _entries(self, name: str) -> list[IndexEntry]:
        failures = dict(self.failures(name))
        versions = self._versions.get(name, {})
        of_all = failures.pop(UNVERSIONED, "")
        if versions or failures:
            return [
                _version_entry(name, version, versions.get(version), failures.get(version, of_all))
                for version in sorted({*versions, *failures}, key=int)
            ]
        status = self.status(name)
        assert status is not None
        reason = without_paths(status.reason) or of_all
        return [IndexEntry(name, UNVERSIONED, status.state, reason)]


def _version_entry(
    name: str, version: str, model: BaseKServeModel | None, reason: str
) -> IndexEntry:
    is_ready = model is not None and model.ready
    state = ModelState.READY if is_ready else ModelState.UNAVAILABLE
    return IndexEntry(name, version, state, reason)


def stop(model: BaseKServeModel) -> None:
    """Stop a model and its engine; blocks.

    Raises:
        Exception: Whatever `stop` or `stop_engine` raises.
    """
    model.stop()
    if model.engine:
        model.stop_engine()


def check_model_name(name: str) -> None:
    """Refuse a name that would leave the directory of models.

    Raises:
        InvalidInput: The name is empty, hidden, or holds a separator.
    """
    if not name or name.startswith(".") or name != os.path.basename(name) or "\0" in name:
        raise InvalidInput(
            f"model name {shortened(repr(name))}: expected the name of one directory"
        )


async def load(model: BaseKServeModel) -> None:
    """Load a model if it is not ready, and warm it up, off the event loop.

    Args:
        model: Its `load` may be plain, then it runs on a thread, or async.

    Raises:
        StartError: `load` gave False or left the model not ready.
        Exception: Whatever `load` or the warm-up raises.
    """
    if model.ready:
        # Somebody else loaded it; that it is warm is still up to us.
        await run_in_new_thread(_warm_up, model)
        return
    started = perf_counter()
    with _loading(model) as finish:
        finish(await run_user_code(model.load))
        await run_in_new_thread(_warm_up, model)
    _record_load(model, started)


def load_blocking(model: BaseKServeModel) -> None:
    """Load a model whose `load` is plain, and warm it up, on the calling thread.

    Raises:
        StartError: `load` gave False or left the model not ready.
        Exception: Whatever `load` or the warm-up raises.
    """
    started = perf_counter()
    with _loading(model) as finish:
        finish(model.load())
        _warm_up(model)
    _record_load(model, started)


def reason_of(exc: BaseException) -> str:
    """Give one line that says why something failed."""
    text = " ".join(str(exc).split())
    if isinstance(exc, StartError):
        return text
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def public_reason_of(exc: BaseException) -> str:
    """Give the line that clients may read: the server's own reasons, of others only the kind."""
    if isinstance(exc, StartError):
        return reason_of(exc)
    return f"Its load raised {type(exc).__name__}; the log says more."


def trace_of(exc: BaseException) -> BaseException:
    """Give the exception whose traceback the log shows: of user code its own lines alone."""
    return exc.error if isinstance(exc, UserCodeError) else exc


# While `load` runs, `ready` is this: false to whoever asks, and told apart from a False that the
# user's code sets.
_UNTOUCHED: Any = 0


@contextmanager
def _loading(model: BaseKServeModel) -> Iterator[Callable[[Any], None]]:
    """Keep `ready` false unless the load succeeds; gives what takes the result of `load`."""

    def finish(result: Any) -> None:
        # Many users' `load` only forget to set it, but a False is meant.
        if model.ready is _UNTOUCHED or result is False:
            model.ready = result is not False
        if not model.ready:
            raise StartError(f"model {model.name}: load() left it not ready")

    model.ready = _UNTOUCHED
    try:
        yield finish
    except BaseException:
        model.ready = False
        raise


def _warm_up(model: BaseKServeModel) -> None:
    if isinstance(model, TensorModel):
        warm_up(model)


def _record_load(model: BaseKServeModel, started: float) -> None:
    seconds = perf_counter() - started
    MODEL_LOAD_SECONDS.labels(model.name).set(seconds)
    version = f" version {model.version}" if model.version else ""
    logger.info("Model %s%s loaded in %.2f s", model.name, version, seconds)


def _publish_state(name: str, state: ModelState) -> None:
    for known in ModelState:
        MODEL_STATE.labels(name, known.value).set(known is state)
