"""What a V1 or V2 payload holds for a model, and the response to it.

For user code; our own servers read named tensors and need neither.
"""

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kserve.dataframes import import_pandas
from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec.arrays import decode_texts
from kserve.protocol.codec.dtypes import from_np_dtype
from kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse

if TYPE_CHECKING:
    import pandas as pd


def get_predict_input(
    payload: dict[str, Any] | InferRequest, columns: list[str] | None = None
) -> "NDArray[Any] | pd.DataFrame | list[str]":
    """Give what a model of scikit-learn's kind takes: an array, a DataFrame or a list of texts.

    A V1 payload is read from "inputs", or else "instances". Rows that are dicts become one
    DataFrame; rows of strings stay a list; other rows become an array (n_rows, ...), of objects if
    they mix strings with numbers. An array or a DataFrame, as `preprocess` may return, is kept.

    A V2 request becomes a DataFrame if its parameter `content_type` is "pd", or if it has several
    inputs; each must then be one column, shape (n_rows,) or (n_rows, 1). A single input becomes its
    array, or for text of such a shape a list of `str`.

    Args:
        payload: The payload that `predict` receives.
        columns: The columns, in order, of the DataFrame that a V1 payload of dicts becomes.

    Raises:
        InvalidInput: The payload is of another type, or its rows or inputs do not fit together.
    """
    if isinstance(payload, dict):
        return _from_instances(payload, columns)
    if isinstance(payload, InferRequest):
        return _from_request(payload)
    raise _unsupported(payload)


def get_predict_response(
    payload: dict[str, Any] | InferRequest, result: Any, model_name: str
) -> dict[str, Any] | InferResponse:
    """Put a model's result into the response to `payload`.

    The response to a V2 request has one output, "output-0", or for a DataFrame one per column, and
    carries the request's id and its wishes about outputs and binary form.

    Args:
        payload: The payload that `predict` received.
        result: An array, a DataFrame, or a list.
        model_name: The name of the model that answers.

    Raises:
        InvalidInput: The payload is neither a dict nor an `InferRequest`.
        InferenceError: The result has a dtype that the protocol cannot carry, or is ragged.
    """
    if isinstance(payload, dict):
        return {"predictions": _predictions(result)}
    if isinstance(payload, InferRequest):
        return InferResponse(
            response_id=payload.id or str(uuid.uuid4()),
            model_name=model_name,
            infer_outputs=_outputs(result),
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )
    raise _unsupported(payload)


def _unsupported(payload: object) -> InvalidInput:
    return InvalidInput(
        f"unsupported payload type {type(payload).__name__}, expected a JSON object or a V2 request"
    )


def _from_instances(
    payload: dict[str, Any], columns: list[str] | None
) -> "NDArray[Any] | pd.DataFrame | list[str]":
    instances = payload["inputs"] if "inputs" in payload else payload.get("instances")
    if instances is None:
        raise InvalidInput('expected "instances" or "inputs" in the payload, got neither')
    if not isinstance(instances, list):
        # What preprocess made of the request: an array or a DataFrame.
        if hasattr(instances, "shape"):
            return instances
        raise InvalidInput(f'expected "instances" to be a list, got {type(instances).__name__}')
    if not instances:
        return np.array(instances)
    first = instances[0]
    if isinstance(first, dict) or (
        isinstance(first, list) and first and isinstance(first[0], dict)
    ):
        return _frame(instances, columns)
    if isinstance(first, str):
        return instances
    return _rows(instances)


def _rows(instances: list[Any]) -> NDArray[Any]:
    # By way of objects: numpy would turn the numbers beside a string into strings.
    objects = np.array(instances, dtype=np.object_)
    types = set(map(type, objects.ravel().tolist()))
    if types & {str, bytes}:
        return objects
    try:
        return np.array(instances)
    except ValueError as error:
        raise InvalidInput(f"expected rows of equal length, got ragged rows: {error}") from error


def _frame(instances: list[Any], columns: list[str] | None) -> "pd.DataFrame":
    rows = [row for item in instances for row in (item if isinstance(item, list) else [item])]
    types = set(map(type, rows))
    if types != {dict}:
        names = sorted(kind.__name__ for kind in types)
        raise InvalidInput(f"expected each row to be an object, got rows of types {names}")
    pd = import_pandas()
    cells = {kind for row in rows for kind in map(type, row.values())}
    if not cells & {list, dict}:
        return pd.DataFrame(rows, columns=columns)
    try:
        # Each item is a small table by itself: {column: [value, ...]} or {column: {index: value}}.
        tables = [pd.DataFrame(row, columns=columns) for row in rows]
    except ValueError as error:
        raise InvalidInput(f"expected columns of equal length in each object: {error}") from error
    return pd.concat(tables, axis=0)


def _from_request(request: InferRequest) -> "NDArray[Any] | pd.DataFrame | list[str]":
    if not request.inputs:
        raise InvalidInput("expected at least one input, got none")
    if len(request.inputs) > 1 or (request.parameters or {}).get("content_type") == "pd":
        return request.as_dataframe()
    return _single(request.inputs[0])


def _single(tensor: InferInput) -> "NDArray[Any] | list[str]":
    array = tensor.as_numpy()
    if tensor.datatype != "BYTES" or array.size == 0:
        return array
    try:
        texts = decode_texts(array)
    except UnicodeDecodeError:
        return array
    if array.shape[1:] in ((), (1,)) and array.ndim > 0:
        return texts
    decoded = np.empty(len(texts), dtype=np.object_)
    decoded[:] = texts
    return decoded.reshape(array.shape)


def _predictions(result: Any) -> Any:
    if isinstance(result, np.ndarray):
        return result.tolist()
    if _is_frame(result):
        return result.to_dict(orient="records")
    return result


def _outputs(result: Any) -> list[InferOutput]:
    if _is_frame(result):
        return [_output(str(name), column.to_numpy()) for name, column in result.items()]
    try:
        array = np.asarray(result)
    except ValueError as error:
        raise InferenceError(f"the model's result is ragged: {error}") from error
    return [_output("output-0", array)]


def _output(name: str, array: NDArray[Any]) -> InferOutput:
    datatype = from_np_dtype(array.dtype)
    if datatype is None:
        raise InferenceError(f"output {name!r}: no datatype of the protocol holds {array.dtype}")
    return InferOutput.from_array(name, list(array.shape), datatype, array.ravel())


def _is_frame(result: object) -> bool:
    # By shape of the interface, so that pandas is imported by those alone who use it.
    return hasattr(result, "to_dict") and hasattr(result, "columns")
