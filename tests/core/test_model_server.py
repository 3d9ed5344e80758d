"""The server's life: settings, loading, listening, engines, stopping."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import kserve
from kserve import BaseKServeModel, Model, ModelRepository, ModelServer, PredictorConfig
from kserve.config import ServerConfig
from kserve.errors import ModelLoadError, NoModelReady, StartError
from kserve.model_repository import ModelState, ModelStatus
from kserve.testing import Response, request, serving

WAIT_S = 15
LOCAL = ServerConfig(host="127.0.0.1", http_port=0, enable_grpc=False)


class Echo(Model):
    """Answers with its instances; counts its loads."""

    n_loads = 0
    load_thread = ""

    def load(self) -> bool:
        self.n_loads += 1
        self.load_thread = threading.current_thread().name
        self.ready = True
        return True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


class Failing(Echo):
    """Cannot be loaded."""

    def load(self) -> bool:
        raise ValueError("no weights")


class Blocking(Echo):
    """Answers once it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.released = threading.Event()

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self.entered.set()
        self.released.wait(WAIT_S)
        return {"predictions": ["late"]}


@pytest.fixture
def no_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["serve.py"])


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Response]]]:
    """Send a request from a thread."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda *args: pool.submit(request, *args)


def _predict(port: int, name: str) -> Response:
    return request(port, "POST", f"/v1/models/{name}:predict", {"instances": [1]})


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _ready(port: int) -> tuple[int, Any]:
    response = request(port, "GET", "/v2/health/ready")
    return response.status, response.json()


def test_settings_come_from_the_command_line_and_constructor_arguments_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["--http_port", "9000", "--grpc_port", "9001", "--workers", "1", "--mine", "x", "y"]
    monkeypatch.setattr("sys.argv", ["serve.py", *argv])

    server = ModelServer(http_port=7000, enable_latency_logging=False, host="127.0.0.1")

    assert server.config == ServerConfig(
        host="127.0.0.1", http_port=7000, grpc_port=9001, enable_latency_logging=False
    )


def test_every_constructor_argument_of_the_original_is_taken(no_argv: None) -> None:
    predictor = PredictorConfig("iris")
    repository = ModelRepository()

    server = ModelServer(
        http_port=1,
        grpc_port=2,
        workers=1,
        max_threads=3,
        max_asyncio_workers=4,
        registered_models=repository,
        enable_grpc=False,
        enable_docs_url=False,
        enable_latency_logging=False,
        access_log_format=None,
        event_loop="asyncio",
        timeout_keep_alive=5,
        grace_period=6,
        predictor_config=predictor,
    )

    assert server.config == ServerConfig(
        http_port=1,
        grpc_port=2,
        max_asyncio_workers=4,
        enable_grpc=False,
        enable_latency_logging=False,
        event_loop="asyncio",
        timeout_keep_alive_s=5,
        grace_period_s=6,
        predictor=predictor,
    )
    assert server.registered_models is repository


def test_the_command_line_is_not_read_where_all_settings_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["serve.py", "--http_port", "no number"])

    assert ModelServer(config=LOCAL).config == LOCAL


def test_the_parser_is_a_parent_as_in_the_originals_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["serve.py", "--model_name", "iris", "--http_port", "9000", "--typo", "x"]
    )
    own = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    own.add_argument("--threshold", type=float, default=0.5)

    args, unknown = own.parse_known_args()

    assert (args.model_name, args.threshold, unknown) == ("iris", 0.5, ["--typo", "x"])
    assert ModelServer().config == ServerConfig(model_name="iris", http_port=9000)


@pytest.mark.parametrize("workers", [0, 4])
def test_other_numbers_of_workers_warn(
    workers: int, no_argv: None, caplog: pytest.LogCaptureFixture
) -> None:
    ModelServer(workers=workers)

    assert [record.getMessage() for record in caplog.records] == [
        f"workers={workers}: one process serves"
    ]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"enable_docs_url": True}, id="enable_docs_url"),
        pytest.param({"access_log_format": "%h"}, id="access_log_format"),
    ],
)
def test_settings_without_effect_warn(
    options: dict[str, Any], no_argv: None, caplog: pytest.LogCaptureFixture
) -> None:
    ModelServer(**options)

    assert [record.getMessage() for record in caplog.records] == [
        "enable_docs_url and access_log_format have no effect"
    ]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda model: [model], id="list"),
        pytest.param(lambda model: (model,), id="tuple"),
        pytest.param(lambda model: {"server-echo": model}, id="dict"),
        pytest.param(lambda model: model, id="model"),
    ],
)
def test_serves_models_in_any_collection(make: Callable[[Model], Any]) -> None:
    with serving(make(Echo("server-echo"))) as port:
        response = _predict(port, "server-echo")

    assert response.json() == {"predictions": [1]}


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        pytest.param(
            None,
            RuntimeError,
            "Unknown model collection type: expected a list, a dict or a model, got NoneType",
            id="None",
        ),
        pytest.param(
            ["model"],
            RuntimeError,
            "Model type should be 'BaseKServeModel', got str",
            id="no model in a list",
        ),
        pytest.param(
            {"a": Echo},
            RuntimeError,
            "Model type should be 'BaseKServeModel', got type",
            id="a class in a dict",
        ),
        pytest.param(
            [Echo("a"), Echo("b"), Echo("a")],
            ValueError,
            "models share a name: a, b, a",
            id="a name twice",
        ),
        pytest.param(
            [Echo("")],
            ValueError,
            "Failed to register model, model.name must be provided.",
            id="no name",
        ),
    ],
)
def test_refuses_what_cannot_be_served(models: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised, serving(models):
        raise AssertionError("never runs")

    assert str(raised.value) == message


def test_serves_a_model_under_other_names() -> None:
    server = ModelServer(config=LOCAL)
    model = Echo("server-echo")
    model.load()
    server.register_model(model)
    server.register_model(model, "alias")

    with serving([], server) as port:
        answers = [_predict(port, name).json() for name in ("server-echo", "alias")]

    assert answers == [{"predictions": [1]}, {"predictions": [1]}]


def test_a_model_without_a_name_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="model.name must be provided"):
        ModelServer(config=LOCAL).register_model(Echo(""))


def test_serves_no_model_at_all() -> None:
    with serving([]) as port:
        answers = [_ready(port), request(port, "GET", "/v1/models").json()]

    assert answers == [(200, {"ready": True}), {"models": []}]


def test_a_model_that_is_not_ready_is_loaded_off_the_loop() -> None:
    model = Echo("server-echo")

    with serving(model):
        pass

    assert model.n_loads == 1
    assert model.load_thread not in ("serving", "MainThread")


def test_a_model_that_is_ready_is_not_loaded_again() -> None:
    model = Echo("server-echo")
    model.load()

    with serving(model):
        pass

    assert (model.n_loads, model.load_thread) == (1, "MainThread")


def test_an_async_load_is_awaited() -> None:
    class Async(Echo):
        async def load(self) -> bool:  # type: ignore[override]  # users' may be async
            await asyncio.sleep(0)
            return True

    with serving(Async("async")) as port:
        response = _predict(port, "async")

    assert response.status == 200


def test_a_load_that_fails_for_every_model_ends_the_start_with_the_first_reason() -> None:
    server = ModelServer(config=LOCAL)

    with pytest.raises(NoModelReady) as raised:
        server.start([Failing("failing"), Failing("failing-too")])

    assert str(raised.value) == (
        "Models with name failing, failing-too are not ready. ValueError: no weights"
    )
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_model_that_fails_beside_one_that_loads_leaves_the_server_not_ready() -> None:
    with serving([Failing("failing"), Echo("server-echo")]) as port:
        answers = [_predict(port, "server-echo"), _predict(port, "failing")]
        ready = _ready(port)

    reason = "Model with name failing is not ready. Its load raised ValueError; the log says more."
    assert [(answer.status, answer.json()) for answer in answers] == [
        (200, {"predictions": [1]}),
        (503, {"error": reason}),
    ]
    assert ready == (503, {"error": f"Server is not ready. {reason}"})


def test_models_load_side_by_side() -> None:
    barrier = threading.Barrier(2, timeout=WAIT_S)

    class Meeting(Echo):
        def load(self) -> bool:
            barrier.wait()
            return True

    with serving([Meeting("one"), Meeting("two")]) as port:
        assert _ready(port) == (200, {"ready": True})


def test_the_port_is_bound_after_the_models_are_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    refused: list[bool] = []

    class Probing(Echo):
        def load(self) -> bool:
            with socket.socket() as probe:
                refused.append(probe.connect_ex(("127.0.0.1", port)) != 0)
            return True

    with serving(Probing("probing"), http_port=port) as bound:
        assert _ready(bound) == (200, {"ready": True})

    assert (bound, refused) == (port, [True])


def test_more_models_may_be_loaded_on_a_thread_before_the_port_is_bound() -> None:
    server = ModelServer(config=LOCAL)
    threads: list[str] = []

    def load() -> None:
        threads.append(threading.current_thread().name)
        model = Echo("server-echo")
        model.load()
        server.registered_models.update(model)

    class Stopping(BaseKServeModel):
        def load(self) -> bool:
            server.stop()
            return True

    server.start([Stopping("stopping")], load=load)

    assert len(threads) == 1
    assert threads[0] != "MainThread"


def test_a_failure_to_load_more_models_ends_the_start() -> None:
    def load() -> None:
        raise ModelLoadError("/models: no model")

    with pytest.raises(ModelLoadError, match="/models: no model"):
        ModelServer(config=LOCAL).start([], load=load)


def test_a_model_is_loading_while_it_loads() -> None:
    server = ModelServer(config=LOCAL)
    states: list[ModelStatus | None] = []

    class Looking(Echo):
        def load(self) -> bool:
            states.append(server.registered_models.status("looking"))
            return True

    with serving(Looking("looking"), server):
        states.append(server.registered_models.status("looking"))

    assert states == [ModelStatus(ModelState.LOADING), ModelStatus(ModelState.READY)]


def test_another_distribution_of_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "kserve-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: kserve\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = Echo("server-echo")

    with (
        pytest.raises(StartError, match="kserve and kserve-core are both installed"),
        serving([model]),
    ):
        raise AssertionError("never runs")

    assert model.n_loads == 0


@pytest.mark.parametrize(
    ("event_loop", "module"), [("asyncio", "asyncio"), ("uvloop", "uvloop"), ("auto", "uvloop")]
)
def test_the_loop_is_the_one_that_was_asked_for(event_loop: str, module: str) -> None:
    loops: list[str] = []
    server = ModelServer(config=LOCAL, event_loop=event_loop)

    class Looking(Echo):
        async def load(self) -> bool:  # type: ignore[override]  # users' may be async
            loops.append(type(asyncio.get_running_loop()).__module__)
            server.stop()
            return True

    server.start(Looking("looking"))

    assert [name.partition(".")[0] for name in loops] == [module]


def test_the_default_pool_has_the_size_that_was_asked_for() -> None:
    names: set[str] = set()
    barrier = threading.Barrier(2, timeout=WAIT_S)

    def work() -> None:
        barrier.wait()
        names.add(threading.current_thread().name.rpartition("_")[2])

    class Pooling(Echo):
        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
            return {"predictions": []}

    with serving(Pooling("pooling"), max_asyncio_workers=2) as port:
        response = _predict(port, "pooling")

    assert response.status == 200
    assert names == {"0", "1"}


def test_an_exception_that_nobody_caught_goes_to_the_handler() -> None:
    caught: list[str] = []
    called = threading.Event()
    server = ModelServer(config=LOCAL)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        caught.append(repr(context["exception"]))
        called.set()

    def fail() -> None:
        raise KeyError("lost")

    class Losing(Echo):
        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            asyncio.get_running_loop().call_soon(fail)
            return {"predictions": []}

    server.register_exception_handler(handle)
    with serving(Losing("losing"), server) as port:
        _predict(port, "losing")

        assert called.wait(WAIT_S)
    assert caught == ["KeyError('lost')"]


class Engine(Echo):
    """Runs beside the server until it is cancelled."""

    engine = True

    def __init__(self, name: str, steps: list[str]) -> None:
        super().__init__(name)
        self.steps = steps
        self.started = threading.Event()

    async def start_engine(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.steps.append("engine cancelled")

    def stop(self) -> None:
        self.steps.append("stop")

    def stop_engine(self) -> None:
        self.steps.append("stop_engine")


def test_an_engine_runs_until_the_requests_in_flight_are_done(
    in_background: Callable[..., Future[Response]],
) -> None:
    steps: list[str] = []
    server = ModelServer(config=LOCAL)
    entered, released = threading.Event(), threading.Event()

    class Serving(Engine):
        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            entered.set()
            await asyncio.to_thread(released.wait, WAIT_S)
            steps.append("answered")
            return {"predictions": ["late"]}

    model = Serving("engine", steps)
    with serving(model, server) as port:
        assert model.started.wait(WAIT_S)
        late = in_background(port, "POST", "/v1/models/engine:predict", {})
        assert entered.wait(WAIT_S)
        server.stop()
        _wait_until(lambda: server.dataplane.is_draining)
        released.set()

    assert late.result(WAIT_S).json() == {"predictions": ["late"]}
    assert steps == ["answered", "engine cancelled", "stop", "stop_engine"]


def test_an_engine_that_ends_does_not_end_the_server() -> None:
    class Ending(Engine):
        async def start_engine(self) -> None:
            self.started.set()

    model = Ending("engine", [])
    with serving(model) as port:
        assert model.started.wait(WAIT_S)

        assert _predict(port, "engine").status == 200


def test_an_engine_that_fails_ends_the_server_and_the_other_engines() -> None:
    steps: list[str] = []

    class Broken(Engine):
        async def start_engine(self) -> None:
            raise ValueError("engine broke")

    with pytest.raises(ValueError, match="engine broke"):
        ModelServer(config=LOCAL).start([Broken("broken", steps), Engine("engine", steps)])

    assert sorted(steps) == sorted(["engine cancelled", *["stop", "stop_engine"] * 2])


def test_requests_in_flight_finish_and_readiness_fails_first(
    in_background: Callable[..., Future[Response]],
) -> None:
    server = ModelServer(config=LOCAL)
    model = Blocking("server-blocking")
    with serving(model, server) as port:
        late = in_background(port, "POST", "/v1/models/server-blocking:predict", {})
        assert model.entered.wait(WAIT_S)
        reason = asyncio.run(server.dataplane.not_ready_reason())
        server.stop()
        _wait_until(lambda: server.dataplane.is_draining)
        draining_reason = asyncio.run(server.dataplane.not_ready_reason())
        model.released.set()

    assert (reason, draining_reason) == ("", "The server is shutting down.")
    assert late.result(WAIT_S).json() == {"predictions": ["late"]}


def test_a_predict_that_never_returns_does_not_keep_the_server_up(
    in_background: Callable[..., Future[Response]], caplog: pytest.LogCaptureFixture
) -> None:
    model = Blocking("server-blocking")
    with serving(model, grace_period_s=0) as port:
        late = in_background(port, "POST", "/v1/models/server-blocking:predict", {})
        assert model.entered.wait(WAIT_S)
    ended_before = not model.released.is_set()
    model.released.set()

    assert ended_before
    answer = late.result(WAIT_S)
    assert answer.status == 503
    assert answer.json() == {"error": "Server is not ready. The server is shutting down."}
    logged = [(r.levelname, r.getMessage(), r.exc_info) for r in caplog.records]
    assert [line for line in logged if line[0] != "INFO"] == [
        ("ERROR", "1 request(s) did not finish in the grace period", None),
        ("WARNING", "Request did not finish in the grace period", None),
    ]


def test_models_are_stopped_even_if_one_of_them_fails_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped: list[str] = []

    class Stopping(Echo):
        def stop(self) -> None:
            if self.name == "broken":
                raise KeyError("handle")
            stopped.append(self.name)

    with serving([Stopping("broken"), Stopping("other")]):
        pass

    assert stopped == ["other"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["Model broken failed to stop: 'handle'"]


def test_a_model_whose_stop_hangs_does_not_keep_the_server_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    released = threading.Event()

    class Hanging(Echo):
        def stop(self) -> None:
            released.wait(WAIT_S)

    with serving(Hanging("hanging"), grace_period_s=0):
        pass
    released.set()

    errors = [record.getMessage() for record in caplog.records if record.name == "kserve"]
    assert errors[-1] == "Models did not stop in 1.0 s"


def test_requests_and_models_share_one_grace_period(
    in_background: Callable[..., Future[Response]], caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging(Blocking):
        def stop(self) -> None:
            self.released.wait(WAIT_S)

    model = Hanging("hanging")
    with serving(model, grace_period_s=2) as port:
        late = in_background(port, "POST", "/v1/models/hanging:predict", {})
        assert model.entered.wait(WAIT_S)
    model.released.set()

    assert late.result(WAIT_S).status == 503
    errors = [record.getMessage() for record in caplog.records if record.name == "kserve"]
    assert errors[-1] == "Models did not stop in 1.0 s"


def test_models_that_were_loaded_are_stopped_if_the_port_is_in_use() -> None:
    steps: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
            ModelServer(config=LOCAL, http_port=port).start([Engine("engine", steps)])

    assert steps == ["stop", "stop_engine"]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_a_signal_ends_start_and_the_programs_own_handlers_come_back(
    sig: signal.Signals, event_loop: str
) -> None:
    class Signalling(Echo):
        engine = True

        async def start_engine(self) -> None:
            os.kill(os.getpid(), sig)

    def own(*args: object) -> None:
        raise AssertionError("the server owns the signals while it serves")

    server = ModelServer(config=LOCAL, event_loop=event_loop)
    before = signal.signal(sig, own)
    try:
        server.start(Signalling("signalling"))
        after = signal.getsignal(sig)
    finally:
        signal.signal(sig, before)

    assert server.dataplane.is_draining
    assert after is own


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_a_signal_ends_a_load_that_hangs(is_async: bool) -> None:
    released = threading.Event()

    class Hanging(Echo):
        def load(self) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            released.wait(WAIT_S)

    class AsyncHanging(Echo):
        async def load(self) -> bool:  # type: ignore[override]  # users' may be async
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
            return True

    ModelServer(config=LOCAL).start((AsyncHanging if is_async else Hanging)("hanging"))

    assert not released.is_set()
    released.set()


def test_a_load_that_is_given_up_has_ended_when_the_server_has() -> None:
    steps: list[str] = []
    server = ModelServer(config=LOCAL)

    class Hanging(Echo):
        async def load(self) -> bool:  # type: ignore[override]  # users' may be async
            server.stop()
            try:
                await asyncio.Event().wait()
            finally:
                steps.append("load cancelled")
            return True

    async def run() -> None:
        await server.serve(Hanging("hanging"))
        steps.append("served")

    asyncio.run(run())

    assert steps == ["load cancelled", "served"]


def test_stopping_a_server_that_does_not_serve_does_nothing() -> None:
    server = ModelServer(config=LOCAL)

    server.stop()
    with serving(Echo("server-echo"), server):
        pass
    server.stop()


def test_a_server_may_be_started_again() -> None:
    server = ModelServer(config=LOCAL)

    answers = []
    for _ in range(2):
        with serving(Echo("server-echo"), server) as port:
            answers.append((_ready(port), _predict(port, "server-echo").json()))

    assert answers == [((200, {"ready": True}), {"predictions": [1]})] * 2


def test_two_servers_in_one_process_stop_on_their_own() -> None:
    with serving(Echo("server-echo")) as first:
        with serving(Echo("server-echo")) as second:
            before = _predict(second, "server-echo").status
        after = _predict(first, "server-echo").status

    assert (before, after) == (200, 200)


def test_a_server_that_has_stopped_leaves_no_task_and_no_complaint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> list[str]:
        server = ModelServer(config=LOCAL)
        serve = asyncio.create_task(server.serve([Echo("server-echo")], lambda _: server.stop()))
        await serve
        # One turn for what was cancelled last.
        await asyncio.sleep(0)
        return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    left = asyncio.run(run(), debug=True)
    gc.collect()

    assert left == []
    complaints = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [text for text in complaints if not text.startswith("Executing <")] == []


def test_a_caller_that_fails_when_told_the_address_gets_its_error() -> None:
    def tell(address: str) -> None:
        raise KeyError(address)

    async def run() -> None:
        await ModelServer(config=LOCAL).serve([Echo("server-echo")], tell)

    with pytest.raises(KeyError, match=r"http://127\.0\.0\.1:\d+"):
        asyncio.run(run())


def test_logging_can_be_left_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[object] = []
    module = sys.modules["kserve.model_server"]
    monkeypatch.setattr(
        module, "configure_logging", lambda config, *, log_format: configured.append(log_format)
    )

    ModelServer(config=ServerConfig(configure_logging=False))
    ModelServer(config=ServerConfig(log_format="json"))

    assert configured == ["json"]
