"""The repository as KServe's SDK offers it to Python code."""

from typing import Any

import pytest

from kserve.errors import ModelNotFound, ModelNotReady
from kserve.model import Model
from kserve.model_repository import ModelRepository, ModelState
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Echo(Model):
    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        return payload


class Repository(ModelRepository):
    def load(self, name: str) -> bool:
        if name == "bad":
            raise OSError("no such file")
        model = Echo(name)
        model.ready = True
        self.update(model)
        return True


async def test_lists_loads_and_unloads() -> None:
    repository = Repository()
    repository.set_status("failed", ModelState.UNAVAILABLE, "/mnt/failed: no model file")
    extension = ModelRepositoryExtension(model_registry=repository)

    await extension.load("m")
    listed = await extension.index()
    ready = await extension.index(filter_ready=True)
    await extension.unload("m")

    assert listed == [
        {"name": "failed", "state": "NotReady", "reason": "failed: no model file"},
        {"name": "m", "state": "Ready", "reason": ""},
    ]
    assert ready == listed[1:]
    assert repository.names() == ["failed"]


async def test_says_what_is_not_there() -> None:
    extension = ModelRepositoryExtension(Repository())

    with pytest.raises(ModelNotReady) as caught:
        await extension.load("bad")
    with pytest.raises(ModelNotFound):
        await extension.unload("bad")

    assert str(caught.value) == (
        "Model with name bad is not ready. Its load raised OSError; the log says more."
    )


async def test_shares_the_control_of_a_server() -> None:
    dataplane = DataPlane(Repository())
    extension = ModelRepositoryExtension(dataplane.model_registry, dataplane.control)
    await extension.load("m")
    endpoint = await dataplane.find("m")

    await extension.unload("m", timeout_s=0.01)
    in_use = endpoint.model.ready
    del endpoint
    await dataplane.control.close()

    assert in_use
