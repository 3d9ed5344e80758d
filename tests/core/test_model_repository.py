"""The models of a server, their states, and their loads."""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from kserve.directory_repository import DirectoryRepository
from kserve.errors import InvalidInput, ModelLoadError, ModelMissingError, StartError
from kserve.executor import run_in_new_thread
from kserve.model import BaseKServeModel, Model, PredictOptions, TensorModel
from kserve.model_repository import (
    MODEL_MOUNT_DIRS,
    ModelRepository,
    ModelState,
    ModelStatus,
    check_model_name,
    load,
    load_blocking,
    reason_of,
)
from kserve.signature import Signature, Tensors, TensorSpec

pytestmark = pytest.mark.anyio

_JOIN_S = 10


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    return caplog


def here() -> str:
    return threading.current_thread().name


def ready(name: str) -> Model:
    model = Model(name)
    model.ready = True
    return model


def states(name: str) -> dict[str, float | None]:
    return {
        state.value: REGISTRY.get_sample_value(
            "kserve_model_state", {"model_name": name, "state": state.value}
        )
        for state in ModelState
    }


class Loaded(Model):
    """Remembers on which thread it was loaded."""

    loaded_on = ""


class PlainLoad(Loaded):
    def load(self) -> bool:
        self.loaded_on = here()
        self.ready = True
        return True


class ForgetfulLoad(Loaded):
    def load(self) -> None:  # type: ignore[override]
        self.loaded_on = here()


class AsyncLoad(Loaded):
    async def load(self) -> None:  # type: ignore[override]
        self.loaded_on = here()


class CoroutineLoad(Loaded):
    """As a plain decorator around an async load."""

    def load(self) -> Any:
        self.loaded_on = here()

        async def finish() -> None:
            self.ready = True

        return finish()


@pytest.mark.parametrize(
    ("model", "is_on_loop"),
    [
        pytest.param(PlainLoad("m"), False, id="plain"),
        pytest.param(ForgetfulLoad("m"), False, id="forgets ready"),
        pytest.param(AsyncLoad("m"), True, id="async, forgets ready"),
        pytest.param(CoroutineLoad("m"), False, id="plain that gives a coroutine"),
    ],
)
async def test_loads_off_the_loop_unless_load_is_async(model: Loaded, is_on_loop: bool) -> None:
    await load(model)

    assert model.ready is True
    assert (model.loaded_on == here()) is is_on_loop


class RefusingLoad(Model):
    def load(self) -> bool:
        return False


class UnreadyLoad(Model):
    def load(self) -> bool:
        self.ready = False
        return True


class UnreadyAsyncLoad(Model):
    async def load(self) -> None:  # type: ignore[override]
        self.ready = False


class ContradictoryLoad(Model):
    def load(self) -> bool:
        self.ready = True
        return False


@pytest.mark.parametrize(
    "model", [RefusingLoad("m"), UnreadyLoad("m"), UnreadyAsyncLoad("m"), ContradictoryLoad("m")]
)
async def test_a_load_that_says_no_is_a_failed_load(model: Model) -> None:
    with pytest.raises(StartError) as caught:
        await load(model)

    assert str(caught.value) == "model m: load() left it not ready"
    assert model.ready is False


class FailingLoad(Model):
    def load(self) -> bool:
        self.ready = True
        raise OSError("no such artifact")


class FailingAsyncLoad(Model):
    async def load(self) -> bool:  # type: ignore[override]
        raise OSError("no such artifact")


@pytest.mark.parametrize("model", [FailingLoad("m"), FailingAsyncLoad("m")], ids=["plain", "async"])
async def test_a_load_that_raises_leaves_the_model_not_ready(model: Model) -> None:
    with pytest.raises(OSError, match="^no such artifact$"):
        await load(model)

    assert model.ready is False


async def test_a_load_that_is_cancelled_leaves_the_model_not_ready() -> None:
    class Endless(Model):
        async def load(self) -> bool:  # type: ignore[override]
            await asyncio.Event().wait()
            return True

    model = Endless("m")
    loading = asyncio.ensure_future(load(model))
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading

    assert model.ready is False


async def test_the_loop_goes_on_while_a_model_loads() -> None:
    release, entered = threading.Event(), threading.Event()

    class Slow(Model):
        def load(self) -> bool:
            entered.set()
            return release.wait(_JOIN_S)

    model = Slow("m")
    loading = asyncio.ensure_future(load(model))
    await run_in_new_thread(entered.wait, _JOIN_S)
    seen = (loading.done(), bool(model.ready))
    release.set()
    await loading

    assert seen == (False, False)


class Warm(TensorModel):
    def __init__(self) -> None:
        super().__init__("warm")
        self.signature = Signature((TensorSpec("x", "FP64", (-1, 2)),))
        self.n_warmed = 0

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        self.n_warmed += len(tensors["x"])
        return {"y": np.ones(1)}


