"""The V1 protocol's JSON: `{"instances": ...}` in, `{"predictions": ...}` out.

Source: KServe "V1 Protocol" and TensorFlow Serving "RESTful API", row and column format.
https://www.tensorflow.org/tfx/serving/api_rest#predict_api
"""

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from kserve.errors import InferenceError, InvalidInput
from kserve.listing import listing, quoted
from kserve.protocol.codec import encoded_json, frames, number_blocks, outputs
from kserve.protocol.codec.dtypes import NUMPY_DTYPES, from_np_dtype
from kserve.protocol.codec.encoded_json import EncodedJson, Writer
from kserve.protocol.codec.json_body import parse, read_parameters
from kserve.protocol.codec.json_numbers import narrow, tensor_from_list
from kserve.protocol.codec.number_blocks import NumberBlock
from kserve.protocol.infer_type import InferInput, InferRequest, InferResponse

# What the only tensor is called where the model names none or several.
_TENSOR_NAME: Final = "input-0"
_NUMBER_OR_NULL: Final = frozenset((int, float, type(None)))


class InputSpec(Protocol):
    """What has to be known of a model's input; `kserve.signature.TensorSpec` is one."""

    @property
    def name(self) -> str:
        """The input's name."""

    @property
    def datatype(self) -> str:
        """One of the protocol's datatypes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes, rows first; -1 is an axis of any length."""

    @property
    def exact(self) -> bool:
        """Whether the datatype is known; a guess is not enforced."""

    @property
    def is_ranked(self) -> bool:
        """Whether the axes are known; where not, any shape will do, that of a plain value too."""


def decode(body: bytes) -> Any:
    """Give the JSON value of a body, which is what a user's model gets.

    Raises:
        InvalidInput: The body is no JSON.
    """
    return parse(body)


def decode_tensors(
    body: bytes,
    model_name: str,
    inputs: Sequence[InputSpec],
    *,
    optional_inputs: Sequence[InputSpec] = (),
    is_table: bool = False,
) -> InferRequest:
    """Read rows, rows as objects, or columns as tensors.

    - `{"instances": [[1, 2], [3, 4]]}` and `[1, 2]`: one tensor, named as the model's only input,
      else "input-0".
    - The same with several inputs and as many values in each row: a tensor for each, by position.
    - `{"instances": [{"a": 1, "b": "x"}]}` and `{"inputs": {"a": [1], "b": ["x"]}}`: a tensor for
      each name; so are the forms of `frames`.

    `inputs` wins over `instances` where both are there, and may hold rows too.

    Args:
        body: The request's body.
        model_name: Goes into the request.
        inputs: What the model takes. A datatype of it holds for the tensor of that name, and for
            the only tensor of a model with one input; without one it is BOOL, INT64, UINT64, FP64
            or BYTES after the values.
        optional_inputs: What tensors beside the inputs may be; only a name makes one of these.
        is_table: The inputs are columns of one table, and one tensor of shape (n_rows, n_columns)
            may stand for them all: rows of numbers then stay together if all columns have one
            datatype.

    Raises:
        InvalidInput: The body is no JSON, has no rows, is ragged, or a value does not fit.
    """
    value = number_blocks.parse(body)
    if value is not None:
        try:
            return read_tensors(value, model_name, inputs, optional_inputs, is_table)
        except InvalidInput:
            # What a block refuses may still be good; the plain way knows and names the position.
            pass
    return read_tensors(parse(body), model_name, inputs, optional_inputs, is_table)


def read_tensors(
    value: Any,
    model_name: str,
    inputs: Sequence[InputSpec],
    optional_inputs: Sequence[InputSpec] = (),
    is_table: bool = False,
) -> InferRequest:
    """Read the tensors of a parsed body; see `decode_tensors`.

    Args:
        value: The value, in which bytes may stand where strings may.
        model_name: As for `decode_tensors`.
        inputs: As for `decode_tensors`.
        optional_inputs: As for `decode_tensors`.
        is_table: As for `decode_tensors`.

    Raises:
        InvalidInput: There are no rows, they are ragged, or a value does not fit.
    """
    if not isinstance(value, dict) or not ("instances" in value or "inputs" in value):
        raise InvalidInput('Expected "instances" or "inputs" in a JSON object')
    parameters = read_parameters(value, "the request")
    key = "inputs" if "inputs" in value else "instances"
    data = value[key]
    if key == "inputs" and isinstance(data, dict):
        tensors = _columns(data, inputs, optional_inputs)
    elif isinstance(data, list | NumberBlock):
        tensors = _rows(data, inputs, is_table)
    else:
        raise InvalidInput(
            f'Expected "{key}" to be a list' + (" or an object" if key == "inputs" else "")
        )
    return InferRequest(model_name, tensors, parameters=parameters)


