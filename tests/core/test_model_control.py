"""Loading, replacing and unloading models while requests come, over real sockets."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from kserve.config import ServerConfig
from kserve.directory_repository import DirectoryRepository
from kserve.errors import ModelNotFound, ModelNotReady
from kserve.executor import run_in_new_thread
from kserve.model import BaseKServeModel, Model, PredictOptions, TensorModel
from kserve.model_repository import ModelRepository
from kserve.model_server import ModelServer
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.testing import Response, request, serving

pytestmark = pytest.mark.anyio

WAIT_S = 10
ROW = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [0]}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Gate:
    """Where a handler waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.entered.set()
        assert self.opened.wait(WAIT_S)


class Number(TensorModel):
    """Answers with the number in its file, twice; a negative row waits at the gate."""

    artifact_suffixes = (".num",)
    gate: Gate
    load_gate: Gate | None = None
    stopped: list[float]

    def load(self) -> bool:
        if self.load_gate is not None:
            self.load_gate.pass_through()
        assert self.model_dir is not None
        self.number = float((Path(self.model_dir) / "m.num").read_text())
        self.signature = Signature((TensorSpec("x", "FP64", (-1,)),))
        self.ready = True
        return True

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        if tensors["x"][0] < 0:
            self.gate.pass_through()
        number = np.full(1, self.number)
        return {"first": number, "second": number}

    def stop(self) -> None:
        super().stop()
        self.stopped.append(self.number)
        self.number = np.nan


def number_class(gate: Gate | None = None, load_gate: Gate | None = None) -> type[Number]:
    """Give a class of its own, so that tests share nothing."""
    state: dict[str, Any] = {"gate": gate or Gate(), "load_gate": load_gate, "stopped": []}
    return type("OwnNumber", (Number,), state)


def write(directory: Path, number: float | str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "m.num").write_text(str(number))


@contextmanager
def serving_directory(
    models_dir: Path, model_class: Callable[[str, str], BaseKServeModel], **settings: Any
) -> Iterator[int]:
    max_versions = settings.pop("max_versions", 1)
    repository = DirectoryRepository(model_class, str(models_dir), max_versions=max_versions)
    required = asyncio.run(repository.load_at_start())
    config = ServerConfig(host="127.0.0.1", http_port=0, **settings)
    server = ModelServer(registered_models=repository, config=config)
    with serving([], server) as port:
        server.dataplane.required_models = required
        yield port


def post(port: int, path: str, body: dict[str, Any] | None = None) -> Response:
    return request(port, "POST", f"/v2/{path}", body)


def answer(response: Response) -> tuple[int, Any]:
    return response.status, response.json()


def number_of(response: Response) -> float:
    """Give the number of a response, which must be one."""
    assert response.status == 200, response.body
    values = {output["data"][0] for output in response.json()["outputs"]}
    assert len(values) == 1
    return float(values.pop())


def index(port: int, **body: Any) -> list[tuple[str, ...]]:
    entries = post(port, "repository/index", body).json()
    return [tuple(entry.values()) for entry in entries]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_lists_loads_and_unloads_models_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    with serving_directory(tmp_path, number_class()) as port:
        write(tmp_path / "b", 2)
        before = index(port)
        loaded = post(port, "repository/models/b/load")
        both = index(port)
        predicted = number_of(post(port, "models/b/infer", ROW))
        unloaded = post(port, "repository/models/a/unload", {"parameters": {}})
        ready = index(port, ready=True)
        gone = post(port, "models/a/infer", ROW)
        again = post(port, "repository/models/a/load", {})
        extensions = request(port, "GET", "/v2").json()["extensions"]

    assert before == [("a", "", "READY", ""), ("b", "", "UNAVAILABLE", "not loaded")]
    assert (loaded.status, loaded.body) == (200, b'{"name":"b","load":true}')
    assert both == [("a", "", "READY", ""), ("b", "", "READY", "")]
    assert predicted == 2
    assert (unloaded.status, unloaded.body) == (200, b'{"name":"a","unload":true}')
    assert ready == [("b", "", "READY", "")]
    assert answer(gone) == (404, {"error": "Model with name a does not exist."})
    assert answer(again) == (200, {"name": "a", "load": True})
    assert "model_repository" in extensions


