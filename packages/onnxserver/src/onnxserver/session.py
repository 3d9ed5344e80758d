"""Opens a session of ONNX Runtime as its settings say, and puts its errors into words."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from kserve.cpu import cpu_count
from kserve.errors import InvalidInput, ModelLoadError
from kserve.listing import listing
from kserve.logging import logger
from onnxserver.model_file import ModelFile
from onnxserver.settings import LEVELS, SessionSettings

_SUFFIX: Final = "ExecutionProvider"

# Idle threads of a session would look for work in a loop, on CPUs that the event loop needs.
_DEFAULT_CONFIG: Final = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}

# Where external data lies of a model that does not come from a file.
_EXTERNAL_DATA: Final = "session.model_external_initializers_file_folder_path"

# Of ONNX Runtime: 2 is warnings, 4 fatal errors. What fails is raised, and need not be logged too.
_WARNING, _FATAL = 2, 4

_LFS_POINTER: Final = b"version https://git-lfs"

# What ONNX Runtime puts around its reasons: a code, places in its source, and the path.
_CODE: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOADED: Final = re.compile(r"^(?:Load model from .*? failed: ?)+")
_PLACE: Final = re.compile(
    r"\S+\.(?:cc|h):\d+ (?:[\w:<>,&*~ ]*::[\w:<>,&*~ ]*\([^()]*\)(?: const)? )?"
)
_NODE: Final = re.compile(
    r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: "
)
# Errors of a node that say nothing of the inputs.
_RESOURCES: Final = re.compile(r"alloc|memory|cuda|cudnn|cublas|tensorrt", re.IGNORECASE)
_OF_INPUTS: Final = ("InvalidArgument", "Fail", "RuntimeException")


def open_session(
    path: Path,
    settings: SessionSettings,
    file: ModelFile,
    name: str,
    data: bytes | None = None,
) -> ort.InferenceSession:
    """Load a model.

    Args:
        path: The `.onnx` file; its external data lies beside it.
        settings: How.
        file: What was read of the file.
        name: What the optimised graph is called in a directory of several.
        data: What is loaded in place of the file.

    Raises:
        ModelLoadError: A provider is not there; the file is damaged, no ONNX, or needs an operator,
            an operator set or external data that are not there; or the optimised graph cannot be
            written.
    """
    providers = _known_providers(settings.providers)
    options = _options(path, settings, file, name)
    try:
        if data is not None:
            options.add_session_config_entry(_EXTERNAL_DATA, str(path.parent))
        source = path if data is None else data
        session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:  # the boundary: ONNX Runtime's errors have no common class
        raise ModelLoadError(_explain(path, error, file)) from error
    missing = [each for each in providers if each not in session.get_providers()]
    if missing:
        raise ModelLoadError(
            f"{path.name}: the provider {missing[0]} cannot be used on this machine: its devices or"
            " libraries are not there (KSERVE_LOGLEVEL=DEBUG shows what ONNX Runtime says)"
        )
    return session


def run_options() -> ort.RunOptions:
    """Give the options of a run, which may be shared: a failure is raised, and logged by nobody."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL
    return options


def run_error(error: Exception) -> Exception:
    """Give what to raise for an error of a run: the client's mistake where the inputs are at fault.

    What a graph makes of good inputs does not fail, but for want of memory or of a device.
    """
    text = _cause(error)
    if type(error).__name__ not in _OF_INPUTS or _RESOURCES.search(text):
        return error
    return InvalidInput(f"the model cannot run on these inputs: {text}")


def _known_providers(names: Sequence[str]) -> list[str]:
    available = {name.lower(): name for name in ort.get_available_providers()}
    known = []
    for name in names:
        found = available.get(name.lower()) or available.get((name + _SUFFIX).lower())
        if found is None:
            raise ModelLoadError(
                f"provider {name}: this build of onnxruntime {ort.__version__} has none of the"
                f" name, it has {', '.join(available.values())}"
            )
        known.append(found)
    return known


def _options(
    path: Path, settings: SessionSettings, file: ModelFile, name: str
) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _WARNING if logger.isEnabledFor(logging.DEBUG) else _FATAL
    # Said always: where it is not, threads are bound to CPUs that a container may not have.
    options.intra_op_num_threads = settings.intra_op_threads or cpu_count()
    options.inter_op_num_threads = settings.inter_op_threads
    if settings.inter_op_threads > 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    # Otherwise each new shape of the inputs leaves a plan behind that is never freed.
    options.enable_mem_pattern = not file.has_dynamic_inputs
    level = LEVELS[settings.optimization_level]
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    for key, value in {**_DEFAULT_CONFIG, **settings.config}.items():
        options.add_session_config_entry(key, value)
    if settings.optimized_model_path is not None:
        options.optimized_model_filepath = _optimized_path(path, settings, name)
    return options


def _optimized_path(path: Path, settings: SessionSettings, name: str) -> str:
    assert settings.optimized_model_path is not None
    target = Path(settings.optimized_model_path)
    if target.is_dir():
        target /= f"{name}.onnx"
    if target.resolve().parent.is_relative_to(path.resolve().parent):
        raise ModelLoadError(
            f"--optimized_model_path {target}: expected a place outside of the model directory,"
            " where it would be a second artifact"
        )
    if not target.parent.is_dir():
        raise ModelLoadError(f"--optimized_model_path {target}: there is no such directory")
    return str(target)


def _explain(path: Path, error: Exception, file: ModelFile) -> str:
    size = path.stat().st_size
    with path.open("rb") as stream:
        is_pointer = stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    if not size:
        return f"{path.name}: expected an ONNX model, found an empty file"
    if is_pointer:
        return (
            f"{path.name}: expected an ONNX model, found the pointer of Git LFS that stands for it:"
            " fetch the file itself"
        )
    return f"{path.name}: cannot be loaded: {_cause(error)} ({_versions(file)})"


def _versions(file: ModelFile) -> str:
    """Name who wrote a file, the operator sets that it uses, and the runtime."""
    opsets = [f"{domain or 'ai.onnx'} {version}" for domain, version in file.opsets.items()]
    parts = [f"written by {file.producer}"] if file.producer else []
    parts += [f"operator sets {listing(opsets)}"] if opsets else []
    return ", ".join([*parts, f"onnxruntime is {ort.__version__}"])


def _cause(error: Any) -> str:
    """Give the reason of an error of ONNX Runtime without what only its developers read."""
    text = " ".join(str(error).split())
    text = _LOADED.sub("", _CODE.sub("", text))
    text = _NODE.sub(r"\1 '\2': ", text).replace(" '': ", ": ", 1)
    return _PLACE.sub("", text).strip() or type(error).__name__
