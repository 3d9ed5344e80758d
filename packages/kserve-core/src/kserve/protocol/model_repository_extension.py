"""The repository of a server as KServe's SDK offers it to Python code."""

from kserve.endpoints import Endpoints
from kserve.model_control import ModelControl
from kserve.model_repository import ModelRepository, ModelState


class ModelRepositoryExtension:
    """Lists, loads and unloads the models of a repository; for the event loop.

    Args:
        model_registry: The repository.
        control: That of the server that serves it, `DataPlane.control`: then a model is stopped
            only after its last request.
    """

    def __init__(
        self, model_registry: ModelRepository, control: ModelControl | None = None
    ) -> None:
        self._control = control or ModelControl(model_registry, Endpoints())

    async def index(self, filter_ready: bool = False) -> list[dict[str, str]]:
        """Give `name`, `state` (`Ready` or `NotReady`) and `reason` of every model.

        Args:
            filter_ready: Leave out what is not ready.
        """
        return [
            {"name": entry.name, "state": _STATES[entry.state], "reason": entry.reason}
            for entry in await self._control.index()
            if not filter_ready or entry.state is ModelState.READY
        ]

    async def load(self, model_name: str) -> None:
        """Load a model.

        Raises:
            InvalidInput: The name is not one of a directory.
            ModelNotFound: The repository has no such model.
            ModelNotReady: The load failed; the text says why.
        """
        await self._control.load(model_name)

    async def unload(self, model_name: str, timeout_s: float | None = None) -> None:
        """Unload a model, and wait until its last request is over, but no longer than this.

        Raises:
            ModelNotFound: There is none of this name.
        """
        await self._control.unload(model_name, timeout_s)


_STATES = {
    ModelState.LOADING: "NotReady",
    ModelState.READY: "Ready",
    ModelState.UNAVAILABLE: "NotReady",
}
