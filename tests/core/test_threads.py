"""Threads of OpenMP and BLAS are limited before these are loaded, by our own command line alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kserve import threads
from kserve.testing import ServerProcess

# It starts processes.
pytestmark = pytest.mark.timeout(90)

NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# A server whose model tells how many threads the BLAS of numpy uses where it predicts, which no
# variable can change any more once numpy is loaded.
SERVER = """\
import ctypes, os
from pathlib import Path
import numpy as np
from kserve.model import TensorModel
from kserve.signature import Signature, TensorSpec

class Blas(TensorModel):
    artifact_suffixes = (".blas",)

    def load(self):
        self.signature = Signature((TensorSpec("x", "FP64", (-1,)),))
        return True

    def predict_tensors(self, tensors, options):
        numbers = [blas_threads(), int(os.environ["OMP_NUM_THREADS"])]
        return {"threads": np.array(numbers)}

def blas_threads():
    maps = Path("/proc/self/maps").read_text()
    path, = {line.split()[-1] for line in maps.splitlines() if "openblas" in line}
    library = ctypes.CDLL(path)
    for name in ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_"):
        if hasattr(library, name):
            return getattr(library, name)()
"""

# Plays a container that may use one CPU, whatever this machine has.
MAIN = """\
from kserve import cpu

cpu._affinity = lambda: {n_cpus}

from kserve.main import run

run("blasserver.model:Blas")
"""


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cpu_count", lambda: 2)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({}, ["2", "2", "2"], id="nothing is set"),
        pytest.param({"OMP_NUM_THREADS": "5"}, ["5", "5", "5"], id="the user's goes for all"),
        pytest.param({"OMP_NUM_THREADS": "4,3"}, ["4,3", "4", "4"], id="a number for each level"),
        pytest.param({"OMP_NUM_THREADS": ""}, ["2", "2", "2"], id="an empty one is none"),
        pytest.param({"OPENBLAS_NUM_THREADS": "1"}, ["2", "1", "2"], id="that of OpenBLAS"),
        pytest.param(
            {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "1"}, ["4", "4", "1"], id="that of MKL"
        ),
    ],
)
def test_sets_what_the_user_has_not_set(
    two_cpus: None, env: dict[str, str], expected: list[str]
) -> None:
    threads.limit_threads(env)

    assert env == dict(zip(NAMES, expected, strict=True))


def test_changes_the_environment_of_the_process(
    two_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")

    threads.limit_threads()

    assert [os.environ[name] for name in NAMES] == ["2", "2", "2"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, [1, 1], id="one CPU"),
        pytest.param({"OPENBLAS_NUM_THREADS": "2"}, [2, 1], id="the user's"),
    ],
)
def test_a_server_loads_numpy_with_as_many_threads_as_it_has_cpus(
    tmp_path: Path, given: dict[str, str], expected: list[int]
) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("OpenBLAS uses one thread on one CPU anyway")
    package = tmp_path / "blasserver"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.py").write_text(SERVER)
    (package / "__main__.py").write_text(MAIN.format(n_cpus=1))
    (tmp_path / "m.blas").touch()
    env = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])

    with ServerProcess("blasserver", "--model_dir", str(tmp_path), env=env) as server:
        response = server.request("POST", "/v1/models/model:predict", {"instances": [1]})

    assert response.json() == {"predictions": expected}


def test_importing_the_package_changes_no_environment() -> None:
    code = (
        "import os; before = dict(os.environ)\n"
        "import kserve, kserve.main, kserve.model_server, kserve.testing\n"
        "print(dict(os.environ) == before)"
    )

    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )

    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "True\n", "")