@pytest.mark.parametrize("is_ready", [False, True], ids=["we load it", "the user loaded it"])
async def test_a_tensor_model_is_warm_once_it_is_loaded(is_ready: bool) -> None:
    model = Warm()
    model.ready = is_ready

    await load(model)

    assert (model.ready, model.n_warmed) == (True, 1)


async def test_a_warm_up_that_fails_fails_the_load(tmp_path: Path) -> None:
    (tmp_path / "warmup.json").write_bytes(b"[")
    model = Warm()
    model.model_dir = str(tmp_path)

    with pytest.raises(ModelLoadError):
        await load(model)

    assert model.ready is False


async def test_a_model_that_is_ready_is_not_loaded_again() -> None:
    model = PlainLoad("m")
    model.ready = True

    await load(model)

    assert model.loaded_on == ""


def test_loads_on_the_calling_thread() -> None:
    model = PlainLoad("blocking")

    load_blocking(model)

    assert (model.ready, model.loaded_on) == (True, here())
    assert REGISTRY.get_sample_value("kserve_model_load_seconds", {"model_name": "blocking"})


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        pytest.param(KeyError("a\n b"), "KeyError: 'a\\n b'", id="type and text"),
        pytest.param(OSError("a\n  b"), "OSError: a b", id="one line"),
        pytest.param(MemoryError(), "MemoryError", id="no text"),
        pytest.param(ModelLoadError("m: broken"), "m: broken", id="ours"),
    ],
)
def test_gives_one_line_of_reason(exc: Exception, reason: str) -> None:
    assert reason_of(exc) == reason


async def test_keeps_models_by_name_and_alias() -> None:
    repository = ModelRepository()
    first, second = ready("first"), Model("second")

    repository.update(first)
    repository.update(first, "alias")
    repository.update(second)

    assert repository.models_dir == MODEL_MOUNT_DIRS
    assert repository.get_models() == {"first": first, "alias": first, "second": second}
    assert repository.get_model("alias") is first
    assert repository.get_model("none") is None
    assert repository.names() == ["first", "alias", "second"]
    assert [
        await repository.is_model_ready(name) for name in ("first", "alias", "second", "none")
    ] == [True, True, False, False]


def test_tells_the_state_of_every_name() -> None:
    repository = ModelRepository()
    repository.update(ready("ready"))
    repository.update(Model("unready"))
    repository.set_status("failed", ModelState.UNAVAILABLE, "no artifact")
    repository.set_status("loading", ModelState.LOADING)

    statuses = {name: repository.status(name) for name in [*repository.names(), "unknown"]}

    assert statuses == {
        "ready": ModelStatus(ModelState.READY),
        "unready": ModelStatus(ModelState.UNAVAILABLE),
        "failed": ModelStatus(ModelState.UNAVAILABLE, "no artifact"),
        "loading": ModelStatus(ModelState.LOADING),
        "unknown": None,
    }


def test_a_models_own_ready_outlives_its_recorded_state() -> None:
    repository = ModelRepository()
    model = ready("m")
    repository.update(model)
    model.ready = False
    lost = repository.status("m")
    repository.set_status("m", ModelState.UNAVAILABLE, "gone")
    model.ready = True

    assert lost == ModelStatus(ModelState.UNAVAILABLE)
    assert repository.status("m") == ModelStatus(ModelState.READY)


def test_one_state_of_a_model_is_1_in_the_metrics() -> None:
    repository = ModelRepository()
    repository.set_status("gauged", ModelState.LOADING)
    loading = states("gauged")
    repository.update(ready("gauged"))
    loaded = states("gauged")
    repository.unload("gauged")

    assert loading == {"loading": 1, "ready": 0, "unavailable": 0}
    assert loaded == {"loading": 0, "ready": 1, "unavailable": 0}
    assert states("gauged") == {"loading": None, "ready": None, "unavailable": None}


class Stopped(Model):
    def __init__(self, name: str, engine: Any = False) -> None:
        super().__init__(name)
        self.ready = True
        self.engine = engine
        self.stops: list[str] = []

    def stop(self) -> None:
        self.stops.append("model")

    def stop_engine(self) -> None:
        self.stops.append("engine")


@pytest.mark.parametrize(
    ("engine", "stops"),
    [
        pytest.param(False, ["model"], id="none"),
        pytest.param(True, ["model", "engine"], id="true"),
        pytest.param(object(), ["model", "engine"], id="object"),
    ],
)
def test_stops_what_it_unloads(engine: Any, stops: list[str]) -> None:
    repository = ModelRepository()
    model = Stopped("m", engine)
    repository.update(model)

    repository.unload("m")

    assert model.stops == stops
    assert (repository.names(), repository.status("m")) == ([], None)


