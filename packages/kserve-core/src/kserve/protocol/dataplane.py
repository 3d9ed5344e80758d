"""The data plane: every inference request of every wire passes through `DataPlane.run`."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from kserve.endpoint import Endpoint, bind, is_healthy
from kserve.errors import ModelNotFound, ModelNotReady
from kserve.executor import ModelThreads, run_user_code
from kserve.model import BaseKServeModel, InferenceModel, TensorModel
from kserve.model_repository import ModelRepository, ModelState
from kserve.predictor_config import PredictorConfig

_NO_REPOSITORY: Final = "This server has no repository API."
# Of the Open Inference Protocol, by the names that Triton gives them.
_EXTENSIONS: Final = ("binary_tensor_data",)


class DataPlane:
    """Finds models, runs requests on them, and answers for their state and metadata.

    Args:
        model_registry: The models.
        predictor_config: The predictor behind transformers.
        max_concurrent_predicts: How many plain handlers of one model may run at the same time.
    """

    def __init__(
        self,
        model_registry: ModelRepository,
        predictor_config: PredictorConfig | None = None,
        *,
        max_concurrent_predicts: int = 1,
    ) -> None:
        self.predictor_config = predictor_config
        self.is_draining = False
        # Models whose readiness is the server's: those given at start.
        self.required_models: list[str] = []
        self._model_registry = model_registry
        self._max_concurrent_predicts = max_concurrent_predicts
        self._endpoints: dict[str, Endpoint] = {}

    @property
    def model_registry(self) -> ModelRepository:
        """The models."""
        return self._model_registry

    async def infer(
        self, model_name: str, request: Any, headers: dict[str, str] | None = None
    ) -> tuple[Any, dict[str, str]]:
        """Predict with a model.

        Args:
            model_name: The name under which it is served.
            request: A V1 payload for a user's model, or an `InferRequest`.
            headers: Lower-case request headers, shared with the handlers.

        Returns:
            The response, an async iterator of chunks where the model streams, and its headers.

        Raises:
            ModelNotFound, ModelNotReady: There is no such model, or it cannot answer now.
            Exception: Whatever the model raises.
        """
        endpoint = await self.find(model_name)
        return await self.run(endpoint, request, {} if headers is None else headers, "predict")

    async def explain(
        self, model_name: str, request: Any, headers: dict[str, str] | None = None
    ) -> tuple[Any, dict[str, str]]:
        """Explain a prediction; as `infer`."""
        endpoint = await self.find(model_name)
        return await self.run(endpoint, request, {} if headers is None else headers, "explain")

    async def run(
        self, endpoint: Endpoint, request: Any, headers: dict[str, str], verb: str
    ) -> tuple[Any, dict[str, str]]:
        """Run one request on a model that `find` gave; the path of every wire."""
        in_flight = endpoint.metrics.in_flight
        in_flight.inc()
        try:
            return await endpoint.run(request, headers, verb)
        finally:
            in_flight.dec()

    async def find(self, model_name: str) -> Endpoint:
        """Give a model that can answer now.

        Raises:
            ModelNotFound: No model of this name is registered.
            ModelNotReady: It is not loaded, or its own `healthy` says no.
        """
        model = self._model_registry.get_model(model_name)
        if model is None:
            # It may have been unloaded: what is bound would keep it in memory.
            self._endpoints.pop(model_name, None)
            raise self.unavailability(model_name)
        endpoint = self._endpoints.get(model_name)
        if endpoint is None or endpoint.model is not model:
            endpoint = self._bind(model, model_name)
        ready = await is_healthy(model) if endpoint.has_own_healthy else model.ready
        if not ready:
            raise self.unavailability(model_name)
        return endpoint

    def get_model_from_registry(self, name: str) -> BaseKServeModel:
        """Give a model, ready or not.

        Raises:
            ModelNotFound: There is none of this name.
        """
        model = self._model_registry.get_model(name)
        if model is None:
            raise ModelNotFound(name)
        return model

    async def get_model(self, name: str) -> BaseKServeModel:
        """Give a model that can answer now.

        Raises:
            ModelNotFound, ModelNotReady: There is no such model, or it cannot answer now.
        """
        return (await self.find(name)).model

    @staticmethod
    async def live() -> dict[str, str]:
        """Answer that the process lives."""
        return {"status": "alive"}

    async def ready(self) -> bool:
        """Say whether every model given at start can answer and the server is not draining."""
        return not await self.not_ready_reason()

    async def not_ready_reason(self) -> str:
        """Give why the server is not ready, or the empty string."""
        if self.is_draining:
            return "The server is shutting down."
        for name in self.required_models:
            if not await self._model_registry.is_model_ready(name):
                return str(self.unavailability(name))
        return ""

    def metadata(self) -> dict[str, Any]:
        """Give the name, version and extensions of the server."""
        return {"name": "kserve", "version": server_version(), "extensions": list(_EXTENSIONS)}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Give the metadata of a model.

        Raises:
            ModelNotFound: There is none of this name.
        """
        model = self._model_registry.get_model(model_name)
        if model is None:
            raise self.unavailability(model_name)
        inputs: list[Any] = []
        outputs: list[Any] = []
        if isinstance(model, InferenceModel):
            inputs = list(await run_user_code(model.get_input_types) or [])
            outputs = list(await run_user_code(model.get_output_types) or [])
        return {
            "name": model_name,
            "versions": model.versions if isinstance(model, TensorModel) else None,
            "platform": model.platform if isinstance(model, TensorModel) else "",
            "inputs": inputs,
            "outputs": outputs,
        }

    async def model_ready(self, model_name: str) -> bool:
        """Say whether a model can answer now.

        Raises:
            ModelNotFound: There is none of this name.
        """
        if self._model_registry.status(model_name) is None:
            raise ModelNotFound(model_name)
        return await self._model_registry.is_model_ready(model_name)

    async def repository_index(self, ready_only: bool = False) -> list[dict[str, Any]]:
        """List `name`, `version`, `state` and `reason` of the models of the repository.

        Raises:
            NotImplementedError: Always; this server has no repository to list.
        """
        raise NotImplementedError(_NO_REPOSITORY)

    async def load_model(self, name: str) -> None:
        """Load or reload a model of the repository.

        Raises:
            NotImplementedError: Always; this server has no repository to load from.
        """
        raise NotImplementedError(_NO_REPOSITORY)

    async def unload_model(self, name: str) -> None:
        """Unload a model of the repository.

        Raises:
            NotImplementedError: Always; this server has no repository.
        """
        raise NotImplementedError(_NO_REPOSITORY)

    def unavailability(self, model_name: str) -> ModelNotFound | ModelNotReady:
        """Give the error that says why a model cannot answer."""
        status = self._model_registry.status(model_name)
        if status is None:
            return ModelNotFound(model_name)
        if status.state is ModelState.LOADING:
            return ModelNotReady(model_name, "It is loading.")
        return ModelNotReady(model_name, status.reason or None)

    def _bind(self, model: BaseKServeModel, name: str) -> Endpoint:
        # A model with several names is still called by one thread at a time.
        threads = next(
            (endpoint.threads for endpoint in self._endpoints.values() if endpoint.model is model),
            None,
        )
        endpoint = bind(model, name, threads or ModelThreads(name, self._max_concurrent_predicts))
        self._endpoints[name] = endpoint
        return endpoint


def server_version() -> str:
    """Give the installed version of the core, or `0` where it runs from its sources alone."""
    try:
        return version("kserve-core")
    except PackageNotFoundError:
        return "0"