def test_index_entries_have_the_members_of_triton(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1", 1)

    with serving_directory(tmp_path, number_class()) as port:
        response = post(port, "repository/index")

    assert response.body == b'[{"name":"a","version":"1","state":"READY","reason":""}]'


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        pytest.param(
            "repository/models/..%2Fa/load",
            b"",
            400,
            "model name '../a': expected the name of one directory",
            id="a separator",
        ),
        pytest.param(
            "repository/models/../load",
            b"",
            400,
            "model name '..': expected the name of one directory",
            id="the directory above",
        ),
        pytest.param(
            "repository/models/none/load",
            b"",
            503,
            "Model with name none is not ready. none: no such directory",
            id="no directory",
        ),
        pytest.param(
            "repository/models/none/unload",
            b"",
            404,
            "Model with name none does not exist.",
            id="unload of none",
        ),
        pytest.param(
            "repository/models/a/load",
            b'{"parameters":{"config":"{}"}}',
            400,
            "parameter 'config' is not supported: a model is its directory",
            id="a parameter",
        ),
        pytest.param(
            "repository/models/a/load",
            b'{"parameters":[1]}',
            400,
            "expected 'parameters' to be an object",
            id="parameters of another type",
        ),
        pytest.param(
            "repository/index",
            b'{"ready":1}',
            400,
            "expected 'ready' to be true or false, got 1",
            id="ready of another type",
        ),
        pytest.param(
            "repository/index",
            b"[]",
            400,
            "expected the body to be a JSON object",
            id="no object",
        ),
    ],
)
def test_refuses_what_is_wrong(
    tmp_path: Path, path: str, body: bytes, status: int, error: str
) -> None:
    write(tmp_path / "a", 1)

    with serving_directory(tmp_path, number_class()) as port:
        response = request(port, "POST", f"/v2/{path}", body)
        still = number_of(post(port, "models/a/infer", ROW))

    assert answer(response) == (status, {"error": error})
    assert still == 1


def test_the_repository_answers_to_post_alone(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)

    with serving_directory(tmp_path, number_class()) as port:
        response = request(port, "GET", "/v2/repository/index")

    assert (response.status, response.headers["allow"]) == (405, "POST")


OFF = "the model repository API is off: start the server with --repository_api true"


@pytest.mark.parametrize(
    "path", ["repository/index", "repository/models/model/load", "repository/models/model/unload"]
)
@pytest.mark.parametrize(
    ("directory", "setting"),
    [
        pytest.param("", {}, id="a single model"),
        pytest.param("model", {"repository_api": False}, id="several, switched off"),
    ],
)
def test_is_off_for_a_single_model_and_by_flag(
    tmp_path: Path, path: str, directory: str, setting: dict[str, bool]
) -> None:
    write(tmp_path / directory, 1)

    with serving_directory(tmp_path, number_class(), **setting) as port:
        response = post(port, path)
        still = number_of(post(port, "models/model/infer", ROW))
        extensions = request(port, "GET", "/v2").json()["extensions"]

    assert (answer(response), still) == ((501, {"error": OFF}), 1)
    assert "model_repository" not in extensions


