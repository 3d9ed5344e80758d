"""`python -m kserve DIR`, run as a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kserve.testing import ServerProcess

# It starts processes.
pytestmark = pytest.mark.timeout(90)

MODEL = """\
from kserve.model import TensorModel
from kserve.signature import Signature, TensorSpec

class {name}(TensorModel):
    artifact_suffixes = {suffixes}
    @classmethod
    def add_arguments(cls, parser):
        parser.add_argument("--scale", type=float, default=2.0)
    @classmethod
    def from_args(cls, name, model_dir, args):
        model = cls(name, model_dir)
        model.scale = args.scale
        return model
    def load(self):
        self.signature = Signature((TensorSpec("x", "FP64", (-1,)),), ())
        return True
    def predict_tensors(self, tensors, options):
        return {{"y": tensors["x"] * self.scale}}
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Install two servers, which both know `.tiny`."""
    site = tmp_path / "site"
    _install(site, "tinyserver", "1.2", "Tiny", (".tiny", ".tny"))
    _install(site, "otherserver", "3.4", "Other", (".tiny", "other.cfg"))
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}


def _install(site: Path, name: str, version: str, model: str, suffixes: tuple[str, ...]) -> None:
    package, info = site / name, site / f"{name}-{version}.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "model.py").write_text(MODEL.format(name=model, suffixes=suffixes))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "".join(f"{suffix} = {name}.model:{model}\n" for suffix in suffixes)
    (info / "entry_points.txt").write_text(f"[kserve.servers]\n{lines}")


def _fill(directory: Path, *names: str) -> str:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).touch()
    return str(directory)


def _run(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kserve", *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_starts_the_server_of_the_format_with_its_flags(
    env: dict[str, str], tmp_path: Path
) -> None:
    model = _fill(tmp_path / "m", "a.tny")

    with ServerProcess("kserve", model, "--scale", "3", "--model_name", "m", env=env) as server:
        predicted = server.request("POST", "/v1/models/m:predict", {"instances": [1, 2]})

    assert predicted.json() == {"predictions": [3.0, 6.0]}
    assert f"{model}: a.tny is served by tinyserver 1.2\n" in server.stderr


def test_takes_the_server_that_is_asked_for(env: dict[str, str], tmp_path: Path) -> None:
    model = _fill(tmp_path / "m", "a.tiny")

    args = ("--model_dir", model, "--scale", "3", "--server", "otherserver")
    with ServerProcess("kserve", *args, env=env) as server:
        predicted = server.request("POST", "/v1/models/model:predict", {"instances": [1]})

    assert predicted.json() == {"predictions": [3.0]}
    assert f"{model}: served by otherserver, as --server says\n" in server.stderr


def test_several_servers_that_fit_are_a_question(env: dict[str, str], tmp_path: Path) -> None:
    model = _fill(tmp_path / "m", "a.tiny")

    ended = _run(env, model)

    options = [line for line in ended.stderr.splitlines() if "--server" in line]
    assert ended.returncode == 1
    assert f"kserve: {model}: several servers fit, choose one:\n" in ended.stderr
    assert "  --server otherserver: for a.tiny" in options
    assert "  --server tinyserver: for a.tiny" in options


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param(None, "no such directory; expected one of", id="missing"),
        pytest.param([], "no installed server fits, found nothing; expected one of", id="empty"),
        pytest.param(
            ["a.xyz"], "no installed server fits, found a.xyz; expected one of", id="unknown"
        ),
    ],
)
def test_says_what_each_server_needs_to_see(
    env: dict[str, str], tmp_path: Path, files: list[str] | None, reason: str
) -> None:
    model = tmp_path / "m"
    if files is not None:
        _fill(model, *files)

    ended = _run(env, str(model))

    lines = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert lines[0] == f"kserve: {model}: {reason}"
    assert {"  otherserver: *.tiny, other.cfg", "  tinyserver: *.tiny, *.tny"} <= set(lines)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        pytest.param([], "the first argument is the directory of the model", id="no directory"),
        pytest.param(
            ["m", "--model_dir", "n"],
            "expected one directory, got m and --model_dir n",
            id="two directories",
        ),
        pytest.param(["m", "--server", "x"], "--server: x is not installed, expected", id="server"),
    ],
)
def test_a_wrong_command_line_says_what_was_expected(
    env: dict[str, str], args: list[str], reason: str
) -> None:
    ended = _run(env, *args)

    assert ended.returncode == 2
    assert reason in ended.stderr


def test_a_flag_that_the_server_does_not_know_is_refused_by_it(
    env: dict[str, str], tmp_path: Path
) -> None:
    ended = _run(env, _fill(tmp_path / "m", "a.tny"), "--scal", "3")

    assert ended.returncode == 2
    assert ended.stderr.endswith("unknown argument --scal, did you mean --scale?\n")


def test_help_lists_the_servers_and_with_a_directory_is_that_of_its_server(
    env: dict[str, str], tmp_path: Path
) -> None:
    general = _run(env, "--help")
    particular = _run(env, _fill(tmp_path / "m", "a.tny"), "--help")

    assert (general.returncode, particular.returncode) == (0, 0)
    assert "  tinyserver: *.tiny, *.tny\n" in general.stdout
    assert particular.stdout.startswith("usage: python -m tinyserver ")


def test_nothing_of_a_server_is_imported_to_choose_it(env: dict[str, str], tmp_path: Path) -> None:
    for package in ("tinyserver", "otherserver"):
        (tmp_path / "site" / package / "__init__.py").write_text("raise SystemExit(9)")

    ended = _run(env, _fill(tmp_path / "m", "a.tiny"))

    assert ended.returncode == 1
    assert "several servers fit" in ended.stderr
