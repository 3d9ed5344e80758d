"""Loads TensorFlow: once, without its noise, and with the threads and the memory that it may take.

Import this before TensorFlow; it imports it when `start` is called.
"""

import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from kserve.cpu import cpu_count
from kserve.errors import ModelLoadError
from kserve.logging import logger
from tfserver.settings import Settings

_STDERR: Final = 2

# What TensorFlow writes before it has read its own level: it cannot be told to be quiet.
_NOISE: Final = re.compile(
    rb"[IWE]\d{4} [\d:. ]+\S+\.cc:\d+\]|WARNING: All log messages before absl::InitializeLog"
)

# Of its levels, 3 is fatal errors alone: what fails is raised, and need not be logged too.
_LEVEL: Final = "TF_CPP_MIN_LOG_LEVEL"
_FATAL, _ALL = "3", "0"

# They hold the same module.
_DISTRIBUTIONS: Final = ("tensorflow", "tensorflow-cpu")

_lock = threading.Lock()
_started_with: Settings | None = None


def start(settings: Settings) -> None:
    """Import TensorFlow, once in a process, and set it up.

    Args:
        settings: How many threads it may have. TensorFlow takes them when it starts, so those of
            later calls come too late, and the log says so if they differ.

    Raises:
        ModelLoadError: It is not installed.
    """
    global _started_with
    with _lock:
        if _started_with is None:
            _import()
            _set_up(settings)
            _started_with = settings
        elif _threads(settings) != _threads(_started_with):
            logger.warning(
                "TensorFlow runs with %d threads of one operation and %d operations at a time:"
                " other numbers come too late in this process",
                *_threads(_started_with),
            )


def _import() -> None:
    is_loud = logger.isEnabledFor(logging.DEBUG)
    os.environ.setdefault(_LEVEL, _ALL if is_loud else _FATAL)
    # Whatever else Keras is used with on this machine.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        with nullcontext() if is_loud else without_noise():
            import_module("tensorflow")
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise ModelLoadError(
            "tensorflow is not installed; tfserver installs it on Python 3.11 to 3.13"
        ) from error
    if all(map(_is_installed, _DISTRIBUTIONS)):
        logger.warning(
            "%s are both installed, and have written the same files: whose they are now is not"
            " known; remove both, and install one again",
            " and ".join(_DISTRIBUTIONS),
        )


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


@contextmanager
def without_noise() -> Iterator[None]:
    """Hold back what is written to stderr, and let through what is not TensorFlow's, at the end.

    Its libraries write to the descriptor itself, from C++.
    """
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(_STDERR)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _NOISE.match(line):
                    os.write(_STDERR, line)


def _set_up(settings: Settings) -> None:
    import tensorflow as tf

    if not logger.isEnabledFor(logging.DEBUG):
        for log in (tf.get_logger(), logging.getLogger("absl")):
            log.setLevel(logging.ERROR)
    intra, inter = _threads(settings)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(intra)
        tf.config.threading.set_inter_op_parallelism_threads(inter)
        for gpu in tf.config.list_physical_devices("GPU"):
            # Otherwise the first model takes all the memory of every device.
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        # A program of the user's has used it before.
        logger.warning("TensorFlow runs already, and is left as it is: %s", error)


def _threads(settings: Settings) -> tuple[int, int]:
    n_cpus = cpu_count()
    return settings.intra_op_threads or n_cpus, settings.inter_op_threads or n_cpus