def test_a_single_model_can_be_loaded_again_where_the_flag_says_so(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with serving_directory(tmp_path, number_class(), repository_api=True) as port:
        write(tmp_path, 2)
        loaded = post(port, "repository/models/model/load")
        number = number_of(post(port, "models/model/infer", ROW))
        other = post(port, "repository/models/other/load")
        post(port, "repository/models/model/unload")
        ready = request(port, "GET", "/v2/health/ready")

    assert (loaded.status, number) == (200, 2)
    assert answer(other) == (404, {"error": "Model with name other does not exist."})
    assert answer(ready) == (200, {"ready": True})


async def test_a_server_needs_its_single_model_to_be_ready(tmp_path: Path) -> None:
    write(tmp_path, 1)
    repository = DirectoryRepository(number_class(), str(tmp_path))
    config = ServerConfig(host="127.0.0.1", http_port=0)
    server = ModelServer(registered_models=repository, config=config)
    required = []

    def look(address: str) -> None:
        required.extend(server.dataplane.required_models)
        server.stop()

    await server.serve([], look, load=repository.load_at_start)

    assert required == ["model"]


def test_a_failed_load_leaves_the_old_model_and_tells_no_secrets(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    with serving_directory(tmp_path, number_class()) as port:
        write(tmp_path / "a", "secret")
        failed = post(port, "repository/models/a/load")
        number = number_of(post(port, "models/a/infer", ROW))
        entries = index(port)
        write(tmp_path / "a", 2)
        post(port, "repository/models/a/load")
        mended = index(port)

    reason = "Its load raised ValueError; the log says more."
    assert answer(failed) == (503, {"error": f"Model with name a is not ready. {reason}"})
    assert number == 1
    assert entries == [("a", "", "READY", reason)]
    assert mended == [("a", "", "READY", "")]


def test_versions_are_asked_for_by_their_number(tmp_path: Path) -> None:
    for version in (1, 2):
        write(tmp_path / str(version), version)
    write(tmp_path / "3", "broken")
    v1 = {"instances": [0]}

    with serving_directory(tmp_path, number_class(), max_versions=None) as port:
        infer = [
            post(port, f"models/model{version}/infer", ROW)
            for version in ("", "/versions/1", "/versions/2")
        ]
        predicted = request(port, "POST", "/v1/models/model/versions/1:predict", v1)
        explained = request(port, "POST", "/v1/models/model/versions/1:explain", v1)
        metadata = request(port, "GET", "/v2/models/model").json()
        same = request(port, "GET", "/v2/models/model/versions/1").json()
        ready = [
            answer(request(port, "GET", path))
            for path in ("/v2/models/model/versions/1/ready", "/v1/models/model/versions/1")
        ]

    assert [(r.json()["model_version"], number_of(r)) for r in infer] == [
        ("2", 2),
        ("1", 1),
        ("2", 2),
    ]
    assert predicted.json() == {"predictions": [{"first": 1.0, "second": 1.0}]}
    assert answer(explained) == (501, {"error": "model model does not implement explain"})
    assert (metadata["versions"], same) == (["1", "2"], metadata)
    assert ready == [(200, {"name": "model", "ready": True})] * 2


MISSING = "Model with name model has no version 9: it has 2."


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        pytest.param("POST", "/v2/models/model/versions/9/infer", 404, MISSING, id="V2"),
        pytest.param("GET", "/v2/models/model/versions/9/ready", 404, MISSING, id="V2 readiness"),
        pytest.param("GET", "/v2/models/model/versions/9", 404, MISSING, id="V2 metadata"),
        pytest.param("POST", "/v1/models/model/versions/9:predict", 404, MISSING, id="V1"),
        pytest.param("POST", "/v1/models/model/versions/9:explain", 404, MISSING, id="V1 explain"),
        pytest.param("GET", "/v1/models/model/versions/9", 404, MISSING, id="V1 readiness"),
        pytest.param(
            "POST",
            "/v2/models/model/versions/3/infer",
            503,
            "Model with name model is not ready. "
            "Version 3: Its load raised ValueError; the log says more.",
            id="one that could not be loaded",
        ),
        pytest.param(
            "POST",
            "/v2/models/none/versions/1/infer",
            404,
            "Model with name none does not exist.",
            id="no model",
        ),
        pytest.param(
            "POST",
            "/v2/models/model/versions//infer",
            404,
            "Model with name model/versions/ does not exist.",
            id="no number",
        ),
    ],
)
def test_a_version_that_is_not_there_is_told(
    tmp_path: Path, method: str, path: str, status: int, error: str
) -> None:
    write(tmp_path / "2", 2)
    write(tmp_path / "3", "broken")

    with serving_directory(tmp_path, number_class(), max_versions=None) as port:
        response = request(port, method, path, ROW if method == "POST" else None)

    assert answer(response) == (status, {"error": error})


def test_a_model_without_versions_has_none(tmp_path: Path) -> None:
    write(tmp_path, 1)

    with serving_directory(tmp_path, number_class()) as port:
        response = post(port, "models/model/versions/1/infer", ROW)
        plain = post(port, "models/model/infer", ROW).json()
        metadata = request(port, "GET", "/v2/models/model").json()

    text = "Model with name model has no version 1: it has no versions."
    assert answer(response) == (404, {"error": text})
    assert (plain["model_version"], metadata["versions"]) == (None, None)


