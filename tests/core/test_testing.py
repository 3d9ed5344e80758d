"""What people who write servers test them with."""

import gc
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from kserve import Model, ModelServer, testing
from kserve.config import ServerConfig
from kserve.errors import NoModelReady
from kserve.protocol.codec import v1_json
from kserve.signature import TensorSpec
from kserve.testing import Response, ServerProcess, request, serving, v1_tables

# It starts processes.
pytestmark = pytest.mark.timeout(90)

WAIT_S = 15

SCRIPT = """\
import sys
from kserve import Model, ModelServer

class Echo(Model):
    async def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": payload["instances"], "argv": sys.argv[1:2]}

ModelServer().start([Echo("echo")])
"""


class Echo(Model):
    """Answers with its instances."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


class Failing(Echo):
    """Cannot be loaded."""

    def load(self) -> bool:
        raise ValueError("no weights")


class Plain(Model):
    """Answers on a thread."""

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": [threading.current_thread().name]}


def test_serves_from_threads_that_end_with_it() -> None:
    before = set(threading.enumerate())

    with serving(Plain("testing-plain")) as port:
        response = request(port, "POST", "/v1/models/testing-plain:predict", {})
        during = {thread.name for thread in set(threading.enumerate()) - before}
    # The server and its models are in cycles.
    gc.collect()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(WAIT_S)

    assert (response.status, response.json()) == (200, {"predictions": ["testing-plain-0"]})
    assert {"serving", "testing-plain-0"} <= during
    assert not any(thread.is_alive() for thread in left)


def test_serves_with_a_server_of_the_callers() -> None:
    server = ModelServer(config=ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0))

    with serving({"alias": Echo("testing-echo")}, server) as port:
        response = request(port, "GET", "/v1/models")

    assert response.json() == {"models": ["alias"]}


def test_a_failed_start_is_raised() -> None:
    with pytest.raises(NoModelReady, match="ValueError: no weights"), serving(Failing("failing")):
        raise AssertionError("never runs")


def test_a_server_that_ends_before_it_is_ready_is_an_error() -> None:
    server = ModelServer(config=ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0))

    class Stopping(Echo):
        def load(self) -> bool:
            server.stop()
            return True

    with (
        pytest.raises(RuntimeError, match="the server did not start"),
        serving(Stopping("stopping"), server),
    ):
        raise AssertionError("never runs")


def test_a_failure_of_the_test_is_what_is_raised() -> None:
    with pytest.raises(KeyError, match="mine"), serving(Echo("testing-echo")):
        raise KeyError("mine")


def test_a_failure_while_serving_is_raised_at_the_end() -> None:
    started = threading.Event()

    class Engine(Echo):
        engine = True

        async def start_engine(self) -> None:
            started.set()
            raise ValueError("engine broke")

    with pytest.raises(ValueError, match="engine broke"), serving(Engine("engine")):
        assert started.wait(testing._STOP_TIMEOUT_S)


@pytest.mark.parametrize(
    ("body", "chunk_bytes"),
    [
        pytest.param(b'{"instances":[1]}', None, id="bytes"),
        pytest.param({"instances": [1]}, None, id="a mapping"),
        pytest.param(b'{"instances":[1]}', 2, id="in pieces"),
        pytest.param(b'{"instances":[1]}', 1000, id="in one piece"),
    ],
)
def test_sends_a_body(body: Any, chunk_bytes: int | None) -> None:
    with serving(Echo("testing-echo")) as port:
        path = "/v1/models/testing-echo:predict"
        response = request(port, "POST", path, body, chunk_bytes=chunk_bytes)

    assert response.body == b'{"predictions":[1]}'


def test_a_response_gives_lower_case_headers_and_json() -> None:
    response = Response(200, {"a": "b"}, b'{"c":1}')

    assert response.json() == {"c": 1}


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "serve.py"
    path.write_text(SCRIPT)
    return str(path)


def test_runs_a_script_as_a_process(script: str) -> None:
    with ServerProcess(script, "--mine", "7") as server:
        response = server.request("POST", "/v1/models/echo:predict", {"instances": [1]})
        code = server.stop()

    assert response.json() == {"predictions": [1], "argv": ["--mine"]}
    assert code == 0
    assert "Serving echo: REST on http://127.0.0.1:" in server.stderr


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stops_a_process_with_a_signal(script: str, sig: int) -> None:
    with ServerProcess(script) as server:
        code = server.stop(sig)

    assert code == 0


def test_runs_a_module_as_a_process(script: str, tmp_path: Path) -> None:
    with ServerProcess("serve", env={**os.environ, "PYTHONPATH": _path(tmp_path)}) as server:
        response = server.request("GET", "/v1/models")

    assert response.json() == {"models": ["echo"]}
    assert server.process.returncode == 0


def _path(directory: Path) -> str:
    return ":".join([str(directory), *filter(None, sys.path)])


def test_a_process_that_ends_at_once_is_an_error_that_holds_its_stderr(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise ValueError('why')")

    with (
        pytest.raises(RuntimeError, match=r"(?s)broken\.py .* did not start:.*ValueError: why"),
        ServerProcess(str(script)),
    ):
        raise AssertionError("never runs")


def test_a_process_that_ignores_its_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "_STOP_TIMEOUT_S", 0.5)
    script = tmp_path / "deaf.py"
    script.write_text(
        "import signal, sys, threading\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('REST on http://127.0.0.1:9', file=sys.stderr, flush=True)\n"
        "threading.Event().wait(60)\n"
    )

    with ServerProcess(str(script)) as server:
        code = server.stop()

    assert (server.port, code) == (9, -signal.SIGKILL)


def test_a_start_may_take_as_long_as_the_test_says(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import threading\nthreading.Event().wait(60)\n")

    with (
        pytest.raises(RuntimeError),
        ServerProcess(str(script), start_timeout_s=0.2),
    ):
        raise AssertionError("never runs")


def test_every_form_of_a_table_says_the_same() -> None:
    columns: dict[str, list[Any]] = {"a": [1.5, 2.0], "b": ["x", "y"]}
    specs = (TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "BYTES", (-1,)))
    tables = v1_tables(columns)

    for form, body in tables.items():
        request = v1_json.decode_tensors(orjson.dumps(body), "m", specs, is_table=True)
        given = {each.name: each.as_numpy().ravel().tolist() for each in request.inputs}
        assert given == columns, form
    assert len({orjson.dumps(body) for body in tables.values()}) == len(tables)
