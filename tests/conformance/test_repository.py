"""Versions and the model repository, asked by Triton's own client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc, http
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


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, tmp_path: Path, models: Path) -> Iterator[Any]:
    (tmp_path / "server.py").write_text(SERVER)
    arguments = ("--model_dir", str(models), "--max_versions", "all")
    with ServerProcess(str(tmp_path / "server.py"), *arguments) as server:
        if request.param == "http":
            triton: Any = http.InferenceServerClient(f"127.0.0.1:{server.port}")
        else:
            triton = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        yield triton
        triton.close()


def answered(client: Any, version: str) -> tuple[str, list[float]]:
    """Give the version and the numbers of an answer."""
    wire = grpc if isinstance(client, grpc.InferenceServerClient) else http
    tensor = wire.InferInput("x", [1], "FP64")
    tensor.set_data_from_numpy(np.zeros(1))
    result = client.infer("a", [tensor], model_version=version)
    response = result.get_response()
    named = response["model_version"] if wire is http else response.model_version
    return named, result.as_numpy("y").tolist()


def index(client: Any) -> list[tuple[str, str, str]]:
    """Give the name, version and state of each entry."""
    entries = client.get_model_repository_index()
    if isinstance(client, grpc.InferenceServerClient):
        return [(entry.name, entry.version, entry.state) for entry in entries.models]
    return [(entry["name"], entry["version"], entry["state"]) for entry in entries]


def test_asks_for_a_version(client: Any) -> None:
    answers = [answered(client, version) for version in ("1", "2", "")]
    ready = client.is_model_ready("a", "1")

    assert answers == [("1", [1.0]), ("2", [2.0]), ("2", [2.0])]
    assert ready


def test_a_version_that_is_not_there_is_told(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        answered(client, "3")

    assert caught.value.message() == "Model with name a has no version 3: it has 1, 2."


def test_metadata_names_the_versions(client: Any) -> None:
    metadata = client.get_model_metadata("a", "1")

    versions = metadata["versions"] if isinstance(metadata, dict) else metadata.versions
    assert list(versions) == ["1", "2"]


def test_lists_loads_and_unloads(client: Any, models: Path) -> None:
    write(models / "b", 7)
    client.load_model("b")
    loaded = index(client)
    client.unload_model("a")
    left = index(client)

    assert loaded == [("a", "1", "READY"), ("a", "2", "READY"), ("b", "", "READY")]
    assert left == [("b", "", "READY"), ("a", "", "UNAVAILABLE")]


def test_reads_why_a_model_was_not_loaded(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("none")

    assert caught.value.status() in ("503", "StatusCode.UNAVAILABLE")
    assert caught.value.message() == "Model with name none is not ready. none: no such directory"
