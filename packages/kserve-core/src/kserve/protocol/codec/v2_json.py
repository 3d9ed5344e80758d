"""The V2 protocol's JSON: inference requests and responses without binary data.

Source: Open Inference Protocol v2, "Inference Request JSON Object" and "Tensor Data".
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec import number_blocks, outputs
from kserve.protocol.codec.arrays import decode_texts
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.codec.encoded_json import EncodedJson, writable
from kserve.protocol.codec.json_body import parse, read_parameters
from kserve.protocol.codec.json_numbers import MAX_AXES, convert, flatten, is_regrouping
from kserve.protocol.codec.number_blocks import NumberBlock
from kserve.protocol.infer_type import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)

_BINARY_DATA_SIZE: Final = "binary_data_size"

# numpy refuses an empty array whose other axes multiply to more bytes than an address can count.
_MAX_EMPTY: Final = int(np.iinfo(np.intp).max) // 8


@dataclass(slots=True)
class InputHeader:
    """One entry of `inputs`, checked, with its data not yet read.

    Attributes:
        name: The input's name.
        shape: The length of each axis, none negative.
        datatype: One of the protocol's datatypes, upper case.
        parameters: As sent.
        data: The list under `data`, unread; None where there is none.
    """

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None
    data: list[Any] | NumberBlock | None


def decode(body: bytes, model_name: str, *, may_be_empty: bool = False) -> InferRequest:
    """Read a request whose tensors are all JSON.

    `data` may be flat or nested, in row-major order; `InferInput.data` gives it back as nested as
    it came.

    Args:
        body: The request's body.
        model_name: Goes into the request.
        may_be_empty: A request without inputs is one: the model needs none.

    Raises:
        InvalidInput: The body is no JSON or no request; the message names the input and the field.
    """
    return read_json(
        body,
        lambda value: read_request(value, model_name, read_json_input, may_be_empty=may_be_empty),
    )


def read_json(body: bytes, read: Callable[[Any], InferRequest]) -> InferRequest:
    """Parse a JSON document, large arrays of numbers as blocks, and read it.

    Args:
        body: The document.
        read: Makes the request of the value; called again if it refuses a value with blocks.

    Raises:
        InvalidInput: The document is no JSON, or `read` raises it.
    """
    value = number_blocks.parse(body)
    if value is not None:
        try:
            return read(value)
        except InvalidInput:
            # What a block refuses may still be good; the plain way knows and names the position.
            pass
    return read(parse(body))


def encode(response: InferResponse) -> EncodedJson:
    """Write a response, all outputs or the requested ones, as JSON with flat data.

    Members without a value are null, in KServe's order.

    Raises:
        InvalidInput: A requested output is not there; or an output is FP16 or holds bytes that are
            not UTF-8, both of which take the binary form.
        InferenceError: An output has no data, or data that disagrees with its shape or datatype;
            or a parameter cannot be written as JSON.
    """
    n_nulled = 0
    entries = []
    for output, _ in response.outputs_to_send():
        entry, n_here = json_entry(output)
        n_nulled += n_here
        entries.append(entry)
    document = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "parameters": response.parameters or None,
        "outputs": entries,
    }
    try:
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise InferenceError(f"the response cannot be written as JSON: {error}") from error
    return EncodedJson(body, n_nulled)


def json_entry(output: InferOutput) -> tuple[dict[str, Any], int]:
    """Give an output's entry with flat data, and how many of its values are null.

    Raises:
        InvalidInput: The output is FP16 or holds bytes that are not UTF-8.
        InferenceError: It has no data, or data that disagrees with its shape or datatype.
    """
    data, n_nulled = _json_data(output)
    entry = {
        "name": output.name,
        "shape": list(output.shape),
        "datatype": output.datatype,
        "parameters": _json_parameters(output),
        "data": data,
    }
    return entry, n_nulled


def read_request(
    value: Any,
    model_name: str,
    read_input: Callable[[InputHeader], InferInput],
    *,
    may_be_empty: bool = False,
) -> InferRequest:
    """Check the JSON value of a request and read its inputs in their order.

    Args:
        value: The parsed JSON.
        model_name: Goes into the request.
        read_input: Makes the tensor of each input.
        may_be_empty: A list without inputs is one.

    Raises:
        InvalidInput: A field is missing or of the wrong type, a name comes twice, or `read_input`
            raises it.
    """
    if not isinstance(value, dict):
        raise InvalidInput("expected an inference request, a JSON object")
    request_id = value.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidInput(f"expected 'id' to be a string, got {request_id!r}")
    headers = _read_headers(value, may_be_empty)
    parameters = read_parameters(value, "the request")
    if parameters:
        _check_flag(parameters, "binary_data_output", "the request")
    return InferRequest(
        model_name,
        [read_input(header) for header in headers],
        request_id=request_id,
        parameters=parameters,
        request_outputs=_read_requested_outputs(value),
    )


def read_json_input(header: InputHeader) -> InferInput:
    """Make the tensor of an input whose data is JSON.

    Raises:
        InvalidInput: The data is missing, disagrees with the shape, or does not fit the datatype.
    """
    owner = f"input {header.name!r}"
    if header.parameters and _BINARY_DATA_SIZE in header.parameters:
        raise InvalidInput(
            f"{owner}: parameter 'binary_data_size' announces binary data: such a request needs "
            "the header Inference-Header-Content-Length"
        )
    if header.data is None:
        raise InvalidInput(f"{owner}: 'data' is missing")
    if header.datatype == "FP16":
        raise InvalidInput(
            f"{owner}: Receiving FP16 data via JSON is not supported, use the binary data format"
        )
    array = _read_data(header.data, header, owner)
    return InferInput.from_array(
        header.name, header.shape, header.datatype, array, header.parameters
    )


def _read_data(data: list[Any] | NumberBlock, header: InputHeader, owner: str) -> NDArray[Any]:
    """Give the data as nested as it came."""
    if isinstance(data, NumberBlock):
        nesting = data.shape
        _check_nesting(prod(nesting), nesting, header.shape, owner)
        return data.to_array(header.datatype).reshape(nesting)
    values, nesting = flatten(data, owner)
    _check_nesting(len(values), nesting, header.shape, owner)
    return convert(values, nesting, header.datatype, owner).reshape(nesting)


def _check_nesting(n_values: int, nesting: tuple[int, ...], shape: list[int], owner: str) -> None:
    expected = prod(shape)
    if n_values != expected:
        raise InvalidInput(f"{owner}: shape {shape} holds {expected} values, got {n_values}")
    if len(nesting) > 1 and n_values and not is_regrouping(nesting, shape):
        raise InvalidInput(f"{owner}: shape {shape} disagrees with data nested as {list(nesting)}")


def _read_headers(value: dict[str, Any], may_be_empty: bool) -> list[InputHeader]:
    inputs = value.get("inputs")
    if not isinstance(inputs, list) or not (inputs or may_be_empty):
        raise InvalidInput("expected 'inputs', a list of at least one input")
    headers = [_read_header(item, index) for index, item in enumerate(inputs)]
    if len(headers) > 1:
        _check_unique((header.name for header in headers), "input")
    return headers


def _read_header(item: Any, index: int) -> InputHeader:
    name = _read_name(item, "inputs", index)
    owner = f"input {name!r}"
    data = item.get("data")
    if not isinstance(data, list | NumberBlock) and "data" in item:
        raise InvalidInput(f"{owner}: expected 'data' to be a list")
    datatype = item.get("datatype")
    if not isinstance(datatype, str):
        raise InvalidInput(f"{owner}: expected 'datatype', a string, {_got(item, 'datatype')}")
    upper = datatype.upper()
    if upper not in NUMPY_DTYPES:
        raise InvalidInput(
            f"{owner}: unknown datatype {datatype!r}, expected one of {', '.join(NUMPY_DTYPES)}"
        )
    shape = _read_shape(item, owner)
    return InputHeader(name, shape, upper, read_parameters(item, owner), data)


def _read_shape(item: dict[str, Any], owner: str) -> list[int]:
    shape = item.get("shape")
    if not isinstance(shape, list) or not set(map(type, shape)) <= {int}:
        raise InvalidInput(
            f"{owner}: expected 'shape', a list of whole numbers, {_got(item, 'shape')}"
        )
    if len(shape) > MAX_AXES:
        raise InvalidInput(f"{owner}: shape has {len(shape)} axes, expected at most {MAX_AXES}")
    if min(shape, default=0) < 0:
        raise InvalidInput(f"{owner}: shape {shape} has a negative axis")
    if 0 in shape and prod(filter(None, shape)) > _MAX_EMPTY:
        raise InvalidInput(f"{owner}: shape {shape} is too large")
    return shape


def _read_requested_outputs(value: dict[str, Any]) -> list[RequestedOutput] | None:
    items = value.get("outputs")
    if items is None:
        return None
    if not isinstance(items, list):
        raise InvalidInput("expected 'outputs' to be a list")
    names = [_read_name(item, "outputs", index) for index, item in enumerate(items)]
    _check_unique(names, "output")
    return [_read_requested_output(name, item) for name, item in zip(names, items, strict=True)]


def _read_requested_output(name: str, item: dict[str, Any]) -> RequestedOutput:
    owner = f"output {name!r}"
    parameters = read_parameters(item, owner)
    if parameters:
        _check_flag(parameters, "binary_data", owner)
    return RequestedOutput(name, parameters)


def _check_flag(parameters: dict[str, Any], name: str, owner: str) -> None:
    flag = parameters.get(name, False)
    if not isinstance(flag, bool):
        raise InvalidInput(f"{owner}: expected parameter {name!r} to be a boolean, got {flag!r}")


def _read_name(item: Any, field: str, index: int) -> str:
    if not isinstance(item, dict):
        raise InvalidInput(f"{field}[{index}]: expected an object")
    name = item.get("name")
    if not isinstance(name, str):
        raise InvalidInput(f"{field}[{index}]: expected 'name', a string, {_got(item, 'name')}")
    return name


def _check_unique(names: Iterable[str], kind: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInput(f"{kind} {name!r} comes twice")
        seen.add(name)


def _got(item: dict[str, Any], field: str) -> str:
    if field not in item:
        return "it is missing"
    return f"got {str(item[field])[:64]}"


def _json_data(output: InferOutput) -> tuple[Any, int]:
    owner = f"output {output.name!r}"
    if output.datatype == "FP16":
        raise InvalidInput(
            f"{owner}: Sending FP16 data via JSON is not supported, ask for binary output"
        )
    array = outputs.as_array(output).reshape(-1)
    if output.datatype != "BYTES":
        return writable(array)
    try:
        return decode_texts(array), 0
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{owner}: BYTES that are not UTF-8 cannot be JSON, ask for binary output"
        ) from error


def _json_parameters(output: InferOutput) -> dict[str, Any] | None:
    if not output.parameters:
        return None
    parameters = {
        name: value for name, value in output.parameters.items() if name != _BINARY_DATA_SIZE
    }
    return parameters or None
