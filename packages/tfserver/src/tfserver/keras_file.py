"""Loads what Keras saves in one file, `.keras` or `.h5`, as one function."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tensorflow as tf

from kserve.errors import ModelLoadError
from tfserver.function import Function, describe, reason
from tfserver.state import changes_state


def load_keras_file(path: Path, *, allow_lambda: bool) -> Function:
    """Load a model, and trace its call once, for inputs of every length that it takes.

    Args:
        path: The file.
        allow_lambda: Whether it may have layers of Python code.

    Raises:
        ModelLoadError: The file is damaged, no model of Keras, or of classes that are not there; it
            has layers of Python code that are not allowed; nothing tells its inputs; or the
            protocol cannot carry its tensors.
    """
    model = _load(path, allow_lambda)
    inputs = list(getattr(model, "inputs", None) or ())
    if not inputs:
        raise ModelLoadError(
            f"{path.name}: nothing tells the inputs of this model: export it as a SavedModel"
        )
    names = _unique([tensor.name for tensor in inputs], len(inputs), "input")
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=f"input_{i}")
        for i, tensor in enumerate(inputs)
    ]
    concrete = _trace(model, specs, path)
    results = concrete.structured_outputs
    output_names = _output_names(model, len(results))

    def call(tensors: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        return dict(zip(output_names, concrete(*(tensors[name] for name in names)), strict=True))

    return describe(
        call,
        dict(zip(names, specs, strict=True)),
        dict(zip(output_names, results, strict=True)),
        path.name,
        changes_state=changes_state(concrete.graph.as_graph_def()),
    )


def _load(path: Path, allow_lambda: bool) -> Any:
    try:
        with _in_lower_case(path) as file:
            return tf.keras.models.load_model(file, compile=False, safe_mode=not allow_lambda)
    except Exception as error:  # the boundary: Keras raises whatever it meets
        text = reason(error)
        if not allow_lambda and ("safe_mode" in text or "Lambda" in text):
            raise ModelLoadError(
                f"{path.name}: it has layers that are Python code, which can be any: start with"
                " --allow_lambda if you trust the source"
            ) from error
        raise ModelLoadError(
            f"{path.name}: cannot be loaded: {text} (this is Keras {tf.keras.__version__})"
        ) from error


@contextmanager
def _in_lower_case(path: Path) -> Iterator[Path]:
    """Give the file under a name whose suffix Keras knows: it takes `.H5` for something else."""
    if path.suffix.islower():
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder, f"model{path.suffix.lower()}")
        link.symlink_to(path.absolute())
        yield link


def _trace(model: Any, specs: list[tf.TensorSpec], path: Path) -> Any:
    """Give the concrete function of a model, which takes its inputs and gives a list of outputs."""
    # A Sequential does not tell: it takes its only input as it is.
    structure = getattr(model, "input", model.inputs[0])

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def flat(*tensors: tf.Tensor) -> list[tf.Tensor]:
        results = model(tf.nest.pack_sequence_as(structure, list(tensors)), training=False)
        return list(tf.nest.flatten(results))

    try:
        return flat.get_concrete_function()
    except Exception as error:  # the boundary: whatever the code of a layer raises
        raise ModelLoadError(f"{path.name}: cannot be called: {reason(error)}") from error


def _output_names(model: Any, n_outputs: int) -> list[str]:
    output = getattr(model, "output", None)
    if isinstance(output, Mapping):
        return sorted(output)
    last = model.layers[-1:] if n_outputs == 1 else []
    names = getattr(model, "output_names", [layer.name for layer in last])
    return _unique(list(names), n_outputs, "output")


def _unique(names: list[str], n_tensors: int, kind: str) -> list[str]:
    """Give the names that a model has for its tensors; numbers if these do not tell them apart."""
    return names if len(set(names)) == n_tensors else [f"{kind}_{i}" for i in range(n_tensors)]
