"""The command line of a framework server: `run(MODEL)` is all that its `__main__` does."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from kserve.config import ServerConfig, count_or_all, make_parser, timeout
from kserve.errors import NoModelReady, StartError
from kserve.logging import configure_logging, logger
from kserve.signals import ended_by_signals
from kserve.threads import limit_threads

# What loads numpy is imported after the threads of its BLAS are limited.
if TYPE_CHECKING:
    from kserve.model import BaseKServeModel

# Where Kubernetes reads the reason that it shows for a container that ended.
_TERMINATION_LOG: Final = Path("/dev/termination-log")

# A sidecar that links the directory has it by then, or never.
_MODEL_DIR_WAIT_S: Final = 60.0

_PREDICTOR_FLAGS: Final = ("--predictor_", "--enable_predictor_health_check")


class ServedModel(Protocol):
    """What a server makes its models with; a class of `TensorModel` is one.

    It may have `default_model_dir`, the directory where the command line names none, and `fetch`,
    a function of the parsed command line: it is called on a thread before anything is loaded, and
    gives the directory to serve in the place of `--model_dir`, or None to keep that. It may have
    `check_arguments`, a function of the parsed command line that raises `ValueError` where its
    flags do not fit together, and `remote_model`, a function of the name and the parsed command
    line: it gives a model that needs no directory, or None where it does. Without suffixes of
    artifacts there are no flags for a directory at all.
    """

    @property
    def artifact_suffixes(self) -> tuple[str, ...]:
        """Give what it finds in a directory; see `TensorModel`."""

    @property
    def preferred_artifact(self) -> str:
        """Give the name of the one that is meant where there are several, or an empty text."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the server's own flags to its command line."""

    def from_args(self, name: str, model_dir: str, args: argparse.Namespace) -> "BaseKServeModel":
        """Make a model as the command line says; called on a thread."""


@ended_by_signals()
def run(
    model: "ServedModel | str", argv: Sequence[str] | None = None, announcement: str = ""
) -> None:
    """Serve the model, or the models, of a directory until a signal ends the process.

    An artifact at the top of `--model_dir` is served as `--model_name`; else sub-directories named
    by a number are versions of it; else every sub-directory is a model of its own name. A failed
    start ends the process with exit code 1 and one line of reason, last on stderr and in the
    termination log; a wrong command line with exit code 2.

    The threads of the libraries are limited first; see `kserve.threads`. That has no effect on
    what was loaded before, so `model` is the class itself only where its module loads nothing.

    Args:
        model: The server's model, as `package.module:Class`, or the class; its `add_arguments` and
            `from_args` add to the flags.
        argv: The command line without the program; the process's own if None.
        announcement: What is logged first.
    """
    limit_threads()
    from kserve.model_repository import reason_of

    model_class: ServedModel = resolve_name(model) if isinstance(model, str) else model
    server = model_class.__module__.partition(".")[0]
    args = _parse(model_class, server, sys.argv[1:] if argv is None else list(argv))
    config = ServerConfig.from_args(args)
    try:
        if config.configure_logging:
            configure_logging(config.log_config_file, log_format=config.log_format)
        if announcement:
            logger.info("%s", announcement)
        _serve(model_class, args, config)
    except StartError as exc:
        cause = exc.__cause__ if isinstance(exc, NoModelReady) else None
        exit_with(server, reason_of(cause or exc))
    except Exception as exc:
        logger.exception("The server failed")
        exit_with(server, reason_of(exc))


def _serve(model_class: ServedModel, args: argparse.Namespace, config: ServerConfig) -> None:
    from kserve.directory_repository import DirectoryRepository
    from kserve.executor import run_in_new_thread
    from kserve.model_server import ModelServer

    make_remote = getattr(model_class, "remote_model", None)
    remote = None if make_remote is None else make_remote(config.model_name, args)
    if remote is not None:
        ModelServer(config=config).start([remote])
        return
    repository = DirectoryRepository(
        lambda name, model_dir: model_class.from_args(name, model_dir, args),
        _absolute(args.model_dir),
        suffixes=model_class.artifact_suffixes,
        preferred=model_class.preferred_artifact,
        model_name=config.model_name,
        max_versions=args.max_versions,
    )
    fetch = getattr(model_class, "fetch", None)

    async def load() -> list[str]:
        directory = None if fetch is None else await run_in_new_thread(fetch, args)
        if directory is not None:
            repository.set_models_dir(_absolute(directory))
        return await repository.load_at_start(args.model_dir_wait_s)

    ModelServer(registered_models=repository, config=config).start([], load=load)


def _absolute(model_dir: str) -> str:
    """Give a path that is the same wherever the process goes; an address is one."""
    return model_dir if "://" in model_dir else os.path.abspath(model_dir)


def _parse(model_class: ServedModel, server: str, argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {server}", parents=[make_parser()], allow_abbrev=False
    )
    if model_class.artifact_suffixes:
        _add_model_dir(parser, getattr(model_class, "default_model_dir", None))
    model_class.add_arguments(parser)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown_text(unknown[0], parser))
    refused = [arg for arg in argv if arg.startswith(_PREDICTOR_FLAGS)]
    if refused:
        parser.error(
            f"{refused[0].partition('=')[0]}: {server} predicts itself and takes no predictor; "
            "the flag is for transformers and explainers"
        )
    check = getattr(model_class, "check_arguments", None)
    if check is not None:
        try:
            check(args)
        except ValueError as exc:
            parser.error(str(exc))
    return args


def _add_model_dir(parser: argparse.ArgumentParser, default: str | None) -> None:
    add = parser.add_argument
    help_text = "directory of the model, its versions, or of models"
    if default is None:
        add("--model_dir", required=True, help=help_text)
    else:
        add("--model_dir", default=default, help=f"{help_text} (%(default)s)")
    add(
        "--model_dir_wait_s",
        type=timeout,
        default=_MODEL_DIR_WAIT_S,
        help="seconds to wait for a directory that is not there yet or empty (%(default)s)",
    )
    add(
        "--max_versions",
        type=count_or_all,
        default=1,
        help="how many of the newest versions of a model are loaded, or all (%(default)s)",
    )


def _unknown_text(argument: str, parser: argparse.ArgumentParser) -> str:
    flag = argument.partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    nearest = difflib.get_close_matches(flag, known, n=1)
    hint = f", did you mean {nearest[0]}?" if nearest else ""
    return f"unknown argument {flag}{hint}"


def exit_with(server: str, reason: str) -> NoReturn:
    """End the process with code 1 and a reason, on stderr and in the termination log."""
    line = f"{server}: {reason}\n"
    try:
        if _TERMINATION_LOG.exists():
            _TERMINATION_LOG.write_text(line)
    except OSError as exc:
        logger.warning("The termination log cannot be written: %s", exc)
    sys.stdout.flush()
    sys.stderr.write(line)
    sys.stderr.flush()
    # A load that hangs on a thread must not keep the process from ending.
    os._exit(1)
