"""The model of a directory with a `model.py`, made of the user's own code."""

import argparse
import os
import weakref
from pathlib import Path

from kserve.artifact import find_artifact, local_path
from kserve.config import boolean
from kserve.context import collect_models
from kserve.model import BaseKServeModel
from pythonserver.definition import make_from
from pythonserver.namespace import Namespace
from pythonserver.requirements import REQUIREMENTS_FILE
from pythonserver.user_code import UserCode


class PythonModel:
    """What `python -m pythonserver` makes its models with."""

    artifact_suffixes = ("model.py",)
    preferred_artifact = ""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add `--model_class` and `--install_requirements`."""
        parser.add_argument(
            "--model_class",
            help="the class in model.py to serve, where there are several",
        )
        parser.add_argument(
            "--install_requirements",
            type=boolean,
            nargs="?",
            const=True,
            default=False,
            help="install what requirements.txt asks for and is not there (%(default)s)",
        )

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> BaseKServeModel:
        """Make a model as the command line says; imports the user's code."""
        return make_model(
            name,
            model_dir,
            model_class=args.model_class,
            install_requirements=args.install_requirements,
            is_alone=local_path(args.model_dir).absolute() == Path(model_dir),
        )


def make_model(
    name: str,
    model_dir: str,
    *,
    model_class: str | None = None,
    install_requirements: bool = False,
    is_alone: bool = False,
) -> BaseKServeModel:
    """Make the model that a directory's `model.py` defines; it is the user's own object.

    Its `load` is not called, but runs in the same directory, and its errors are trimmed as well.

    Args:
        name: The name under which it is served.
        model_dir: The directory of `model.py`, or a `file://` address of it.
        model_class: The class to serve, where there are several.
        install_requirements: Install what `requirements.txt` asks for and is not there.
        is_alone: The process serves no other directory, and may stay in this one.

    Raises:
        ModelMissingError: There is no `model.py`.
        ModelLoadError: Its requirements are not there, or what it defines is no model.
        UserCodeError: Its code raised.
    """
    path = find_artifact(Path(os.path.abspath(local_path(model_dir))), ("model.py",))
    directory = path.parent
    requirements = directory / REQUIREMENTS_FILE
    if requirements.is_file():
        from pythonserver.requirements import ensure_installed

        ensure_installed(requirements, may_install=install_requirements)
    namespace = Namespace(directory, name)
    code = UserCode(directory, namespace.package, is_alone=is_alone)
    try:
        model: BaseKServeModel = code.run(lambda: _import(namespace, name, model_class))
    except BaseException:
        namespace.close()
        raise
    # When nothing uses the model any more: the modules may hold large objects.
    weakref.finalize(model, namespace.retire).atexit = False
    if not model.ready:
        _guard_load(model, code)
    return model


def _import(namespace: Namespace, name: str, model_class: str | None) -> BaseKServeModel:
    with collect_models() as started:
        module = namespace.load()
    return make_from(module, started, name, str(namespace.directory), model_class)


def _guard_load(model: BaseKServeModel, code: UserCode) -> None:
    """Run the `load` of the user's as the import ran, once."""
    load = model.load

    def guarded() -> object:
        # It refers to the model, which would wait for the collector.
        vars(model).pop("load", None)
        return code.run(load)

    vars(model)["load"] = guarded
