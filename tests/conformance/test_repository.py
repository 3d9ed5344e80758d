"""Versions and the model repository, asked by Triton's own client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from kserve.testing import ServerProcess

SERVER = """\
from pathlib import Path
import numpy as np
from kserve.main import run
from kserve.model import TensorModel
from kserve.signature import Signature, TensorSpec

class Constant(TensorModel):
    artifact_suffixes = (".num",)

    def load(self):
        self.number = float((Path(self.model_dir) / "m.num").read_text())
        self.signature = Signature((TensorSpec("x", "FP64", (-1,)),))
        return True

    def predict_tensors(self, tensors, options):
        return {"y": np.full(len(tensors["x"]), self.number)}

if __name__ == "__main__":
    run(Constant)
"""


def write(directory: Path, number: float) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "m.num").write_text(str(number))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version in (1, 2):
        write(tmp_path / "models" / "a" / str(version), version)
    return tmp_path / "models"


@pytest.fixture
def client(tmp_path: Path, models: Path) -> Iterator[Any]:
    (tmp_path / "server.py").write_text(SERVER)
    arguments = ("--model_dir", str(models), "--max_versions", "all")
    with ServerProcess(str(tmp_path / "server.py"), *arguments) as server:
        triton = InferenceServerClient(f"127.0.0.1:{server.port}")
        yield triton
        triton.close()


@pytest.mark.parametrize("is_binary", [False, True], ids=["JSON", "binary"])
def test_asks_for_a_version(client: Any, is_binary: bool) -> None:
    tensor = InferInput("x", [1], "FP64")
    tensor.set_data_from_numpy(np.zeros(1), binary_data=is_binary)

    results = [client.infer("a", [tensor], model_version=version) for version in ("1", "2", "")]
    metadata = client.get_model_metadata("a", "1")
    ready = [client.is_model_ready("a", version) for version in ("1", "3")]

    assert [
        (result.get_response()["model_version"], result.as_numpy("y").tolist())
        for result in results
    ] == [("1", [1.0]), ("2", [2.0]), ("2", [2.0])]
    assert (metadata["versions"], ready) == (["1", "2"], [True, False])


def test_lists_loads_and_unloads(client: Any, models: Path) -> None:
    write(models / "b", 7)
    client.load_model("b")
    loaded = client.get_model_repository_index()
    client.unload_model("a")
    left = client.get_model_repository_index()

    assert [(entry["name"], entry["version"], entry["state"]) for entry in loaded] == [
        ("a", "1", "READY"),
        ("a", "2", "READY"),
        ("b", "", "READY"),
    ]
    assert [(entry["name"], entry["version"], entry["state"]) for entry in left] == [
        ("b", "", "READY"),
        ("a", "", "UNAVAILABLE"),
    ]


def test_reads_why_a_model_was_not_loaded(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("none")

    assert (caught.value.status(), caught.value.message()) == (
        "503",
        "Model with name none is not ready. none: no such directory",
    )