class Told(Model):
    """Answers with the version that the request names."""

    def load(self) -> bool:
        self.ready = True
        self.response = InferResponse("1", self.name, [])
        return True

    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        if isinstance(payload, InferRequest):
            self.response.parameters = {"asked": str(payload.model_version)}
            return self.response
        return {"predictions": []}


def test_a_users_model_is_told_the_version_and_need_not_tell_it(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)

    with serving_directory(tmp_path, lambda name, model_dir: Told(name)) as port:
        named = post(port, "models/model/versions/1/infer", ROW).json()
        default = post(port, "models/model/infer", ROW).json()
        v1 = request(port, "POST", "/v1/models/model/versions/1:predict", {"instances": []})

    assert (named["model_version"], named["parameters"]) == ("1", {"asked": "1"})
    assert (default["model_version"], default["parameters"]) == ("1", {"asked": "None"})
    assert v1.json() == {"predictions": []}


def test_a_request_in_flight_ends_on_the_model_that_took_it(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    model_class = number_class(gate)
    waiting = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [-1]}]}
    write(tmp_path / "a", 1)
    with serving_directory(tmp_path, model_class) as port:
        slow = pool.submit(post, port, "models/a/infer", waiting)
        assert gate.entered.wait(WAIT_S)
        write(tmp_path / "a", 2)
        post(port, "repository/models/a/load")
        fresh = number_of(post(port, "models/a/infer", ROW))
        stopped_early = list(model_class.stopped)
        gate.opened.set()
        old = number_of(slow.result(WAIT_S))
        # The unload waits for nothing else than what it frees.
        post(port, "repository/models/a/unload")

    assert (fresh, old, stopped_early) == (2, 1, [])
    assert sorted(model_class.stopped) == [1, 2]


def test_an_unload_waits_for_the_last_request_and_new_ones_are_refused(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    model_class = number_class(gate)
    waiting = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [-1]}]}
    write(tmp_path / "a", 1)
    with serving_directory(tmp_path, model_class) as port:
        slow = pool.submit(post, port, "models/a/infer", waiting)
        assert gate.entered.wait(WAIT_S)
        unload = pool.submit(post, port, "repository/models/a/unload")
        while request(port, "GET", "/v2/models/a").status == 200:
            pass
        refused = post(port, "models/a/infer", ROW)
        while_in_use = (unload.done(), list(model_class.stopped))
        gate.opened.set()
        old = number_of(slow.result(WAIT_S))
        unloaded = unload.result(WAIT_S)

    assert answer(refused) == (404, {"error": "Model with name a does not exist."})
    assert while_in_use == (False, [])
    assert (old, unloaded.status, model_class.stopped) == (1, 200, [1])


def test_a_body_that_is_still_coming_keeps_its_model(tmp_path: Path) -> None:
    model_class = number_class()
    body = b'{"instances":[0]}'
    write(tmp_path / "a", 1)
    with serving_directory(tmp_path, model_class) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.putrequest("POST", "/v1/models/a:predict")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:5])
        # Asked and answered behind it on the same loop: its model has been found by then.
        in_flight = number_of(post(port, "models/a/infer", ROW))
        write(tmp_path / "a", 2)
        post(port, "repository/models/a/load")
        stopped_early = list(model_class.stopped)
        connection.send(body[5:])
        predicted = connection.getresponse().read()
        connection.close()

    assert (in_flight, stopped_early) == (1, [])
    assert predicted == b'{"predictions":[{"first":1.0,"second":1.0}]}'


