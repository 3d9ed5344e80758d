"""`python -m pythonserver`, run as a process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kserve.testing import ServerProcess

MakeWheel = Callable[..., Path]

WAIT_S = 30

# Every way to a file beside it, when it is imported, loaded and asked.
READER = """\
import pathlib
import kserve
import helpers

AT_IMPORT = pathlib.Path("words.txt").read_text()

class Reader(kserve.Model):
    def load(self):
        self.at_load = pathlib.Path("words.txt").read_text()
        return True

    def predict(self, payload, headers=None):
        with open("words.txt") as file:
            at_predict = file.read()
        import late
        return {"predictions": [AT_IMPORT, self.at_load, at_predict, helpers.NAME, late.NAME]}
"""

# A library has no `open` of ours: the working directory must be right for it.
ALONE = READER.replace(
    'with open("words.txt") as file:\n            at_predict = file.read()',
    'at_predict = pathlib.Path("words.txt").read_text()',
)

COUNTER = """\
import kserve
from helpers import VALUE

class Counter(kserve.Model):
    def predict(self, payload, headers=None):
        import helpers
        return {"predictions": [VALUE, helpers.VALUE]}
"""


def write(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        # At once, as whoever writes while it is watched should.
        temporary = directory / f".{name}"
        temporary.write_text(text)
        temporary.rename(directory / name.replace("_py", ".py").replace("_txt", ".txt"))
    return directory


def write_reader(directory: Path, name: str, code: str = READER) -> None:
    files = {"model_py": code, "words_txt": name}
    write(directory, helpers_py=f"NAME = '{name}'", late_py=f"NAME = '{name}'", **files)


def predict(server: ServerProcess, name: str = "model") -> Any:
    return server.request("POST", f"/v1/models/{name}:predict", {"instances": [0]}).json()


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_fails(*args: str) -> tuple[int, str]:
    flags = ("--host", "127.0.0.1", "--http_port", "0", "--model_dir_wait_s", "0")
    ended = subprocess.run(
        [sys.executable, "-m", "pythonserver", *flags, *args],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stderr


def test_one_model_reaches_what_lies_beside_it(tmp_path: Path) -> None:
    write_reader(tmp_path, "a", ALONE)

    with ServerProcess("pythonserver", "--model_dir", str(tmp_path)) as server:
        answer = predict(server)

    assert answer == {"predictions": ["a"] * 5}


def test_models_do_not_see_one_another(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_reader(tmp_path / name, name)

    with ServerProcess("pythonserver", "--model_dir", str(tmp_path)) as server:
        answers = {name: predict(server, name) for name in ("a", "b", "c", "a")}

    assert answers == {name: {"predictions": [name] * 5} for name in ("a", "b", "c")}


def test_versions_do_not_see_one_another(tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_reader(tmp_path / version, version)

    args = ("--model_dir", str(tmp_path), "--max_versions", "all")
    with ServerProcess("pythonserver", *args) as server:
        answers = [predict(server, f"model/versions/{version}") for version in ("1", "2")]

    assert answers == [{"predictions": [version] * 5} for version in ("1", "2")]


def test_a_relative_model_dir_is_the_same_after_the_process_has_moved_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reader(tmp_path / "m", "a", ALONE)
    monkeypatch.chdir(tmp_path)

    args = ("--model_dir", "m", "--watch", "--watch_interval_s", "0.1")
    with ServerProcess("pythonserver", *args) as server:
        first = predict(server)
        write_reader(tmp_path / "m", "b", ALONE)
        eventually(lambda: predict(server) == {"predictions": ["b"] * 5})

    assert first == {"predictions": ["a"] * 5}


def test_an_edit_of_any_file_is_followed_and_a_bad_one_leaves_the_old_code(tmp_path: Path) -> None:
    write(tmp_path, model_py=COUNTER, helpers_py="VALUE = 1")

    def readiness() -> Any:
        return server.request("GET", "/v2/models/model/ready").json()

    args = ("--model_dir", str(tmp_path), "--watch", "--watch_interval_s", "0.1")
    with ServerProcess("pythonserver", *args) as server:
        answers = [predict(server)]
        write(tmp_path, helpers_py="VALUE = 2")
        eventually(lambda: predict(server) == {"predictions": [2, 2]})
        write(tmp_path, helpers_py="VALUE = 3\nVALUE = 1 / 0\n")
        eventually(lambda: "reason" in readiness())
        broken = readiness()
        answers.append(predict(server))
        write(tmp_path, helpers_py="VALUE = 4")
        eventually(lambda: predict(server) == {"predictions": [4, 4]})
        mended = readiness()
        log = server.stderr

    assert answers == [{"predictions": [1, 1]}, {"predictions": [2, 2]}]
    reason = "helpers.py, line 2: ZeroDivisionError: division by zero"
    assert broken == {"name": "model", "ready": True, "reason": reason}
    assert mended == {"name": "model", "ready": True}
    assert log.count("Traceback (most recent call last):") == 1
    assert log.count(f'File "{tmp_path}/helpers.py", line 2, in <module>') == 1
    assert log.count("loaded in") == 3


def test_a_load_by_itself_is_no_change(tmp_path: Path) -> None:
    write(tmp_path, model_py=COUNTER, helpers_py="VALUE = 1")

    args = ("--model_dir", str(tmp_path), "--watch", "--watch_interval_s", "0.05")
    with ServerProcess("pythonserver", *args) as server:
        predict(server)
        write(tmp_path, helpers_py="VALUE = 2")
        eventually(lambda: predict(server) == {"predictions": [2, 2]})
        log = server.stderr

    assert log.count("loaded in") == 2
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("code", "line", "error"),
    [
        pytest.param("import kserve\nx = {}['key']\n", 2, "KeyError: 'key'", id="import"),
        pytest.param(
            "import kserve\nclass M(kserve.Model):\n    def load(self):\n        return int('a')\n",
            4,
            "ValueError: invalid literal for int() with base 10: 'a'",
            id="load",
        ),
        pytest.param(
            "import kserve\nclass M(kserve.Model):\n    async def load(self):\n"
            "        return int('a')\n",
            4,
            "ValueError: invalid literal for int() with base 10: 'a'",
            id="async load",
        ),
        pytest.param(
            "def load(model_dir):\n    return open('none')\ndef predict(model, x): pass\n",
            2,
            "FileNotFoundError: [Errno 2] No such file or directory: 'none'",
            id="function",
        ),
    ],
)
def test_a_broken_model_gives_its_own_traceback_once(
    tmp_path: Path, code: str, line: int, error: str
) -> None:
    write(tmp_path, model_py=code)

    exit_code, log = start_fails("--model_dir", str(tmp_path))

    lines = log.splitlines()
    frames = [each for each in lines if each.startswith("  File ")]
    assert exit_code == 1
    assert [each.split(",")[:2] for each in frames] == [
        [f'  File "{tmp_path}/model.py"', f" line {line}"]
    ]
    assert log.count("Traceback (most recent call last):") == 1
    assert lines[-1] == f"pythonserver: {tmp_path}/model.py, line {line}: {error}"


def test_a_class_is_chosen_by_a_flag(tmp_path: Path) -> None:
    write(tmp_path, model_py=f"{COUNTER}\nclass Other(Counter): pass\n", helpers_py="VALUE = 1")

    exit_code, log = start_fails("--model_dir", str(tmp_path))
    args = ("--model_dir", str(tmp_path), "--model_class", "Other")
    with ServerProcess("pythonserver", *args) as server:
        answer = predict(server)

    assert exit_code == 1
    assert log.splitlines()[-1].endswith(
        "it defines several models, Counter, Other; choose one with --model_class"
    )
    assert answer == {"predictions": [1, 1]}


def test_what_is_missing_is_installed_before_the_import_if_a_flag_says_so(
    tmp_path: Path, make_wheel: MakeWheel
) -> None:
    make_wheel("wheel_words", code="WORD = 'installed'\n")
    model = write(
        tmp_path / "m",
        model_py="import kserve, wheel_words\nclass M(kserve.Model):\n"
        "    def predict(self, payload, headers=None):\n"
        "        return {'predictions': [wheel_words.WORD]}\n",
        requirements_txt="--no-index\n--find-links ../wheels\nwheel-words>=1\nkserve>=0.11\n",
    )

    exit_code, log = start_fails("--model_dir", str(model))
    args = ("--model_dir", str(model), "--install_requirements")
    with ServerProcess("pythonserver", *args) as server:
        answer = predict(server)
        progress = server.stderr

    assert exit_code == 1
    assert log.splitlines()[-1] == (
        f"pythonserver: {model}/requirements.txt: not there: wheel-words>=1 (not installed). Start "
        "with --install_requirements, or install them where the server runs: pip install -r "
        f"{model}/requirements.txt"
    )
    assert answer == {"predictions": ["installed"]}
    assert f"{model}/requirements.txt: installing wheel-words>=1 with " in progress


def test_it_is_not_ready_while_it_installs(tmp_path: Path, make_wheel: MakeWheel) -> None:
    make_wheel("wheel_slow")
    model = write(
        tmp_path / "m",
        model_py="import wheel_slow\ndef load(model_dir): return 1\n"
        "def predict(model, instances): return instances\n",
        requirements_txt="--no-index\n--find-links ../wheels\nwheel-slow\n",
    )
    # An installer that waits for the test.
    installer = tmp_path / "bin" / "uv"
    installer.parent.mkdir()
    installer.write_text(
        f'#!/bin/sh\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.05; done\nexec "{_uv()}" "$@"\n'
    )
    installer.chmod(0o755)
    args = ("--model_dir", str(model), "--install_requirements", "--listen_early")

    with ServerProcess("pythonserver", *args, env=_env(installer.parent)) as server:
        server.wait_for("installing wheel-slow with uv")
        ready = server.request("GET", "/v2/health/ready")
        one = server.request("GET", "/v2/models/model/ready")
        live = server.request("GET", "/v2/health/live")
        (tmp_path / "go").touch()
        eventually(lambda: server.request("GET", "/v2/health/ready").status == 200)

    assert (ready.status, one.status, live.status) == (503, 503, 200)


def _uv() -> str:
    from pythonserver.installing import find_uv

    found = find_uv()
    if found is None:
        pytest.skip("uv is not installed")
    return found


def _env(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_a_model_that_cannot_be_loaded_holds_up_no_other(tmp_path: Path) -> None:
    write_reader(tmp_path / "good", "good")
    write(tmp_path / "bad", model_py="1 / 0")

    with ServerProcess("pythonserver", "--model_dir", str(tmp_path)) as server:
        answer = predict(server, "good")
        bad = server.request("GET", "/v2/models/bad/ready")

    assert answer == {"predictions": ["good"] * 5}
    assert (bad.status, bad.json()) == (
        503,
        {
            "error": "Model with name bad is not ready. "
            "model.py, line 1: ZeroDivisionError: division by zero"
        },
    )


def test_batching_and_tensor_models_work_as_the_users_class_says(tmp_path: Path) -> None:
    write(
        tmp_path / "batched",
        model_py="import kserve\nclass M(kserve.Model):\n    batching = True\n"
        "    def predict(self, payload):\n"
        "        return {'predictions': [x * 2 for x in payload['instances']]}\n",
    )
    write(
        tmp_path / "tensors",
        model_py="import kserve\nfrom kserve import Signature, TensorSpec\n"
        "class M(kserve.TensorModel):\n"
        "    def load(self):\n"
        "        self.signature = Signature((TensorSpec('x', 'FP64', (-1,)),),"
        " (TensorSpec('y', 'FP64', (-1,)),))\n"
        "        return True\n"
        "    def predict_tensors(self, tensors, options):\n"
        "        return {'y': tensors['x'] * 3}\n",
    )

    with ServerProcess("pythonserver", "--model_dir", str(tmp_path)) as server:
        answers = [
            server.request("POST", f"/v1/models/{name}:predict", {"instances": [1, 2]}).json()
            for name in ("batched", "tensors")
        ]
        metadata = server.request("GET", "/v2/models/tensors").json()

    assert answers == [{"predictions": [2, 4]}, {"predictions": [3.0, 6.0]}]
    assert metadata == {
        "name": "tensors",
        "versions": None,
        "platform": "python",
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1]}],
        "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1]}],
    }