def encode(value: Any) -> EncodedJson:
    """Write what a user's model returned; see `encoded_json.encode`.

    Raises:
        InferenceError: There is something in it that JSON cannot express.
    """
    return encoded_json.encode(value)


def encode_response(response: InferResponse, key: str = "predictions") -> EncodedJson:
    """Write `{"predictions": [...]}`: rows of the only output, or an object for each row.

    Where several outputs are no rows, as they differ in their length or have no axes, it is one
    object of whole outputs: `{"predictions": {"boxes": [[...], ...], "count": 2}}`.

    Args:
        response: What the model gave.
        key: What the rows are called.

    Raises:
        InferenceError: An output has no data, or data that disagrees with its shape or datatype.
        InvalidInput: A BYTES element is not UTF-8, which V1 cannot express.
    """
    columns = {}
    n_nulled = 0
    for output in response.outputs:
        columns[output.name], n_here = encoded_json.writable(outputs.as_array(output))
        n_nulled += n_here
    rows = next(iter(columns.values())) if len(columns) == 1 else _objects(columns)
    try:
        body = _write_rows(rows, key)
    except orjson.JSONEncodeError as error:
        cause = encoded_json.reason(error)
        if not isinstance(cause, UnicodeDecodeError):
            raise InferenceError(f"an output cannot be written as JSON: {cause}") from error
        raise InvalidInput(
            "an output holds bytes that are not UTF-8: use the V2 protocol with binary output"
        ) from error
    return EncodedJson(body, n_nulled)


