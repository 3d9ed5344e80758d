"""The command line of a framework server, run as a process."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from kserve import main
from kserve.model import TensorModel
from kserve.testing import ServerProcess

# It starts processes.
pytestmark = pytest.mark.timeout(90)

WAIT_S = 15

SERVER = """\
import sys, threading, time
from pathlib import Path
from kserve.artifact import find_artifact
from kserve.errors import ModelLoadError
from kserve.main import run
from kserve.model import TensorModel
from kserve.signature import Signature, TensorSpec

class TinyModel(TensorModel):
    artifact_suffixes = (".tiny",)

    @classmethod
    def add_arguments(cls, parser):
        parser.add_argument("--scale", type=float, default=2.0)

    @classmethod
    def from_args(cls, name, model_dir, args):
        model = cls(name, model_dir)
        model.scale = args.scale
        return model

    def load(self):
        path = find_artifact(self.model_dir, self.artifact_suffixes)
        content = path.read_text()
        if content == "broken":
            raise ModelLoadError(f"{path}: broken, make it anew")
        if content == "bug":
            raise ValueError("two\\nlines")
        if content == "hang":
            print("hangs", file=sys.stderr, flush=True)
            threading.Event().wait()
        self.signature = Signature((TensorSpec("x", "FP64", (-1,)),), ())
        return True

    def predict_tensors(self, tensors, options):
        x = tensors["x"]
        if x[0] == -1:
            print("hangs", file=sys.stderr, flush=True)
            threading.Event().wait()
        if x[0] == -2:
            print("entered", file=sys.stderr, flush=True)
            while not Path(self.model_dir, "release").exists():
                time.sleep(0.01)
        return {"y": x * self.scale}
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Put a package `tinyserver` on the path of the processes."""
    package = tmp_path / "packages" / "tinyserver"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text(SERVER)
    (package / "__main__.py").write_text(
        "from kserve.main import run\nfrom tinyserver.model import TinyModel\nrun(TinyModel)\n"
    )
    path = os.pathsep.join([str(package.parent), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}


@pytest.fixture
def model_dir(tmp_path: Path) -> str:
    return str(_write(tmp_path / "model", "good"))


def _write(directory: Path, content: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.tiny").write_text(content)
    return directory


def _run(env: dict[str, str], *args: str) -> tuple[int, list[str]]:
    """Give the exit code and the lines on stderr of a server that does not start."""
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "tinyserver", "--host", "127.0.0.1", "--http_port", "0"),
            *("--model_dir_wait_s", "0", *args),
        ],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
    )
    return completed.returncode, completed.stderr.splitlines()


def _wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_serves_a_directory_under_a_name(env: dict[str, str], model_dir: str) -> None:
    args = ("--model_dir", model_dir, "--model_name", "tiny", "--scale", "3")
    with ServerProcess("tinyserver", *args, env=env) as server:
        predicted = server.request("POST", "/v1/models/tiny:predict", {"instances": [1, 2]})
        code = server.stop()

    assert predicted.json() == {"predictions": [3.0, 6.0]}
    assert code == 0


def test_serves_a_file_address(env: dict[str, str], model_dir: str) -> None:
    with ServerProcess("tinyserver", "--model_dir", f"file://{model_dir}", env=env) as server:
        models = server.request("GET", "/v1/models").json()

    assert models == {"models": ["model"]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(
            ["--model_nmae", "x"],
            "unknown argument --model_nmae, did you mean --model_name?",
            id="a typo",
        ),
        pytest.param(
            ["--scal=3"], "unknown argument --scal, did you mean --scale?", id="an abbreviation"
        ),
        pytest.param(["--zzzzzzzzzz"], "unknown argument --zzzzzzzzzz", id="nothing near"),
        pytest.param(["stray"], "unknown argument stray", id="a stray word"),
        pytest.param(
            ["--predictor_host", "iris"],
            "--predictor_host: tinyserver predicts itself and takes no predictor; "
            "the flag is for transformers and explainers",
            id="predictor_host",
        ),
        pytest.param(
            ["--predictor_use_ssl=true"],
            "--predictor_use_ssl: tinyserver predicts itself and takes no predictor; "
            "the flag is for transformers and explainers",
            id="predictor_use_ssl",
        ),
        pytest.param(
            ["--enable_predictor_health_check"],
            "--enable_predictor_health_check: tinyserver predicts itself and takes no predictor; "
            "the flag is for transformers and explainers",
            id="enable_predictor_health_check",
        ),
    ],
)
def test_a_wrong_command_line_ends_with_code_2_and_the_reason(
    args: list[str], message: str, env: dict[str, str], model_dir: str
) -> None:
    code, lines = _run(env, "--model_dir", model_dir, *args)

    assert (code, lines[-1]) == (2, f"python -m tinyserver: error: {message}")


def test_the_directory_has_to_be_given(env: dict[str, str]) -> None:
    code, lines = _run(env)

    assert (code, lines[-1]) == (
        2,
        "python -m tinyserver: error: the following arguments are required: --model_dir",
    )


FETCHING = """\
from pathlib import Path
from kserve.main import run
from tinyserver.model import TinyModel

