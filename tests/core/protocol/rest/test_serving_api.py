"""What TensorFlow Serving answers about a model, byte for byte."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kserve import Model, TensorModel
from kserve.config import ServerConfig
from kserve.directory_repository import DirectoryRepository
from kserve.errors import ModelLoadError
from kserve.model_server import ModelServer
from kserve.testing import request, serving


class Servable(TensorModel):
    """Is known to TensorFlow Serving."""

    artifact_suffixes = (".txt",)

    def load(self) -> bool:
        if self.model_dir is not None and not Path(self.model_dir, "model.txt").read_text():
            raise ModelLoadError("model.txt: it is empty")
        if self.version is None:
            self.versions = ("1",)
        return True

    def serving_metadata(self) -> Mapping[str, Any]:
        return {"signature_def": {"of": self.version}}


class Plain(TensorModel):
    """Is not."""


class Users(Model):
    """Has a name that looks like a route, and no tensors."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    names = ("plain/metadata", "users/versions/1/metadata")
    models = [Servable("s"), Plain("plain"), *map(Users, names)]
    with serving(models) as port:
        yield port


def get(port: int, path: str) -> tuple[int, bytes]:
    answer = request(port, "GET", f"/v1/models/{path}")
    return answer.status, answer.body


AVAILABLE = b'"state":"AVAILABLE","status":{"error_code":"OK","error_message":""}}'


def test_the_state_of_its_only_version_stands_beside_that_of_the_model(port: int) -> None:
    status = b'"model_version_status":[{"version":"1",' + AVAILABLE

    assert get(port, "s") == (200, b'{"name":"s","ready":true,' + status + b"]}")
    assert get(port, "s/versions/1") == (200, b'{"name":"s","ready":true,' + status + b"]}")


def test_the_metadata_names_model_and_version(port: int) -> None:
    spec = b'{"model_spec":{"name":"s","signature_name":"","version":"1"}'
    expected = 200, spec + b',"metadata":{"signature_def":{"of":null}}}'

    assert get(port, "s/metadata") == expected
    assert get(port, "s/versions/1/metadata") == expected


@pytest.mark.parametrize("path", ["plain", "plain/metadata"])
def test_other_models_are_answered_for_as_ever(port: int, path: str) -> None:
    assert get(port, path) == (200, f'{{"name":"{path}","ready":true}}'.encode())


@pytest.mark.parametrize(
    "path", ["none/metadata", "s/versions/2/metadata", "plain/versions/1/metadata"]
)
def test_metadata_of_what_is_not_there_is_not_found(port: int, path: str) -> None:
    status, _ = get(port, path)

    assert status == 404


def test_versions_are_listed_with_the_newest_first_and_with_what_failed(tmp_path: Path) -> None:
    for version, text in (("1", "a"), ("3", "c"), ("10", ""), ("2", "b")):
        (tmp_path / "s" / version).mkdir(parents=True)
        (tmp_path / "s" / version / "model.txt").write_text(text)
    repository = DirectoryRepository(Servable, str(tmp_path), max_versions=3)
    with suppress(ModelLoadError):
        repository.load_model("s")
    config = ServerConfig(host="127.0.0.1", http_port=0, enable_grpc=False)

    with serving([], ModelServer(registered_models=repository, config=config)) as port:
        listed = get(port, "s")
        newest = get(port, "s/versions/10")
        older = get(port, "s/versions/2")
        metadata = get(port, "s/metadata")

    failed = (
        b'"state":"END","status":{"error_code":"UNKNOWN","error_message":"model.txt: it is empty"}}'
    )
    reason = b'"reason":"version 10: model.txt: it is empty"'
    status = b'{"version":"10",' + failed + b',{"version":"3",' + AVAILABLE
    status += b',{"version":"2",' + AVAILABLE
    body = b'{"name":"s","ready":true,' + reason + b',"model_version_status":[' + status + b"]}"
    assert listed == (200, body)
    assert newest[0] == 503
    two = b'"model_version_status":[{"version":"2",' + AVAILABLE + b"]}"
    assert older == (200, b'{"name":"s","ready":true,' + two)
    spec = b'"model_spec":{"name":"s","signature_name":"","version":"3"}'
    assert metadata == (200, b"{" + spec + b',"metadata":{"signature_def":{"of":"3"}}}')