def _objects(columns: dict[str, Any]) -> list[dict[str, Any]] | dict[str, Any]:
    lists = {
        name: values.tolist() if isinstance(values, np.ndarray) else values
        for name, values in columns.items()
    }
    are_lists = all(isinstance(values, list) for values in lists.values())
    if not are_lists or len(set(map(len, lists.values()))) > 1:
        return lists
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _write_rows(rows: Any, key: str) -> bytes:
    if isinstance(rows, np.ndarray):
        return orjson.dumps({key: rows}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Writer().dumps({key: rows})


def _rows(
    rows: list[Any] | NumberBlock, inputs: Sequence[InputSpec], is_table: bool
) -> list[InferInput]:
    if isinstance(rows, list) and not rows:
        return [_empty(spec) for spec in inputs] or [_tensor(_TENSOR_NAME, rows, None)]
    records = frames.as_records(rows) if isinstance(rows, list) else None
    if records is not None:
        return _columns(_by_key(records), inputs)
    if len(inputs) > 1:
        return _by_position(rows, inputs, is_table)
    name = inputs[0].name if inputs else _TENSOR_NAME
    return [_tensor(name, rows, inputs[0] if inputs else None)]


def _columns(
    columns: dict[str, Any],
    inputs: Sequence[InputSpec],
    optional_inputs: Sequence[InputSpec] = (),
) -> list[InferInput]:
    columns = frames.as_columns(columns)
    specs = {spec.name: spec for spec in optional_inputs}
    if len(inputs) == 1 and len(columns.keys() - specs) == 1:
        specs |= dict.fromkeys(columns.keys() - specs, inputs[0])
    specs |= {spec.name: spec for spec in inputs}
    return [_column(name, values, specs.get(name)) for name, values in columns.items()]


def _column(name: str, values: Any, spec: InputSpec | None) -> InferInput:
    if isinstance(values, list | NumberBlock):
        return _tensor(name, values, spec)
    if spec is None or (spec.shape and spec.is_ranked) or isinstance(values, dict):
        raise InvalidInput(f"input {name!r}: expected a list of values")
    scalar = _tensor(name, [values], spec)
    scalar.shape = []
    return scalar


def _by_key(rows: list[Any]) -> dict[str, list[Any]]:
    keys = list(rows[0])
    if set(map(type, rows)) != {dict} or set(map(len, rows)) != {len(keys)}:
        raise InvalidInput(_unlike_first(rows))
    try:
        return {key: list(map(itemgetter(key), rows)) for key in keys}
    except KeyError as error:
        raise InvalidInput(_unlike_first(rows)) from error


def _unlike_first(rows: list[Any]) -> str:
    keys = rows[0].keys()
    for index, row in enumerate(rows):
        if type(row) is not dict:
            return f"row {index} is no object, row 0 is one"
        if row.keys() != keys:
            missing = [key for key in keys if key not in row]
            unknown = [key for key in row if key not in keys]
            parts = [f"misses {quoted(missing)}"] if missing else []
            parts += [f"has an unknown {quoted(unknown)}"] if unknown else []
            return f"row {index} {' and '.join(parts)}: every row must have the keys of row 0"
    raise AssertionError("the rows are alike")


def _by_position(
    rows: list[Any] | NumberBlock, inputs: Sequence[InputSpec], is_table: bool
) -> list[InferInput]:
    matrix_spec = _matrix_spec(inputs) if is_table else None
    if isinstance(rows, NumberBlock):
        return _block_by_position(rows, inputs, matrix_spec)
    for index, row in enumerate(rows):
        if type(row) is not list or len(row) != len(inputs):
            got = len(row) if type(row) is list else "no list"
            names = listing([spec.name for spec in inputs])
            raise InvalidInput(f"row {index}: expected {len(inputs)} values ({names}), got {got}")
    if matrix_spec and set(map(type, chain.from_iterable(rows))) <= _NUMBER_OR_NULL:
        return [_tensor(_TENSOR_NAME, rows, matrix_spec)]
    return [
        _tensor(spec.name, list(column), spec)
        for spec, column in zip(inputs, zip(*rows, strict=True), strict=True)
    ]


def _block_by_position(
    rows: NumberBlock, inputs: Sequence[InputSpec], matrix_spec: InputSpec | None
) -> list[InferInput]:
    if rows.shape[1:] != (len(inputs),):
        raise InvalidInput("the plain way names the row")
    if matrix_spec:
        return [_tensor(_TENSOR_NAME, rows, matrix_spec)]
    if not all(spec.exact and spec.datatype in ("FP32", "FP64") for spec in inputs):
        raise InvalidInput("the plain way looks at each column")
    columns = np.ascontiguousarray(rows.to_array("FP64").reshape(rows.shape).T)
    try:
        return [
            _infer_input(spec.name, narrow(column, NUMPY_DTYPES[spec.datatype]))
            for spec, column in zip(inputs, columns, strict=True)
        ]
    except OverflowError as error:
        raise InvalidInput("the plain way names the value") from error


def _matrix_spec(inputs: Sequence[InputSpec]) -> InputSpec | None:
    is_uniform = len({(spec.datatype, spec.exact) for spec in inputs}) == 1
    return inputs[0] if is_uniform else None


def _tensor(name: str, data: list[Any] | NumberBlock, spec: InputSpec | None) -> InferInput:
    datatype = spec.datatype if spec is not None and spec.exact else None
    if isinstance(data, NumberBlock):
        return _infer_input(name, data.to_array(datatype).reshape(data.shape))
    if data and set(map(type, data)) == {bool} and datatype != "BYTES":
        # V1 names no datatype, so these are BOOL, which the signature turns into any number.
        datatype = None
    owner = f"input {name!r}"
    return _infer_input(name, tensor_from_list(data, datatype, owner, null_text=True))


def _empty(spec: InputSpec) -> InferInput:
    shape = (0, *(max(length, 0) for length in spec.shape[1:]))
    return _infer_input(spec.name, np.empty(shape, dtype=NUMPY_DTYPES[spec.datatype]))


def _infer_input(name: str, array: NDArray[Any]) -> InferInput:
    datatype = from_np_dtype(array.dtype)
    assert datatype is not None
    return InferInput.from_array(name, list(array.shape), datatype, array)