class FetchingModel(TinyModel):
    default_model_dir = {default!r}

    @classmethod
    def add_arguments(cls, parser):
        super().add_arguments(parser)
        parser.add_argument("--fetched")

    @classmethod
    def fetch(cls, args):
        if args.fetched is None:
            return None
        directory = Path(args.fetched)
        directory.mkdir()
        (directory / "model.tiny").write_text("good")
        return str(directory)

run(FetchingModel)
"""


@pytest.mark.parametrize("is_fetched", [True, False])
def test_a_server_may_fetch_its_directory_or_know_one(
    is_fetched: bool, env: dict[str, str], model_dir: str, tmp_path: Path
) -> None:
    script = tmp_path / "fetching.py"
    fetched = tmp_path / "fetched"
    script.write_text(FETCHING.format(default="/nowhere" if is_fetched else model_dir))
    flags = ("--fetched", str(fetched)) if is_fetched else ()

    with ServerProcess(str(script), *flags, env=env) as server:
        models = server.request("GET", "/v1/models").json()

    assert models == {"models": ["model"]}
    assert fetched.exists() is is_fetched


def test_the_flags_of_manifests_of_the_original_are_accepted(
    env: dict[str, str], model_dir: str
) -> None:
    args = [
        *("--model_dir", model_dir, "--grpc_port", "0", "--enable_grpc", "true"),
        *("--max_threads", "4", "--grpc_max_send_message_length", "1", "--protocol", "v2"),
        *("--enable_docs_url", "false", "--access_log_format", "%h"),
    ]
    with ServerProcess("tinyserver", *args, env=env) as server:
        code = server.stop()

    assert code == 0


@pytest.mark.parametrize("workers", ["0", "4"])
def test_other_numbers_of_workers_warn_and_serve(
    workers: str, env: dict[str, str], model_dir: str
) -> None:
    args = ("--model_dir", model_dir, "--workers", workers)
    with ServerProcess("tinyserver", *args, env=env) as server:
        ready = server.request("GET", "/v2/health/ready").json()

    assert ready == {"ready": True}
    assert f"workers={workers}: one process serves" in server.stderr


EXPECTED = "expected exactly one of *.tiny"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param(None, "{dir}: no such directory", id="no directory"),
        pytest.param({}, f"{{dir}}: no model file, {EXPECTED}; found nothing", id="empty"),
        pytest.param(
            {"a.txt": ""}, f"{{dir}}: no model file, {EXPECTED}; found a.txt", id="no artifact"
        ),
        pytest.param(
            {"a.tiny": "", "b.tiny": ""},
            f"{{dir}}: More than one model file is detected, {EXPECTED}; found a.tiny, b.tiny",
            id="several artifacts",
        ),
        pytest.param(
            {"a.tiny": "broken"}, "{dir}/a.tiny: broken, make it anew", id="a broken artifact"
        ),
        pytest.param({"a.tiny": "bug"}, "ValueError: two lines", id="a bug in load"),
        pytest.param(
            {"a.tiny": "good", "warmup.json": "{"},
            "{dir}/warmup.json: the warm-up request failed: Unrecognized request format: "
            "unexpected end of data: line 1 column 2 (char 1)",
            id="a broken warm-up request",
        ),
    ],
)
def test_a_failed_start_ends_with_code_1_and_the_reason_last(
    files: dict[str, str] | None, reason: str, env: dict[str, str], tmp_path: Path
) -> None:
    directory = tmp_path / "models"
    if files is not None:
        directory.mkdir()
    for name, content in (files or {}).items():
        (directory / name).write_text(content)

    code, lines = _run(env, "--model_dir", str(directory))

    assert (code, lines[-1]) == (1, f"tinyserver: {reason.format(dir=directory)}")


def test_a_remote_address_is_refused(env: dict[str, str]) -> None:
    code, lines = _run(env, "--model_dir", "s3://bucket/model")

    assert (code, lines[-1]) == (
        1,
        "tinyserver: model directory s3://bucket/model: expected a local directory, got s3://",
    )


def test_a_port_in_use_is_the_reason(env: dict[str, str], model_dir: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        code, lines = _run(
            env, "--model_dir", model_dir, "--http_port", str(port), "--grpc_port", "0"
        )

    assert (code, lines[-1]) == (
        1,
        f"tinyserver: cannot listen on 127.0.0.1:{port}: Address already in use",
    )


def test_a_logging_configuration_that_is_not_there_is_the_reason(
    env: dict[str, str], model_dir: str
) -> None:
    args = ("--model_dir", model_dir, "--log_config_file", "/nope.json")

    code, lines = _run(env, *args)

    assert (code, lines[-1]) == (
        1,
        "tinyserver: FileNotFoundError: [Errno 2] No such file or directory: '/nope.json'",
    )


def test_the_distribution_of_the_original_beside_ours_is_refused(
    env: dict[str, str], model_dir: str, tmp_path: Path
) -> None:
    metadata = tmp_path / "packages" / "kserve-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: kserve\nVersion: 0.1\n")

    code, lines = _run(env, "--model_dir", model_dir)

    assert code == 1
    assert lines[-1] == (
        "tinyserver: the distributions kserve and kserve-core are both installed and hold the "
        "same package: uninstall both, then install kserve-core"
    )


def test_a_directory_of_models_serves_those_that_load(env: dict[str, str], tmp_path: Path) -> None:
    models = tmp_path / "models"
    _write(models / "good", "good")
    _write(models / "broken", "broken")
    (models / ".hidden").mkdir()

    with ServerProcess("tinyserver", "--model_dir", str(models), "--scale", "3", env=env) as server:
        listed = server.request("GET", "/v2/models").json()
        good = server.request("POST", "/v1/models/good:predict", {"instances": [1]})
        bad = server.request("POST", "/v1/models/broken:predict", {"instances": [1]})
        ready = server.request("GET", "/v2/health/ready")
        code = server.stop()

    assert sorted(listed["models"]) == ["broken", "good"]
    assert (good.status, good.json()) == (200, {"predictions": [3.0]})
    assert (bad.status, bad.json()) == (
        503,
        {"error": "Model with name broken is not ready. model.tiny: broken, make it anew"},
    )
    assert (ready.status, code) == (200, 0)


@pytest.mark.parametrize("name", ["", "one"], ids=["single model", "directory of models"])
def test_a_signal_ends_a_load_that_hangs(name: str, env: dict[str, str], tmp_path: Path) -> None:
    models = tmp_path / "models"
    _write(models / name, "hang")
    process = subprocess.Popen(
        [sys.executable, "-m", "tinyserver", "--model_dir", str(models), "--http_port", "0"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        while "hangs" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        code = process.wait(WAIT_S)

    assert (code, rest) == (0, "")


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_finishes_after_a_signal(
    sig: signal.Signals, env: dict[str, str], model_dir: str
) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        ServerProcess("tinyserver", "--model_dir", model_dir, env=env) as server,
    ):
        late = pool.submit(server.request, "POST", "/v1/models/model:predict", {"instances": [-2]})
        _wait_until(lambda: "entered" in server.stderr)
        server.process.send_signal(sig)
        _wait_until(lambda: _is_refused(server.port))
        Path(model_dir, "release").touch()
        answer = late.result(WAIT_S)
        code = server.process.wait(WAIT_S)

    assert (answer.status, answer.json()) == (200, {"predictions": [-4.0]})
    assert answer.headers["connection"] == "close"
    assert code == 0


def _is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_predict_that_hangs_does_not_keep_the_process(
    env: dict[str, str], model_dir: str
) -> None:
    args = ("--model_dir", model_dir, "--grace_period", "1")
    with (
        ThreadPoolExecutor(1) as pool,
        ServerProcess("tinyserver", *args, env=env) as server,
    ):
        late = pool.submit(server.request, "POST", "/v1/models/model:predict", {"instances": [-1]})
        _wait_until(lambda: "hangs" in server.stderr)
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(WAIT_S)
        late.exception(WAIT_S)

    assert code == 0


def test_json_lines_hold_everything_that_is_logged(env: dict[str, str], model_dir: str) -> None:
    args = ("--model_dir", model_dir, "--log_format", "json", "--workers", "2")
    with ServerProcess("tinyserver", *args, env=env) as server:
        headers = {"x-request-id": "id-1"}
        server.request("POST", "/v1/models/model:predict", {"instances": ["a"]}, headers)
        server.stop()

    entries = [orjson.loads(line) for line in server.stderr.splitlines()]
    assert [re.sub(r"[\d.]+ s$", "0 s", entry["message"]) for entry in entries] == [
        "workers=2: one process serves",
        "Model model loaded in 0 s",
        f"Serving model: REST on http://127.0.0.1:{server.port}, "
        f"gRPC on 127.0.0.1:{server.grpc_port}",
        "request",
    ]
    assert (entries[-1]["request_id"], entries[-1]["status"]) == ("id-1", 400)


def test_the_level_of_the_lines_comes_from_the_environment(
    env: dict[str, str], tmp_path: Path
) -> None:
    _write(tmp_path / "models", "bug")

    code, lines = _run(
        {**env, "KSERVE_LOGLEVEL": "CRITICAL"}, "--model_dir", str(tmp_path / "models")
    )

    assert (code, lines) == (1, ["tinyserver: ValueError: two lines"])


def test_a_model_served_by_a_script_of_the_users(env: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        """\
import argparse
import kserve

