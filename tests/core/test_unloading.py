"""What is left of a model's memory once it is unloaded."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from kserve.testing import ServerProcess

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MB = 1 << 20
WAIT_S = 40

# Half an array, half small pieces, which the allocator would keep; and a circle, which only the
# collector finds.
SERVER = """\
import gc
import numpy as np
from kserve.main import run
from kserve.model import TensorModel
from kserve.signature import Signature, TensorSpec

class Heavy(TensorModel):
    artifact_suffixes = (".heavy",)

    def load(self):
        self.array = np.ones((50 << 20) // 8)
        self.pieces = [bytes([i % 256]) * 4000 for i in range((50 << 20) // 4000)]
        self.circle = self
        self.signature = Signature((TensorSpec("x", "FP64", (-1,)),))
        return True

    def predict_tensors(self, tensors, options):
        if tensors["x"][0] == 7:
            # Whether the collector looks at this model.
            return {"y": np.array([float(any(found is self for found in gc.get_objects()))])}
        return {"y": tensors["x"] + self.array[0]}

if __name__ == "__main__":
    run(Heavy)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "server.py").write_text(SERVER)
    for name in ("heavy", "light"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "models" / "heavy" / "m.heavy").touch()
    (tmp_path / "models" / "light" / "m.heavy").touch()
    with ServerProcess(
        str(tmp_path / "server.py"), "--model_dir", str(tmp_path / "models")
    ) as running:
        yield running


@pytest.fixture
def server_of_one(tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "models" / "heavy").mkdir(parents=True)
    (tmp_path / "models" / "heavy" / "m.heavy").touch()
    with ServerProcess(
        str(tmp_path / "server.py"), "--model_dir", str(tmp_path / "models")
    ) as running:
        yield running


def resident(server: ServerProcess) -> int:
    """Give the resident size of the process in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def is_looked_at(server: ServerProcess, name: str) -> bool:
    response = server.request("POST", f"/v1/models/{name}:predict", {"instances": [7]})
    return bool(response.json() == {"predictions": [1.0]})


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = monotonic() + WAIT_S
    while not condition():
        assert monotonic() < give_up_at, "it did not come to that"
        sleep(0.01)


def post(server: ServerProcess, path: str) -> int:
    return server.request("POST", path, {"instances": [1]}).status


def test_loading_and_unloading_again_and_again_does_not_grow(server: ServerProcess) -> None:
    loaded, sizes = 0, []

    for _ in range(20):
        assert post(server, "/v1/models/heavy:predict") == 200
        loaded = resident(server)
        assert server.request("POST", "/v2/repository/models/heavy/unload").status == 200
        sizes.append(resident(server))
        assert server.request("POST", "/v2/repository/models/heavy/load").status == 200

    assert loaded - sizes[-1] > 90 * MB
    assert max(sizes) - min(sizes) < 20 * MB


def test_replacing_again_and_again_does_not_grow(server: ServerProcess) -> None:
    before = resident(server)

    for _ in range(20):
        assert server.request("POST", "/v2/repository/models/heavy/load").status == 200
        assert post(server, "/v1/models/heavy:predict") == 200
    server.request("POST", "/v2/repository/models/heavy/unload")

    # The one that was replaced last may still be on its way out.
    wait_until(lambda: resident(server) < before)


def test_the_only_model_of_the_start_is_freed(server_of_one: ServerProcess) -> None:
    before = resident(server_of_one)

    response = server_of_one.request("POST", "/v2/repository/models/heavy/unload")

    assert response.status == 200
    assert before - resident(server_of_one) > 90 * MB


def test_the_collector_looks_at_no_model_that_is_loaded(server: ServerProcess) -> None:
    # A server answers a moment before it is done with its start.
    wait_until(lambda: not is_looked_at(server, "heavy"))
    server.request("POST", "/v2/repository/models/heavy/unload")
    other = is_looked_at(server, "light")
    server.request("POST", "/v2/repository/models/heavy/load")
    later = is_looked_at(server, "heavy")

    assert (other, later) == (False, False)


def test_the_collector_looks_at_no_model_that_took_the_place_of_another(
    server: ServerProcess,
) -> None:
    server.request("POST", "/v2/repository/models/heavy/load")

    # The old one is freed, and what is there then kept out, after its last request.
    wait_until(lambda: not is_looked_at(server, "heavy"))
