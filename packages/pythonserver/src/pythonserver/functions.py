"""Models that are two plain functions, `load` and `predict`."""

import inspect
from types import ModuleType
from typing import Any

from kserve.executor import is_async_callable
from kserve.model import Model
from kserve.payload import get_predict_input, get_predict_response


class FunctionModel(Model):
    """A module's `load(model_dir)` and `predict(model, instances)`.

    `instances` is what `kserve.utils.utils.get_predict_input` makes of a request, an array, a list
    of texts or a DataFrame; what `predict` gives are the predictions, one for each. A generator is
    streamed as it is.

    Args:
        name: The name under which it is served.
        model_dir: What `load` is called with.
        module: The module; either function may be async.
    """

    def __init__(self, name: str, model_dir: str, module: ModuleType) -> None:
        super().__init__(name)
        self._model_dir = model_dir
        self._functions = module
        self._model: Any = None

    def load(self) -> Any:
        """Call the function `load`, and keep what it gives."""
        model = self._functions.load(self._model_dir)
        if hasattr(model, "__await__"):
            return self._keep(model)
        self._model = model
        return True

    def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Answer a V1 or a V2 request with what the function `predict` gives.

        Raises:
            InvalidInput: The request holds no instances.
            Exception: Whatever the function raises.
        """
        result = self._functions.predict(self._model, get_predict_input(payload))
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            return result
        return get_predict_response(payload, result, self.name)

    async def _keep(self, loading: Any) -> bool:
        self._model = await loading
        return True


class AsyncFunctionModel(FunctionModel):
    """The same, where `predict` is a coroutine function: it runs on the event loop."""

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Answer a V1 or a V2 request with what the function `predict` gives.

        Raises:
            InvalidInput: The request holds no instances.
            Exception: Whatever the function raises.
        """
        result = await self._functions.predict(self._model, get_predict_input(payload))
        return get_predict_response(payload, result, self.name)


def make_function_model(name: str, model_dir: str, module: ModuleType) -> FunctionModel:
    """Make the model of a module's two functions."""
    predict = module.predict
    is_async = is_async_callable(predict) and not inspect.isasyncgenfunction(predict)
    return (AsyncFunctionModel if is_async else FunctionModel)(name, model_dir, module)
