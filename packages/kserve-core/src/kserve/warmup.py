"""The request that a model answers before it is ready: no client waits for first-time work."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kserve.artifact import WARMUP_FILE, local_path
from kserve.errors import ModelLoadError
from kserve.logging import logger
from kserve.model import TensorModel
from kserve.protocol.codec import v2_json
from kserve.protocol.codec.dtypes import NUMPY_DTYPES, from_np_dtype
from kserve.protocol.infer_type import InferInput, InferRequest
from kserve.signature import TensorSpec


def warm_up(model: TensorModel) -> None:
    """Send a model its `warmup.json`, or else its `example_row`, or else a row of zeros.

    One whose calls change it gets what its `warmup.json` says, and nothing else.

    Raises:
        ModelLoadError: The model cannot answer its `warmup.json`. An invented row that it cannot
            answer only leaves a warning.
    """
    path = None if model.model_dir is None else local_path(model.model_dir) / WARMUP_FILE
    if path is not None and path.is_file():
        _send_file(model, path)
    elif model.signature.inputs and not model.is_stateful:
        _send_invented(model)


def _send_file(model: TensorModel, path: Path) -> None:
    try:
        may_be_empty = model.signature.may_be_empty
        model.infer(v2_json.decode(path.read_bytes(), model.name, may_be_empty=may_be_empty))
    except Exception as exc:
        raise ModelLoadError(f"{path}: the warm-up request failed: {exc}") from exc


def _send_invented(model: TensorModel) -> None:
    try:
        row = model.example_row() or {spec.name: _invent(spec) for spec in model.signature.inputs}
        inputs = [
            InferInput(name, list(array.shape), _datatype(array), array)
            for name, array in row.items()
        ]
        model.infer(InferRequest(model.name, inputs))
    except Exception as exc:
        logger.warning(
            "Model %s: an invented warm-up request failed (%s); put a %s beside the artifact",
            model.name,
            exc,
            WARMUP_FILE,
        )


def _invent(spec: TensorSpec) -> NDArray[Any]:
    shape = [1 if axis == -1 else axis for axis in spec.shape]
    fill = "" if spec.datatype == "BYTES" else 0
    return np.full(shape, fill, NUMPY_DTYPES[spec.datatype])


def _datatype(array: NDArray[Any]) -> str:
    datatype = from_np_dtype(array.dtype)
    assert datatype is not None
    return datatype
