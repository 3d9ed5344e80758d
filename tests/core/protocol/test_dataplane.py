"""The data plane, through which every request passes."""

import asyncio
import gc
import threading
import weakref
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from prometheus_client import REGISTRY

from kserve.config import ServerConfig
from kserve.errors import ModelNotFound, ModelNotReady, ServerNotLive, TooManyRequests
from kserve.executor import run_in_new_thread
from kserve.model import BaseKServeModel, Model, TensorModel
from kserve.model_repository import ModelRepository, ModelState
from kserve.predictor_config import PredictorConfig
from kserve.protocol import dataplane as dataplane_module
from kserve.protocol.dataplane import DataPlane, server_version
from kserve.signature import Signature, TensorSpec

pytestmark = pytest.mark.anyio

_JOIN_S = 10


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def here() -> str:
    return threading.current_thread().name


class Echo(Model):
    def __init__(self, name: str, is_ready: bool = True) -> None:
        super().__init__(name)
        self.ready = is_ready

    def predict(self, payload: Any, headers: Any) -> Any:  # type: ignore[override]
        return [self.name, payload, headers]

    def explain(self, payload: Any) -> Any:  # type: ignore[override]
        return ["explained", payload]


def serving(*models: BaseKServeModel, **settings: Any) -> DataPlane:
    repository = ModelRepository()
    for model in models:
        repository.update(model)
    return DataPlane(repository, **settings)


async def test_answers_with_the_model_of_the_name() -> None:
    dataplane = serving(Echo("first"), Echo("second"))

    answers = [
        await dataplane.infer("first", "p"),
        await dataplane.infer("second", "p", {"a": "b"}),
        await dataplane.explain("first", "p"),
        await dataplane.explain("first", "p", {"a": "b"}),
    ]

    assert answers == [
        (["first", "p", {}], {}),
        (["second", "p", {"a": "b"}], {}),
        (["explained", "p"], {}),
        (["explained", "p"], {}),
    ]


def test_keeps_what_it_was_made_with() -> None:
    repository, config = ModelRepository(), PredictorConfig("host")

    dataplane = DataPlane(repository, config)

    assert (dataplane.model_registry, dataplane.predictor_config) == (repository, config)


class OwnHealth(Echo):
    is_healthy = False

    def healthy(self) -> bool:  # type: ignore[override]
        return self.is_healthy


async def test_says_why_a_model_cannot_answer() -> None:
    dataplane = serving(Echo("unready", is_ready=False), OwnHealth("ill"), Echo("lost"))
    registry = dataplane.model_registry
    registry.set_status("loading", ModelState.LOADING)
    registry.set_status("failed", ModelState.UNAVAILABLE, "/mnt/models: no model file")
    registry.get_models()["lost"].ready = False

    reasons = {}
    for name in ("unready", "ill", "lost", "loading", "failed", "unknown"):
        with pytest.raises((ModelNotReady, ModelNotFound)) as caught:
            await dataplane.infer(name, "p")
        reasons[name] = (caught.value.http_status, str(caught.value))

    assert reasons == {
        "unready": (503, "Model with name unready is not ready."),
        "ill": (503, "Model with name ill is not ready."),
        "lost": (503, "Model with name lost is not ready."),
        "loading": (503, "Model with name loading is not ready. It is loading."),
        "failed": (503, "Model with name failed is not ready. /mnt/models: no model file"),
        "unknown": (404, "Model with name unknown does not exist."),
    }


async def test_a_models_own_healthy_decides_even_if_it_never_set_ready() -> None:
    model = OwnHealth("healthy", is_ready=False)
    model.is_healthy = True

    assert await serving(model).infer("healthy", "p") == (["healthy", "p", {}], {})


async def test_gives_models_ready_or_not() -> None:
    ready, unready = Echo("ready"), Echo("unready", is_ready=False)
    dataplane = serving(ready, unready)

    assert await dataplane.get_model("ready") is ready
    assert dataplane.get_model_from_registry("unready") is unready
    with pytest.raises(ModelNotReady):
        await dataplane.get_model("unready")
    with pytest.raises(ModelNotFound):
        dataplane.get_model_from_registry("none")


