"""The server that docs/adding-a-server.md shows is built as it says, and answers as it says."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kserve.testing import ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-server.md"


def test_the_server_of_the_page_answers_as_the_page_says(linserver: ServerProcess) -> None:
    page = PAGE.read_text()
    curl = re.search(r"curl localhost:8080(\S+) -d '(.+)'", page)
    answer = re.search(r"```json\n(.+)\n```", page)
    assert curl is not None and answer is not None

    response = linserver.request("POST", curl[1], curl[2].encode())

    assert (response.status, response.body.decode()) == (200, answer[1])


def test_the_server_of_the_page_describes_its_model(linserver: ServerProcess) -> None:
    response = linserver.request("GET", "/v2/models/linear")

    assert response.json() == {
        "name": "linear",
        "versions": None,
        "platform": "numpy",
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1]}],
    }


@pytest.mark.parametrize(
    ("instances", "error"),
    [
        pytest.param(
            [[1.0, 2.0, 3.0]], "input 'x': expected shape [-1, 2], got [1, 3]", id="shape"
        ),
        pytest.param([[1.0, None]], "input 'x': expected no missing values, got null", id="values"),
    ],
)
def test_the_server_of_the_page_refuses_what_does_not_fit(
    linserver: ServerProcess, instances: list[object], error: str
) -> None:
    response = linserver.request("POST", "/v1/models/linear:predict", {"instances": instances})

    assert (response.status, response.json()) == (400, {"error": error})


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        pytest.param({}, "no model file, expected exactly one of *.npz; found nothing", id="none"),
        pytest.param({"coef": [1.0]}, "no array intercept", id="an array is missing"),
    ],
)
def test_the_server_of_the_page_ends_with_one_line_of_reason(
    tmp_path: Path, arrays: dict[str, list[float]], reason: str
) -> None:
    environment = _write_package(tmp_path / "src")
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    if arrays:
        np.savez(model_dir / "linear.npz", **arrays)  # type: ignore[arg-type]
    arguments = ("--model_dir", str(model_dir), "--model_dir_wait_s", "0")
    server = ServerProcess("linserver", *arguments, env=environment)

    with pytest.raises(RuntimeError, match="did not start"), server:
        pass

    assert server.process.returncode == 1
    assert server.stderr.splitlines()[-1].endswith(reason)


def test_the_main_module_of_the_page_has_six_lines() -> None:
    assert len(_blocks()["__main__.py"].splitlines()) == 6


def test_the_package_of_the_page_shows_its_model(tmp_path: Path) -> None:
    code = "import linserver, linserver.model as m; print(linserver.LinearModel is m.LinearModel)"

    completed = subprocess.run(
        [sys.executable, "-c", code],
        env=_write_package(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "True\n", "")


@pytest.mark.parametrize(
    "package", ["hfserver", "linserver", "lgbserver", "onnxserver", "sklearnserver", "xgbserver"]
)
def test_a_server_loads_no_library_before_its_threads_are_limited(
    tmp_path: Path, package: str
) -> None:
    if package != "linserver":
        pytest.importorskip(package, reason=f"{package} is not installed")
    # What `python -m` imports before it runs anything.
    libraries = {"numpy", "joblib", "onnxruntime", "torch", "transformers"}
    code = f"import sys, {package}.__main__; print({libraries} & set(sys.modules))"

    completed = subprocess.run(
        [sys.executable, "-c", code],
        env=_write_package(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "set()\n", "")


def test_the_project_file_of_the_page_is_like_those_of_the_repository() -> None:
    shown = tomllib.loads(_fenced("toml")[0])
    real = tomllib.loads((PAGE.parents[1] / "packages/sklearnserver/pyproject.toml").read_text())

    assert shown["build-system"] == real["build-system"]
    assert shown["project"]["requires-python"] == real["project"]["requires-python"]
    assert shown["project"]["license"] == real["project"]["license"]


@pytest.fixture(scope="module")
def linserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("linserver")
    environment = _write_package(folder / "src")
    (folder / "model").mkdir()
    np.savez(folder / "model" / "linear.npz", coef=[2.0, 3.0], intercept=1.0)
    arguments = ("--model_dir", str(folder / "model"), "--model_name", "linear")
    with ServerProcess("linserver", *arguments, env=environment) as server:
        yield server


def _write_package(source: Path) -> dict[str, str]:
    """Write the modules of the page; gives the environment in which they can be imported."""
    package = source / "linserver"
    package.mkdir(parents=True)
    for name, text in _blocks().items():
        (package / name).write_text(text)
    path = [str(source), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _blocks() -> dict[str, str]:
    """Give the Python blocks of the page by the name of the file that the page puts them in."""
    names = re.findall(r"^`src/linserver/(\w+\.py)`", PAGE.read_text(), re.M)
    return dict(zip(names, _fenced("python"), strict=True))


def _fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
