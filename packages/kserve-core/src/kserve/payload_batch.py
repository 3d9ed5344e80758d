"""The payloads of a user's model as one call of its `predict`, where `batching = True`."""

from collections.abc import Awaitable, Callable, Hashable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import numpy as np

from kserve.errors import InvalidInput, RowCountError
from kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse

# payload, response headers to fill -> result, or something to await
Predict = Callable[[Any, dict[str, str]], Any]

# A result and the response headers that go with it.
Answer = tuple[Any, dict[str, str]]

# Parameters that say how a tensor is, or is to be, sent.
_WIRE_PARAMETERS = ("binary_data", "binary_data_output", "binary_data_size")

# Where V1 has its rows.
_ROWS_KEY = "instances"

# Looking at this many parts of a payload takes 30 ms of the event loop; an image of 224 x 224
# pixels in nested lists has 50,000.
_MAX_PARTS: Final = 1 << 16


@dataclass(slots=True)
class PayloadCall:
    """One payload on its way to `predict`.

    Attributes:
        payload: What `preprocess` and `validate` left of the request.
        key: Payloads of equal keys may join; None runs alone.
        n_rows: Its rows, at least 1.
    """

    payload: Any
    key: Hashable
    n_rows: int


class PayloadBatches:
    """Runs the payloads of one model together.

    Args:
        predict: Calls the model's `predict`.
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    @staticmethod
    def prepare(payload: Any) -> PayloadCall:
        """Look at which others a payload may join: none if it is too large or deep to look at."""
        look = _Look()
        try:
            if isinstance(payload, InferRequest):
                key, n_rows = _request_key(payload, look)
            else:
                key, n_rows = _rows_key(payload, look)
        except (_TooManyParts, RecursionError):
            key, n_rows = None, 1
        return PayloadCall(payload, key, max(n_rows, 1))

    def run(self, calls: list[PayloadCall]) -> list[Answer]:
        """Call a plain `predict` once for payloads of equal keys; blocks.

        Raises:
            RowCountError: The result has not as many rows as the payloads.
            Exception: Whatever `predict` raises.
        """
        headers: dict[str, str] = {}
        return _split(self._predict(_join(calls), headers), headers, calls)

    async def run_async(self, calls: list[PayloadCall]) -> list[Answer]:
        """Call an async `predict`; as `run`."""
        headers: dict[str, str] = {}
        result: Awaitable[Any] = self._predict(_join(calls), headers)
        return _split(await result, headers, calls)


class _TooManyParts(Exception):
    """Ends the look at a payload that would take too long."""


class _Look:
    """A look at one payload on the event loop, at no more than so many of its parts."""

    __slots__ = ("_n_left",)

    def __init__(self) -> None:
        self._n_left = _MAX_PARTS

    def is_plain(self, value: Any) -> bool:
        """Say whether `repr` tells a value from any other; it abbreviates an array, for one."""
        self._count()
        if isinstance(value, dict):
            return all(self.is_plain(item) for pair in value.items() for item in pair)
        if isinstance(value, list):
            return all(map(self.is_plain, value))
        return value is None or type(value) in (bool, int, float, str)

    def kind(self, value: Any) -> Hashable:
        """Describe a row: how it is nested, its columns, and whether they hold text or numbers."""
        self._count()
        if isinstance(value, Mapping):
            columns = ((str(name), self.kind(item)) for name, item in value.items())
            return "columns", tuple(sorted(columns, key=itemgetter(0)))
        if isinstance(value, list):
            # An integer in a column of floats is one by accident of its value.
            is_numeric = set(map(type, value)) <= {int, float}
            return "list", len(value), "number" if is_numeric else tuple(map(self.kind, value))
        if isinstance(value, np.ndarray):
            return value.dtype.str, value.shape
        return "number" if type(value) in (int, float) else type(value).__name__

    def common_kind(self, rows: list[Any]) -> Hashable:
        """Give the kind of all rows; None if they differ: one such row would change its neighbours.

        A text among numbers makes texts of them all in an array, a missing column a NaN in a table.
        """
        kinds = set(map(self.kind, rows))
        return kinds.pop() if len(kinds) == 1 else None

    def _count(self) -> None:
        self._n_left -= 1
        if self._n_left < 0:
            raise _TooManyParts


def _rows_key(payload: Any, look: _Look) -> tuple[Hashable, int]:
    """Give what two V1 payloads must have in common, and the rows; None for one that runs alone."""
    rows = payload.get(_ROWS_KEY) if isinstance(payload, dict) else None
    if isinstance(rows, np.ndarray) and rows.ndim:
        kind: Hashable = rows.dtype, rows.shape[1:]
    elif isinstance(rows, list):
        kind = look.common_kind(rows)
    else:
        return None, 1
    others = {key: value for key, value in payload.items() if key != _ROWS_KEY}
    if len(rows) == 0 or kind is None or not look.is_plain(others):
        return None, 1
    return ("v1", kind, repr(others)), len(rows)


def _request_key(request: InferRequest, look: _Look) -> tuple[Hashable, int]:
    """Give what two V2 requests must have in common, and the rows; None for one that runs alone."""
    counts = {tuple(tensor.shape[:1]) for tensor in request.inputs}
    if len(counts) != 1 or counts <= {(), (0,)}:
        return None, 1
    outputs = request.request_outputs or []
    inputs = [(tensor, _own_parameters(tensor.parameters)) for tensor in request.inputs]
    parameters = _own_parameters(request.parameters)
    if not all(map(look.is_plain, [parameters, *(own for _, own in inputs)])):
        return None, 1
    key = (
        *("v2", request.model_name, request.model_version, bool(request.from_grpc)),
        tuple((*_form(tensor), tuple(tensor.shape[1:]), repr(own)) for tensor, own in inputs),
        repr(parameters),
        # None is all of them, as an empty list is.
        tuple((output.name, repr(_own_parameters(output.parameters))) for output in outputs),
    )
    return key, counts.pop()[0]


def _form(tensor: InferInput) -> tuple[str, str, bool]:
    # Texts are bytes in binary form, and what was sent otherwise.
    return tensor.name, tensor.datatype, tensor.datatype == "BYTES" and tensor.is_binary


def _own_parameters(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Leave out what says how tensors were sent: requests of other wires may join."""
    return {
        name: value for name, value in (parameters or {}).items() if name not in _WIRE_PARAMETERS
    }