class Echo(kserve.Model):
    def predict(self, payload):
        return {"predictions": payload["instances"], "scale": args.scale}

parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
parser.add_argument("--scale", type=float)
args, _ = parser.parse_known_args()
model = Echo(args.model_name)
kserve.ModelServer().start([model])
"""
    )
    args = ("--model_name", "echo", "--scale", "3", "--predictor_host", "iris", "--workers", "0")
    with ServerProcess(str(script), *args, env=env) as server:
        response = server.request("POST", "/v1/models/echo:predict", {"instances": [1]})

    assert response.json() == {"predictions": [1], "scale": 3.0}


class Unserved(TensorModel):
    """Finds no artifact."""

    artifact_suffixes = (".tiny",)


class Exited(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the exit code instead of ending this process."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Exited

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr(main, "configure_logging", lambda *args, **kwargs: None)
    return codes


def _serve_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exited):
        main.run(Unserved, ["--model_dir", str(tmp_path), "--model_dir_wait_s", "0"])


def test_the_reason_goes_to_the_termination_log_where_there_is_one(
    ended: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(main, "_TERMINATION_LOG", log)

    _serve_nothing(tmp_path)

    line = f"{tmp_path}: no model file, {EXPECTED}; found termination-log"
    assert re.fullmatch(rf"\w+: {re.escape(line)}\n", log.read_text())
    assert (ended, capsys.readouterr().err) == ([1], log.read_text())


def test_a_termination_log_that_cannot_be_written_hides_no_reason(
    ended: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(main, "_TERMINATION_LOG", tmp_path)

    _serve_nothing(tmp_path)

    assert ended == [1]
    assert capsys.readouterr().err.endswith(
        f"{tmp_path}: no model file, {EXPECTED}; found nothing\n"
    )


class Buggy(Unserved):
    """Cannot even be made."""

    def __init__(self, name: str, model_dir: str | None = None) -> None:
        raise KeyError("typo")


def test_a_bug_is_told_as_a_reason_with_its_traceback_before(
    ended: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(main, "_TERMINATION_LOG", tmp_path / "nowhere")
    (tmp_path / "model.tiny").touch()

    with pytest.raises(Exited):
        main.run(Buggy, ["--model_dir", str(tmp_path), "--configure_logging", "false"])

    assert ended == [1]
    assert capsys.readouterr().err.endswith(": KeyError: 'typo'\n")
    assert [(r.getMessage(), r.exc_info is not None) for r in caplog.records] == [
        ("Model model cannot be loaded: KeyError: 'typo'", True)
    ]


def test_no_termination_log_is_made_where_there_is_none(
    ended: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "nowhere" / "termination-log"
    monkeypatch.setattr(main, "_TERMINATION_LOG", log)

    _serve_nothing(tmp_path)

    assert (ended, log.parent.exists()) == ([1], False)


def test_the_process_ends_while_a_thread_of_a_load_hangs() -> None:
    code = (
        "import threading\n"
        "from kserve.main import exit_with\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "print('flushed')\n"
        "exit_with('tiny', 'why')\n"
    )

    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    completed = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=WAIT_S
    )

    assert (completed.returncode, completed.stdout, completed.stderr) == (
        1,
        "flushed\n",
        "tiny: why\n",
    )
