"""What a `model.py` defines: a model class, a model that it starts itself, or two functions."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from kserve.errors import ModelLoadError
from kserve.listing import listing
from kserve.model import BaseKServeModel
from pythonserver.functions import make_function_model

_FUNCTIONS: Final = ("load", "predict")

_EXPECTED: Final = (
    "expected one subclass of kserve.Model, or functions load(model_dir) and "
    "predict(model, instances)"
)


def make_from(
    module: ModuleType,
    started: Mapping[str, BaseKServeModel],
    name: str,
    model_dir: str,
    model_class: str | None = None,
) -> BaseKServeModel:
    """Make the model that a module defines.

    Args:
        module: The imported `model.py`.
        started: What it called `ModelServer.start` with.
        name: The name under which the model will be served.
        model_dir: The model's directory.
        model_class: The name of the class, where it has to be said.

    Raises:
        ModelLoadError: It defines none, or several; or its constructor takes other arguments.
        Exception: Whatever the constructor raises.
    """
    path = Path(model_dir) / "model.py"
    if model_class is None and len(started) == 1:
        return _named(next(iter(started.values())), name, model_dir)
    if model_class is None and started:
        raise ModelLoadError(
            f"{path}: it starts several models, {listing(started)}; choose one with --model_class, "
            "by the name of its class"
        )
    classes = _model_classes(module)
    chosen = _choose(classes, path) if model_class is None else _get(module, model_class, path)
    if chosen is not None:
        return _named(_construct(chosen, name, model_dir, path), name, model_dir)
    missing = [function for function in _FUNCTIONS if not callable(getattr(module, function, None))]
    if missing:
        hint = "" if len(missing) == len(_FUNCTIONS) else f"; {missing[0]} is missing"
        raise ModelLoadError(f"{path}: {_EXPECTED}, found {listing(_defined(module))}{hint}")
    return _named(make_function_model(name, model_dir, module), name, model_dir)


def _model_classes(module: ModuleType) -> dict[str, type[BaseKServeModel]]:
    """Give the classes of models that a module defines and does not call private."""
    return {
        name: value
        for name, value in vars(module).items()
        if _is_model_class(value)
        and value.__module__ == module.__name__
        and name == value.__name__
        and not name.startswith("_")
        and not inspect.isabstract(value)
    }


def _choose(
    classes: Mapping[str, type[BaseKServeModel]], path: Path
) -> type[BaseKServeModel] | None:
    if len(classes) > 1:
        raise ModelLoadError(
            f"{path}: it defines several models, {listing(classes)}; choose one with --model_class"
        )
    return next(iter(classes.values()), None)


def _get(module: ModuleType, model_class: str, path: Path) -> type[BaseKServeModel]:
    found: Any = getattr(module, model_class, None)
    if not _is_model_class(found):
        raise ModelLoadError(
            f"{path}: --model_class {model_class} is no subclass of kserve.Model there, "
            f"it defines {listing(_model_classes(module))}"
        )
    model: type[BaseKServeModel] = found
    return model


def _is_model_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseKServeModel)


def _defined(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
    ]


def _construct(
    model_class: type[BaseKServeModel], name: str, model_dir: str, path: Path
) -> BaseKServeModel:
    """Call the constructor with as much of `name` and `model_dir` as it takes."""
    parameters = inspect.signature(model_class).parameters
    keywords = {
        key: value
        for key, value in {"name": name, "model_dir": model_dir}.items()
        if key in parameters
    }
    positional = [
        key
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
        and key not in keywords
    ]
    # The first one is the name, whatever it is called, as it is in `kserve.Model`.
    takes_name = "name" not in keywords and positional[:1]
    unknown = positional[1:] if takes_name else positional
    if unknown:
        raise ModelLoadError(
            f"{path}: the constructor of {model_class.__name__} takes {', '.join(unknown)} without "
            "a default, expected name and model_dir at most"
        )
    return model_class(*([name] if takes_name else []), **keywords)


def _named(model: BaseKServeModel, name: str, model_dir: str) -> BaseKServeModel:
    """Give a model the name that it is served by, and what its class leaves out."""
    attributes: dict[str, Any] = vars(model)
    attributes["name"] = name
    if not getattr(model, "model_dir", None):
        attributes["model_dir"] = model_dir
    if not getattr(model, "platform", None):
        attributes["platform"] = "python"
    return model
