"""The data plane: every inference request of every wire passes through `DataPlane.run`."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from kserve.config import ServerConfig
from kserve.deadlines import Deadlines
from kserve.endpoint import Endpoint, Run, is_healthy
from kserve.endpoints import Endpoints
from kserve.errors import ModelNotFound, ModelNotReady, ServerNotLive
from kserve.executor import run_user_code
from kserve.listing import listing, shortened
from kserve.model import BaseKServeModel, InferenceModel, TensorModel
from kserve.model_control import ModelControl
from kserve.model_repository import ModelRepository, ModelState, ModelStatus
from kserve.predictor_config import PredictorConfig
from kserve.stream import begun

# Of the Open Inference Protocol, by the names that Triton gives them.
_EXTENSIONS: Final = ("binary_tensor_data",)


class DataPlane:
    """Finds models, runs requests on them, and answers for their state and metadata.

    Args:
        model_registry: The models.
        predictor_config: The predictor behind transformers.
        config: The limits, and whether clients may load and unload models.
        unload_timeout_s: How long the answer to an unload waits for the model's last request; if
            None, the grace period.

    Attributes:
        control: Loads and unloads models, whoever asks for it.
    """

    def __init__(
        self,
        model_registry: ModelRepository,
        predictor_config: PredictorConfig | None = None,
        *,
        config: ServerConfig | None = None,
        unload_timeout_s: float | None = None,
    ) -> None:
        config = config or ServerConfig()
        self.predictor_config = predictor_config
        self.is_draining = False
        # While the models given at start load, those of a directory are not known by name.
        self.is_starting = False
        # Models whose readiness is the server's: those given at start.
        self.required_models: list[str] = []
        self._model_registry = model_registry
        self._repository_api = config.repository_api
        self._unload_timeout_s = (
            config.grace_period_s if unload_timeout_s is None else unload_timeout_s
        )
        self._deadlines = Deadlines(config.request_timeout_s)
        self._hang_timeout_s = config.hang_timeout_s
        # Models that were ready until a call of theirs hung.
        self._taken_out: list[BaseKServeModel] = []
        self._endpoints = Endpoints(config, self._note_hang)
        self._bound = self._endpoints.bound
        self.control = ModelControl(model_registry, self._endpoints)

    @property
    def model_registry(self) -> ModelRepository:
        """The models."""
        return self._model_registry

    @property
    def serves_openai(self) -> bool:
        """Whether there is a model for OpenAI's routes."""
        models = self._model_registry.get_models().values()
        return any(model.serves_openai for model in models)

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
        self,
        endpoint: Endpoint,
        request: Any,
        headers: dict[str, str],
        verb: str,
        run: Run | None = None,
    ) -> tuple[Any, dict[str, str]]:
        """Run one request on a model that `find` gave; the path of every wire.

        A response that streams has its first chunk when this returns, and is in flight to its end.

        Args:
            endpoint: The model.
            request: What it takes.
            headers: Lower-case request headers, shared with the handlers.
            verb: `predict`, `explain`, or what else `run` answers.
            run: Answers the request; None is the endpoint's own.

        Raises:
            TooManyRequests: As many requests of the model as it takes are in flight, or as many
                rows wait.
            DeadlineExceeded: The answer was not there in time.
            Exception: Whatever the model raises.
        """
        endpoint.enter()
        stream = None
        try:
            with self._deadlines.limit():
                result, response_headers = await (run or endpoint.run)(request, headers, verb)
                if hasattr(result, "__aiter__"):
                    result = stream = await begun(result, endpoint.leave)
                return result, response_headers
        finally:
            if stream is None:
                endpoint.leave()

    async def find(self, model_name: str, version: str | None = None) -> Endpoint:
        """Give a model that can answer now.

        The model is not stopped before the endpoint is let go, even if it is replaced or unloaded.

        Args:
            model_name: The name under which it is served.
            version: One of its versions; None or empty for the one that serves by default.

        Raises:
            ModelNotFound: No model of this name is registered, or not in this version.
            ModelNotReady: It is not loaded, or its own `healthy` says no.
        """
        key: str | tuple[str, str] = (model_name, version) if version else model_name
        model = self._get(model_name, version)
        if model is None:
            # It may have been unloaded: what is bound would keep it in memory.
            self._bound.pop(key, None)
            raise self.unavailability(model_name, version)
        endpoint = self._bound.get(key)
        if endpoint is None or endpoint.model is not model:
            endpoint = self._endpoints.bind(model, model_name, version or None)
        ready = await is_healthy(model) if endpoint.has_own_healthy else model.ready
        if not ready:
            raise self.unavailability(model_name, version)
        return endpoint

    def is_current(self, endpoint: Endpoint, version: str | None = None) -> bool:
        """Say whether `find` would give an endpoint again, its model's own `healthy` aside."""
        model = self._get(endpoint.name, version)
        return model is endpoint.model and bool(model.ready)

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

    async def live(self) -> dict[str, str]:
        """Answer that the process lives.

        Raises:
            ServerNotLive: A call of a model has hung, or a model can never answer again: only a
                new process can.
        """
        if self._endpoints.have_hung():
            raise ServerNotLive(self._hang_reason())
        registry = self._model_registry
        for name in registry.names():
            for model in registry.objects_of(name):
                if model.fatal_error:
                    raise ServerNotLive(f"Model {name}: {model.fatal_error}")
        return {"status": "alive"}

    async def ready(self) -> bool:
        """Say whether every model given at start can answer and the server is not draining."""
        return not await self.not_ready_reason()

    async def not_ready_reason(self) -> str:
        """Give why the server is not ready, or the empty string."""
        if self.is_draining:
            return "The server is shutting down."
        if self.is_starting:
            return "The server is starting."
        for name in self.required_models:
            if not await self._model_registry.is_model_ready(name):
                return str(self.unavailability(name))
        return ""

    def metadata(self) -> dict[str, Any]:
        """Give the name, version and extensions of the server."""
        extensions = list(_EXTENSIONS)
        if self.has_repository_api:
            extensions.append("model_repository")
        return {"name": "kserve", "version": server_version(), "extensions": extensions}

    async def model_metadata(self, model_name: str, version: str | None = None) -> dict[str, Any]:
        """Give the metadata of a model, in one version or the default one.

        Raises:
            ModelNotFound: There is none of this name, or not in this version.
        """
        model = self._get(model_name, version)
        if model is None:
            raise self.unavailability(model_name, version)
        inputs: list[Any] = []
        outputs: list[Any] = []
        if isinstance(model, InferenceModel):
            inputs = list(await run_user_code(model.get_input_types) or [])
            outputs = list(await run_user_code(model.get_output_types) or [])
        return {
            "name": model_name,
            "versions": self._versions(model_name),
            "platform": getattr(model, "platform", None) or "",
            "inputs": inputs,
            "outputs": outputs,
        }

    async def model_ready(self, model_name: str, version: str | None = None) -> bool:
        """Say whether a model can answer now, in one version or the default one.

        Raises:
            ModelNotFound: There is none of this name, or not in this version.
        """
        if self._model_registry.status(model_name) is None and not self.is_starting:
            raise ModelNotFound(model_name)
        if self.is_draining:
            return False
        if not version:
            return await self._model_registry.is_model_ready(model_name)
        model = self._get(model_name, version)
        if model is None:
            raise self.unavailability(model_name, version)
        return await is_healthy(model)

    def load_failure(self, model_name: str, version: str | None = None) -> str:
        """Give why what would take the place of a model could not be loaded, or an empty text."""
        failures = self._model_registry.failures(model_name)
        if version:
            return failures.get(version, "")
        return "; ".join(f"version {key}: {why}" if key else why for key, why in failures.items())

    def unavailability(
        self, model_name: str, version: str | None = None
    ) -> ModelNotFound | ModelNotReady:
        """Give the error that says why a model, or a version of it, cannot answer."""
        status = self._model_registry.status(model_name)
        if status is None and self.is_starting:
            return ModelNotReady(model_name, "The server is starting.")
        if status is None:
            return ModelNotFound(model_name)
        if version:
            return self._version_unavailability(model_name, version)
        if status.state is ModelState.LOADING:
            return ModelNotReady(model_name, "It is loading.")
        return ModelNotReady(model_name, status.reason or None)

    @property
    def has_repository_api(self) -> bool:
        """Whether clients may list, load and unload models."""
        if self._repository_api is None:
            return self._model_registry.loads_by_name
        return self._repository_api

    async def repository_index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """Give `name`, `version`, `state` and `reason` of every version of every model.

        Args:
            ready_only: Leave out what cannot answer.

        Returns:
            In the words of Triton: states are upper case, a version may be empty.

        Raises:
            NotImplementedError: The repository API is off.
        """
        self._require_repository_api()
        return [
            {
                "name": entry.name,
                "version": entry.version,
                "state": entry.state.upper(),
                "reason": entry.reason,
            }
            for entry in await self.control.index()
            if not ready_only or entry.state is ModelState.READY
        ]

    async def load_model(self, name: str) -> None:
        """Load a model for a client, or load it again and swap.

        Raises:
            NotImplementedError: The repository API is off.
            InvalidInput: The name is not one of a directory.
            ModelNotFound, ModelNotReady: There is no such model, or its load failed.
        """
        self._require_repository_api()
        await self.control.load(name)

    async def unload_model(self, name: str) -> None:
        """Unload a model for a client; returns once its last request is over and it is freed.

        Raises:
            NotImplementedError: The repository API is off.
            ModelNotFound: There is none of this name.
        """
        self._require_repository_api()
        await self.control.unload(name, self._unload_timeout_s)
        # Whoever unloads a model that was given at start does without it.
        self.required_models = [required for required in self.required_models if required != name]

    def _note_hang(self, model: BaseKServeModel, has_hung: bool) -> None:
        """Take a model out of service whose call has hung, or back into it."""
        registry = self._model_registry
        names = [name for name, served in registry.get_models().items() if served is model]
        hung = ModelStatus(ModelState.UNAVAILABLE, self._hang_reason())
        if has_hung:
            if model.ready:
                self._taken_out.append(model)
            model.ready = False
            for name in names:
                registry.set_status(name, hung.state, hung.reason)
            return
        was_ready = any(taken is model for taken in self._taken_out)
        self._taken_out = [taken for taken in self._taken_out if taken is not model]
        # Whoever has loaded it, or taken it away, meanwhile has the last word.
        if all(registry.status(name) == hung for name in names):
            model.ready = model.ready or was_ready
            for name in names:
                registry.set_status(name, ModelState.READY)

    def _hang_reason(self) -> str:
        return f"A call has not returned for {self._hang_timeout_s:g} s (--hang_timeout_s)."

    def _require_repository_api(self) -> None:
        if not self.has_repository_api:
            raise NotImplementedError(
                "the model repository API is off: start the server with --repository_api true"
            )

    def _get(self, model_name: str, version: str | None) -> BaseKServeModel | None:
        if not version:
            return self._model_registry.get_model(model_name)
        model = self._model_registry.get_version(model_name, version)
        if model is None and version in (self._versions(model_name) or ()):
            # One that names versions itself answers for all of them.
            return self._model_registry.get_model(model_name)
        return model

    def _versions(self, model_name: str) -> Sequence[str] | None:
        """Give the versions of a model that can be asked for; None where it has none."""
        model = self._model_registry.get_model(model_name)
        named = model.versions if isinstance(model, TensorModel) else None
        return self._model_registry.versions(model_name) or named

    def _version_unavailability(self, name: str, version: str) -> ModelNotFound | ModelNotReady:
        failures = self._model_registry.failures(name)
        if self._get(name, version) is not None or version in failures:
            reason = failures.get(version)
            return ModelNotReady(name, f"Version {version}: {reason}" if reason else None)
        versions = self._versions(name)
        has = f"it has {listing(versions)}" if versions else "it has no versions"
        missing = f"no version {shortened(version)}"
        return ModelNotFound(name, f"Model with name {name} has {missing}: {has}.")


def server_version() -> str:
    """Give the installed version of the core, or `0` where it runs from its sources alone."""
    try:
        return version("kserve-core")
    except PackageNotFoundError:
        return "0"