def test_a_model_is_stopped_with_its_last_name() -> None:
    repository = ModelRepository()
    model = Stopped("m")
    repository.update(model)
    repository.update(model, "alias")

    repository.unload("m")
    after_first = list(model.stops)
    repository.unload("alias")

    assert (after_first, model.stops) == ([], ["model"])


async def test_a_model_is_stopped_once_though_its_names_are_unloaded_at_the_same_time() -> None:
    repository = ModelRepository()
    names = [f"name-{number}" for number in range(8)]
    model = Stopped("m")
    for name in names:
        repository.update(model, name)

    await asyncio.gather(*(run_in_new_thread(repository.unload, name) for name in names))

    assert model.stops == ["model"]


def test_a_model_that_could_not_be_loaded_can_be_unloaded() -> None:
    repository = ModelRepository()
    repository.set_status("failed", ModelState.UNAVAILABLE, "no artifact")

    repository.unload("failed")

    assert repository.names() == []


def test_an_unknown_model_cannot_be_unloaded() -> None:
    with pytest.raises(KeyError, match="model none does not exist"):
        ModelRepository().unload("none")


def test_a_repository_of_the_sdk_overrides_load_model(tmp_path: Path) -> None:
    class Repository(ModelRepository):
        def load_model(self, name: str) -> bool:
            self.update(ready(name))
            return True

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    repository = Repository("/elsewhere")
    repository.set_models_dir(str(tmp_path))

    repository.load_models()

    assert list(repository.get_models()) == ["a", "b"]
    assert repository.load("c") is True
    assert ModelRepository().load("c") is None


def test_a_directory_without_models_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError) as caught:
        ModelRepository(str(tmp_path)).load_models()

    assert str(caught.value) == f"{tmp_path}: no model and no directories of models"


class OnDisk(Model):
    """Loads if its directory holds a file `good`."""

    def __init__(self, name: str, model_dir: str) -> None:
        super().__init__(name)
        self.model_dir = model_dir
        self.loaded_on = ""

    def load(self) -> bool:
        if not (Path(self.model_dir) / "good").is_file():
            raise ModelMissingError(self.model_dir, "no good file")
        self.loaded_on = here()
        self.ready = True
        return True


def directory(tmp_path: Path, **models: bool) -> DirectoryRepository:
    for name, is_good in models.items():
        (tmp_path / name).mkdir()
        if is_good:
            (tmp_path / name / "good").touch()
    return DirectoryRepository(OnDisk, f"file://{tmp_path}")


def test_one_model_that_cannot_be_loaded_does_not_hold_up_the_others(
    tmp_path: Path, log: Any
) -> None:
    repository = directory(tmp_path, bad=False, good=True)

    repository.load_models()

    assert {name: repository.status(name) for name in repository.names()} == {
        "good": ModelStatus(ModelState.READY),
        "bad": ModelStatus(ModelState.UNAVAILABLE, f"{tmp_path}/bad: no good file"),
    }
    assert [record.message for record in log.records if record.levelname == "ERROR"] == [
        f"Model bad cannot be loaded: {tmp_path}/bad: no good file"
    ]


async def test_loads_a_directory_on_a_thread(tmp_path: Path) -> None:
    repository = directory(tmp_path, good=True)

    is_ready = await repository.load("good")

    model = repository.get_model("good")
    assert isinstance(model, OnDisk)
    assert (is_ready, model.model_dir) == (True, f"{tmp_path}/good")
    assert model.loaded_on not in ("", here())


async def test_a_model_goes_on_serving_if_its_successor_cannot_be_loaded(tmp_path: Path) -> None:
    repository = directory(tmp_path, model=True)
    await repository.load("model")
    serving = repository.get_model("model")
    (tmp_path / "model" / "good").unlink()

    with pytest.raises(ModelMissingError):
        await repository.load("model")

    assert repository.get_model("model") is serving
    assert repository.status("model") == ModelStatus(ModelState.READY)


BAD_NAMES = ["", ".", "..", ".hidden", "a/b", "../a", "/etc", "a/", "a\0b"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
async def test_refuses_names_that_would_leave_the_directory(tmp_path: Path, name: str) -> None:
    made: list[str] = []

    def make(name: str, model_dir: str) -> BaseKServeModel:
        made.append(model_dir)
        return OnDisk(name, model_dir)

    with pytest.raises(InvalidInput) as caught:
        await DirectoryRepository(make, str(tmp_path)).load(name)

    assert str(caught.value) == f"model name {name!r}: expected the name of one directory"
    assert made == []


@pytest.mark.parametrize("name", ["iris", "iris.v2", "a b", "a..b", "模型"])
def test_accepts_the_name_of_a_directory(name: str) -> None:
    check_model_name(name)