def test_no_request_fails_and_none_sees_a_mixture_while_models_are_replaced(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    n_swaps = 20
    write(tmp_path / "a" / "1", 1)
    done = threading.Event()

    def ask(port: int) -> list[tuple[str, float]]:
        seen = []
        while not done.is_set():
            response = post(port, "models/a/infer", ROW)
            seen.append((response.json()["model_version"], number_of(response)))
        return seen

    with serving_directory(tmp_path, number_class()) as port:
        clients: list[Future[list[tuple[str, float]]]] = [pool.submit(ask, port) for _ in range(4)]
        for version in range(2, n_swaps + 2):
            write(tmp_path / "a" / str(version), version)
            assert post(port, "repository/models/a/load").status == 200
            shutil.rmtree(tmp_path / "a" / str(version - 1))
        done.set()
        seen = [client.result(WAIT_S) for client in clients]

    for answers in seen:
        assert all(float(version) == number for version, number in answers)
        numbers = [number for _, number in answers]
        assert numbers == sorted(numbers)
    assert len({pair for answers in seen for pair in answers}) > n_swaps // 2


def test_models_load_side_by_side(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    write(tmp_path / "served", 0)

    class Slow(number_class()):  # type: ignore[misc]
        def load(self) -> bool:
            if self.name == "slow":
                gate.pass_through()
            return bool(super().load())

    with serving_directory(tmp_path, Slow) as port:
        write(tmp_path / "slow", 1)
        write(tmp_path / "fast", 2)
        slow = pool.submit(post, port, "repository/models/slow/load")
        assert gate.entered.wait(WAIT_S)
        fast = post(port, "repository/models/fast/load")
        loading = (slow.done(), index(port))
        refused = post(port, "models/slow/infer", ROW)
        gate.opened.set()
        loaded = slow.result(WAIT_S)

    assert (fast.status, loaded.status, loading[0]) == (200, 200, False)
    assert ("slow", "", "LOADING", "") in loading[1]
    assert answer(refused) == (503, {"error": "Model with name slow is not ready. It is loading."})


def test_loads_of_one_model_take_turns(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    inside: list[int] = []
    most: list[int] = []

    class Counting(number_class()):  # type: ignore[misc]
        def load(self) -> bool:
            inside.append(1)
            most.append(len(inside))
            loaded = bool(super().load())
            inside.pop()
            return loaded

    write(tmp_path / "a", 1)
    with serving_directory(tmp_path, Counting) as port:
        loads = [pool.submit(post, port, "repository/models/a/load") for _ in range(8)]
        statuses = [load.result(WAIT_S).status for load in loads]

    assert statuses == [200] * 8
    assert (len(most), max(most)) == (9, 1)


def test_an_unloaded_model_leaves_no_metrics(tmp_path: Path) -> None:
    write(tmp_path / "unmetered", 1)
    with serving_directory(tmp_path, number_class()) as port:
        # An answer is counted once it is sent: that of the first, before the second is read.
        post(port, "models/unmetered/infer", ROW)
        post(port, "models/unmetered/infer", ROW)
        counted = samples("unmetered")
        post(port, "repository/models/unmetered/unload")
        left = samples("unmetered")

    assert {"kserve_requests_total", "request_predict_seconds_sum", "kserve_model_state"} <= counted
    assert left == set()


def samples(name: str) -> set[str]:
    return {
        sample.name
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.labels.get("model_name") == name
    }


class Echo(Model):
    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        return {"predictions": [self.name]}


def ready(name: str) -> Echo:
    model = Echo(name)
    model.ready = True
    return model


class PlainRepository(ModelRepository):
    def load_model(self, name: str) -> bool:
        if name == "bad":
            raise OSError("/secret/path")
        self.update(ready(name))
        return True


class AsyncRepository(ModelRepository):
    async def load(self, name: str) -> bool:
        await asyncio.sleep(0)
        return PlainRepository.load_model(self, name)  # type: ignore[arg-type]


class AsyncLoadModelRepository(ModelRepository):
    async def load_model(self, name: str) -> bool:
        return PlainRepository.load_model(self, name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "repository_class", [PlainRepository, AsyncRepository, AsyncLoadModelRepository]
)
async def test_a_repository_of_the_users_loads_by_name(
    repository_class: type[ModelRepository],
) -> None:
    dataplane = DataPlane(repository_class())

    await dataplane.load_model("m")
    predicted = await dataplane.infer("m", {})
    listed = await dataplane.repository_index()
    await dataplane.unload_model("m")
    left = await dataplane.repository_index()

    assert predicted == ({"predictions": ["m"]}, {})
    assert listed == [{"name": "m", "version": "", "state": "READY", "reason": ""}]
    assert left == []


async def test_a_load_that_a_users_repository_refuses_is_told_without_internals() -> None:
    dataplane = DataPlane(PlainRepository())

    with pytest.raises(ModelNotReady) as caught:
        await dataplane.load_model("bad")

    assert str(caught.value) == (
        "Model with name bad is not ready. Its load raised OSError; the log says more."
    )
    assert dataplane.model_registry.names() == []


async def test_a_repository_that_loads_nothing_has_no_such_model() -> None:
    dataplane = DataPlane(ModelRepository(), config=ServerConfig(repository_api=True))

    with pytest.raises(ModelNotFound, match="^Model with name m does not exist.$"):
        await dataplane.load_model("m")


async def test_an_unload_that_user_code_overrides_is_called() -> None:
    unloaded: list[str] = []

    class Own(PlainRepository):
        def unload(self, name: str) -> None:
            unloaded.append(name)
            super().unload(name)

    dataplane = DataPlane(Own())
    await dataplane.load_model("m")
    await dataplane.infer("m", {})
    model = weakref.ref(dataplane.get_model_from_registry("m"))
    await dataplane.unload_model("m")
    gc.collect()
    is_freed = model() is None
    with pytest.raises(ModelNotFound, match="^Model with name m does not exist.$"):
        await dataplane.unload_model("m")

    assert (unloaded, is_freed) == (["m", "m"], True)


async def test_a_model_is_freed_only_after_the_handler_of_a_client_that_left() -> None:
    gate, stopping = Gate(), threading.Event()
    order: list[str] = []

    class Slow(Echo):
        def predict(self, payload: Any) -> Any:  # type: ignore[override]
            gate.pass_through()
            # Time for a stop that comes too early.
            stopping.wait(0.2)
            order.append("answered")

        def stop(self) -> None:
            order.append("stopped")
            stopping.set()

    registry = PlainRepository()
    model = Slow("m")
    model.ready = True
    registry.update(model)
    del model
    dataplane = DataPlane(registry)
    asking = asyncio.ensure_future(dataplane.infer("m", {}))
    await run_in_new_thread(gate.entered.wait, WAIT_S)
    asking.cancel()
    unloading = asyncio.ensure_future(dataplane.unload_model("m"))
    with pytest.raises(asyncio.CancelledError):
        await asking
    del asking
    gate.opened.set()
    await unloading

    assert order == ["answered", "stopped"]


async def test_an_unload_answers_though_the_last_request_hangs() -> None:
    gate = Gate()
    stopped: list[str] = []

    class Hanging(Echo):
        async def predict(self, payload: Any) -> Any:  # type: ignore[override]
            await run_in_new_thread(gate.pass_through)

        def stop(self) -> None:
            stopped.append(self.name)

    registry = PlainRepository()
    hanging = Hanging("m")
    hanging.ready = True
    registry.update(hanging)
    del hanging
    dataplane = DataPlane(registry, unload_timeout_s=0.01)
    asking = asyncio.ensure_future(dataplane.infer("m", {}))
    await run_in_new_thread(gate.entered.wait, WAIT_S)
    await dataplane.unload_model("m")
    while_hanging = list(stopped)
    gate.opened.set()
    await asking
    await dataplane.control.close()

    assert (while_hanging, stopped) == ([], ["m"])


async def test_a_model_that_fails_to_stop_is_gone_all_the_same() -> None:
    class Stubborn(Echo):
        def stop(self) -> None:
            raise RuntimeError("no")

    registry = PlainRepository()
    model = Stubborn("m")
    model.ready = True
    registry.update(model)
    dataplane = DataPlane(registry)

    await dataplane.unload_model("m")

    assert registry.names() == []


async def test_a_model_that_keeps_another_name_is_not_stopped() -> None:
    registry = PlainRepository()
    model = ready("m")
    registry.update(model)
    registry.update(model, "alias")
    dataplane = DataPlane(registry)
    await dataplane.infer("alias", {})

    await dataplane.unload_model("alias")

    assert await dataplane.infer("m", {}) == ({"predictions": ["m"]}, {})
    assert model.ready