def _join(calls: list[PayloadCall]) -> Any:
    first = calls[0].payload
    if len(calls) == 1:
        return first
    payloads = [call.payload for call in calls]
    if isinstance(first, InferRequest):
        return _join_requests(payloads)
    rows = [payload[_ROWS_KEY] for payload in payloads]
    joined = np.concatenate(rows) if isinstance(rows[0], np.ndarray) else list(chain(*rows))
    return {**first, _ROWS_KEY: joined}


def _join_requests(requests: list[InferRequest]) -> InferRequest:
    first = requests[0]
    inputs = []
    for i, tensor in enumerate(first.inputs):
        arrays = [request.inputs[i].as_numpy() for request in requests]
        array = np.concatenate(arrays)
        inputs.append(
            InferInput.from_array(
                tensor.name,
                list(array.shape),
                tensor.datatype,
                array,
                _own_parameters(tensor.parameters),
            )
        )
    return InferRequest(
        first.model_name,
        inputs,
        parameters=first.parameters,
        request_outputs=first.request_outputs,
        from_grpc=bool(first.from_grpc),
        model_version=first.model_version,
    )


def _split(result: Any, headers: dict[str, str], calls: list[PayloadCall]) -> list[Answer]:
    if len(calls) == 1:
        return [(result, headers)]
    if isinstance(result, dict) and "outputs" in result:
        result = _read_result(result)
    results: list[Any]
    if isinstance(result, InferResponse):
        results = _split_response(result, calls)
    elif isinstance(result, dict):
        pieces = _split_rows(result.get("predictions"), calls)
        # What a postprocess writes into one must not reach another client.
        results = [{**deepcopy(_others(result)), "predictions": piece} for piece in pieces]
    else:
        results = _split_rows(result, calls)
    return [(part, dict(headers)) for part in results]


def _others(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "predictions"}


def _read_result(result: dict[str, Any]) -> InferResponse:
    try:
        return InferResponse.from_rest(result)
    except InvalidInput as exc:
        raise RowCountError(f"the model's result is no inference response: {exc}") from exc


def _split_rows(rows: Any, calls: list[PayloadCall]) -> list[Any]:
    n_rows = sum(call.n_rows for call in calls)
    if not isinstance(rows, list | tuple | np.ndarray) or len(rows) != n_rows:
        got = f"{len(rows)}" if hasattr(rows, "__len__") else type(rows).__name__
        raise RowCountError(f"expected {n_rows} predictions, one for each row, got {got}")
    pieces = []
    start = 0
    for call in calls:
        pieces.append(rows[start : start + call.n_rows])
        start += call.n_rows
    return pieces


def _split_response(response: InferResponse, calls: list[PayloadCall]) -> list[InferResponse]:
    arrays = [output.as_numpy().reshape(output.shape or (1,)) for output in response.outputs]
    pieces = [_split_rows(array, calls) for array in arrays]
    return [
        InferResponse(
            None,
            response.model_name,
            [
                InferOutput.from_array(
                    output.name,
                    list(piece[i].shape),
                    output.datatype,
                    piece[i].reshape(-1),
                    deepcopy(output.parameters),
                )
                for output, piece in zip(response.outputs, pieces, strict=True)
            ],
            response.model_version,
            parameters=deepcopy(response.parameters),
            use_binary_outputs=call.payload.use_binary_outputs,
            requested_outputs=call.payload.request_outputs,
        )
        for i, call in enumerate(calls)
    ]