class Blocking(Model):
    """Blocks in `predict` until released, and counts how many are in it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True
        self.entered, self.release = threading.Event(), threading.Event()
        self.n_inside = self.n_most = 0

    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        self.n_inside += 1
        self.n_most = max(self.n_most, self.n_inside)
        self.entered.set()
        self.release.wait(_JOIN_S)
        self.n_inside -= 1
        return [self.name, payload, here()]


async def test_a_model_with_two_names_is_called_by_one_thread_at_a_time() -> None:
    model = Blocking("own")
    dataplane = serving(model)
    dataplane.model_registry.update(model, "alias")

    calls = [
        asyncio.ensure_future(dataplane.infer(name, "p")) for name in ("own", "alias", "alias")
    ]
    await run_in_new_thread(model.entered.wait, _JOIN_S)
    model.release.set()
    answers = await asyncio.gather(*calls)

    assert answers == [(["own", "p", "own-0"], {})] * 3
    assert model.n_most == 1


async def test_other_models_answer_while_one_predicts() -> None:
    busy = Blocking("busy")
    dataplane = serving(busy, Echo("other"))

    blocked = asyncio.ensure_future(dataplane.infer("busy", "p"))
    await run_in_new_thread(busy.entered.wait, _JOIN_S)
    answer = await dataplane.infer("other", "p")
    still_blocked = not blocked.done()
    busy.release.set()
    await blocked

    assert (answer, still_blocked) == ((["other", "p", {}], {}), True)


@pytest.mark.parametrize("by_server", [True, False])
async def test_as_many_predicts_of_a_model_run_as_is_allowed(by_server: bool) -> None:
    barrier = threading.Barrier(2)

    class Meeting(Echo):
        max_concurrent_predicts = None if by_server else 2

        def predict(self, payload: Any, headers: Any) -> Any:  # type: ignore[override]
            barrier.wait(_JOIN_S)
            return payload

    config = ServerConfig(max_concurrent_predicts=2) if by_server else ServerConfig()
    dataplane = serving(Meeting("meeting"), config=config)

    answers = await asyncio.gather(*(dataplane.infer("meeting", number) for number in range(2)))

    assert answers == [(0, {}), (1, {})]


async def test_refuses_more_requests_in_flight_than_are_allowed() -> None:
    may_end = asyncio.Event()

    class Waiting(Echo):
        async def predict(self, payload: Any, headers: Any) -> Any:  # type: ignore[override]
            await may_end.wait()
            return payload

    dataplane = serving(Waiting("waiting"), config=ServerConfig(max_inflight_requests=2))
    taken = [asyncio.create_task(dataplane.infer("waiting", number)) for number in range(2)]
    await asyncio.sleep(0)

    with pytest.raises(TooManyRequests, match="--max_inflight_requests"):
        await dataplane.infer("waiting", 2)
    may_end.set()
    answers = await asyncio.gather(*taken)
    again = await dataplane.infer("waiting", 3)

    assert [*answers, again] == [(0, {}), (1, {}), (3, {})]


async def test_a_request_that_found_a_model_is_answered_by_it_though_it_is_replaced() -> None:
    old, new = Echo("m"), Echo("m")
    old.name, new.name = "old", "new"
    dataplane = DataPlane(ModelRepository())
    dataplane.model_registry.update(old, "m")

    found = await dataplane.find("m")
    dataplane.model_registry.update(new, "m")
    answer_of_new = await dataplane.infer("m", "p")
    answer_of_old = await dataplane.run(found, "p", {}, "predict")

    assert (answer_of_old[0][0], answer_of_new[0][0]) == ("old", "new")


async def test_looks_at_a_models_handlers_once() -> None:
    dataplane = serving(Echo("m"))

    endpoints = [await dataplane.find("m") for _ in range(2)]

    assert endpoints[0] is endpoints[1]


@pytest.mark.parametrize("is_replaced", [False, True], ids=["unloaded", "replaced"])
async def test_a_model_that_is_gone_costs_neither_memory_nor_threads(is_replaced: bool) -> None:
    dataplane = serving(Echo("gone"))
    await dataplane.infer("gone", "p")
    watched = weakref.ref(dataplane.get_model_from_registry("gone"))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "gone-0"]

    if is_replaced:
        dataplane.model_registry.update(Echo("gone"))
        await dataplane.find("gone")
    else:
        dataplane.model_registry.unload("gone")
        with pytest.raises(ModelNotFound):
            await dataplane.find("gone")
    gc.collect()
    thread.join(_JOIN_S)

    assert (watched(), thread.is_alive()) == (None, False)


async def test_counts_requests_while_they_are_worked_on() -> None:
    class Failing(Model):
        def predict(self, payload: Any) -> Any:  # type: ignore[override]
            seen.append(in_flight())
            raise LookupError

    def in_flight() -> float | None:
        return REGISTRY.get_sample_value("kserve_requests_in_flight", {"model_name": "counted"})

    seen: list[float | None] = []
    model = Failing("counted")
    model.ready = True
    with pytest.raises(LookupError):
        await serving(model).infer("counted", "p")

    assert [*seen, in_flight()] == [1, 0]


async def test_lives_and_describes_itself() -> None:
    dataplane = serving()

    assert await DataPlane(ModelRepository()).live() == {"status": "alive"}
    assert dataplane.metadata() == {
        "name": "kserve",
        "version": server_version(),
        "extensions": ["binary_tensor_data"],
    }


@pytest.mark.parametrize("is_installed", [True, False])
def test_the_version_is_that_of_the_distribution(
    is_installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if not is_installed:
            raise PackageNotFoundError(name)
        return f"1.2.3 of {name}"

    monkeypatch.setattr(dataplane_module, "version", version)

    assert server_version() == ("1.2.3 of kserve-core" if is_installed else "0")


async def test_is_ready_while_the_models_given_at_start_are_and_it_is_not_draining() -> None:
    required, later = Echo("required"), Echo("later", is_ready=False)
    dataplane = serving(required, later)
    dataplane.required_models = ["required"]
    seen = [(await dataplane.ready(), await dataplane.not_ready_reason())]

    required.ready = False
    seen.append((await dataplane.ready(), await dataplane.not_ready_reason()))
    dataplane.is_draining = True
    seen.append((await dataplane.ready(), await dataplane.not_ready_reason()))

    assert seen == [
        (True, ""),
        (False, "Model with name required is not ready."),
        (False, "The server is shutting down."),
    ]


async def test_says_whether_a_model_is_ready() -> None:
    dataplane = serving(Echo("ready"), Echo("unready", is_ready=False), OwnHealth("ill"))
    dataplane.model_registry.set_status("failed", ModelState.UNAVAILABLE, "why")

    assert {
        name: await dataplane.model_ready(name) for name in ("ready", "unready", "ill", "failed")
    } == {"ready": True, "unready": False, "ill": False, "failed": False}
    with pytest.raises(ModelNotFound):
        await dataplane.model_ready("none")


class Typed(Echo):
    types_on = ""

    def get_input_types(self) -> list[dict[str, Any]]:
        self.types_on = here()
        return [{"name": "x", "datatype": "FP32", "shape": [-1]}]

    async def get_output_types(self) -> Any:  # type: ignore[override]
        return ({"name": "y", "datatype": "FP32", "shape": [-1]},)


class Untyped(Echo):
    def get_input_types(self) -> Any:
        return None


class Tensors(TensorModel):
    platform = "test"


async def test_describes_models() -> None:
    tensors = Tensors("tensors")
    tensors.versions = ["1"]
    tensors.signature = Signature(
        (TensorSpec("x", "FP64", (-1, 2)),), (TensorSpec("y", "BYTES", ()),)
    )
    typed = Typed("typed")
    dataplane = serving(typed, Untyped("untyped"), tensors, BaseKServeModel("base"))

    metadata = {
        name: await dataplane.model_metadata(name)
        for name in ("typed", "untyped", "tensors", "base")
    }

    assert metadata == {
        "typed": {
            "name": "typed",
            "versions": None,
            "platform": "",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
        },
        "untyped": {
            "name": "untyped",
            "versions": None,
            "platform": "",
            "inputs": [],
            "outputs": [],
        },
        "tensors": {
            "name": "tensors",
            "versions": ["1"],
            "platform": "test",
            "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "BYTES", "shape": []}],
        },
        "base": {"name": "base", "versions": None, "platform": "", "inputs": [], "outputs": []},
    }
    assert typed.types_on not in ("", here())
    with pytest.raises(ModelNotFound):
        await dataplane.model_metadata("none")


@pytest.mark.parametrize(
    ("was_ready", "state", "is_ready"),
    [
        pytest.param(True, None, True, id="the server took it out"),
        pytest.param(False, None, False, id="its user took it out before"),
        pytest.param(True, ModelState.LOADING, False, id="it is loaded anew meanwhile"),
    ],
)
def test_a_model_whose_hung_call_returns_is_put_back_where_the_server_took_it_out(
    was_ready: bool, state: ModelState | None, is_ready: bool
) -> None:
    model = Echo("hung", was_ready)
    dataplane = serving(model)

    dataplane._note_hang(model, True)
    while_hung = model.ready
    if state is not None:
        dataplane.model_registry.set_status("hung", state)
    dataplane._note_hang(model, False)

    assert (while_hung, model.ready) == (False, is_ready)


async def test_a_model_that_can_never_answer_again_says_why_and_ends_liveness() -> None:
    broken, other = Echo("broken"), Echo("other")
    dataplane = serving(broken, other)
    before = await dataplane.live()
    broken.ready, broken.fatal_error = False, "The engine has died: out of memory."

    with pytest.raises(ModelNotReady, match=r"not ready\. The engine has died: out of memory\."):
        await dataplane.find("broken")
    with pytest.raises(ServerNotLive, match=r"Model broken: The engine has died"):
        await dataplane.live()
    answer, _ = await dataplane.infer("other", "p")

    assert before == {"status": "alive"}
    assert answer[0] == "other"
