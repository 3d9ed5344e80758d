"""V1 in the words of TensorFlow Serving: rows and columns, base64, signatures, its metadata.

Beside what it takes, all of what KServe's V1 takes is read. Answers are its own but for NaN and
infinities, which are null here: JSON has no such numbers.

Source: TensorFlow Serving, "RESTful API", https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import orjson
from google.protobuf import json_format
from google.protobuf.message import Message
from numpy.typing import NDArray

from kserve.errors import InvalidInput
from kserve.model import SIGNATURE_NAME
from kserve.protocol.codec import encoded_json, number_blocks, outputs, v1_json
from kserve.protocol.codec.arrays import decode_texts
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.protocol.codec.json_body import parse, read_parameters
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
from kserve.signature import Signature

_ROWS: Final = "instances"
_COLUMNS: Final = "inputs"
_BASE64: Final = "b64"

# "Named tensors that have `_bytes` as a suffix in their name are considered to have binary values."
_BYTES_SUFFIX: Final = "_bytes"

SignatureOf = Callable[[Mapping[str, Any] | None], Signature]


class ServingRequest(InferRequest):
    """A request that remembers its form.

    Attributes:
        is_columnar: Its tensors came whole, under "inputs", and so go those of the answer.
    """

    is_columnar = False


def decode(body: bytes, model_name: str, signature_of: SignatureOf) -> ServingRequest:
    """Read a predict request.

    - `{"instances": [...]}`: a value for each row, or an object with one for each input.
    - `{"inputs": ...}`: the only input as a whole, or an object with each as a whole.
    - `{"b64": "..."}` stands for a string of any bytes wherever one may stand.
    - `"signature_name"` is the request's parameter of this name.

    Args:
        body: The request's body.
        model_name: Goes into the request.
        signature_of: Gives the signature that the parameters of a request choose.

    Raises:
        InvalidInput: The body is no JSON, has both forms or none, is ragged, or does not fit.
    """
    value = number_blocks.parse(body)
    if value is not None:
        try:
            return _read(value, body, model_name, signature_of)
        except InvalidInput:
            # What a block refuses may still be good; the plain way knows and names the position.
            pass
    return _read(parse(body), body, model_name, signature_of)


def encode(request: InferRequest, response: InferResponse) -> EncodedJson:
    """Write `{"predictions": [...]}` for rows, `{"outputs": ...}` for whole tensors.

    The only output has no name there. FP32 is written in as many digits as it has: 0.2.

    Args:
        request: What `decode` gave.
        response: What the model gave.

    Raises:
        InferenceError: An output has no data, or data that disagrees with its shape or datatype.
        InvalidInput: Text is not UTF-8, and the output's name does not end with "_bytes".
    """
    columns: dict[str, Any] = {}
    n_nulled = 0
    for output in response.outputs:
        columns[output.name], n_here = _writable(output)
        n_nulled += n_here
    is_columnar = isinstance(request, ServingRequest) and request.is_columnar
    if len(columns) == 1:
        (value,) = columns.values()
    else:
        value = columns if is_columnar else _objects(columns)
    key = "outputs" if is_columnar else "predictions"
    return EncodedJson(orjson.dumps({key: value}, option=orjson.OPT_SERIALIZE_NUMPY), n_nulled)


def metadata(definitions: Mapping[str, Message]) -> dict[str, Any]:
    """Give the signatures as the metadata route has them.

    Args:
        definitions: The `SignatureDef` of each, by name.
    """
    entries = {
        name: json_format.MessageToDict(
            definition,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        for name, definition in definitions.items()
    }
    # A message in a message of the same name.
    return {"signature_def": {"signature_def": entries}}


def _read(value: Any, body: bytes, model_name: str, signature_of: SignatureOf) -> ServingRequest:
    if not isinstance(value, dict) or (_ROWS in value) == (_COLUMNS in value):
        raise InvalidInput(
            f'Expected either "{_ROWS}" or "{_COLUMNS}" in a JSON object'
            + (", got both" if isinstance(value, dict) and _ROWS in value else "")
        )
    parameters = _parameters(value)
    signature = signature_of(parameters)
    key = _COLUMNS if _COLUMNS in value else _ROWS
    data = _with_bytes(value[key]) if b"b64" in body else value[key]
    if key == _COLUMNS:
        data = _as_columns(data, signature)
    request = v1_json.read_tensors(
        {key: data}, model_name, signature.inputs, signature.optional_inputs
    )
    serving = ServingRequest(model_name, request.inputs, parameters=parameters)
    serving.is_columnar = key == _COLUMNS
    return serving


def _parameters(value: dict[str, Any]) -> dict[str, Any] | None:
    parameters = read_parameters(value, "the request")
    name = value.get(SIGNATURE_NAME)
    if name is None:
        return parameters
    if not isinstance(name, str):
        raise InvalidInput(f"expected {SIGNATURE_NAME!r} to be a string")
    # Empty is unset, as in any message of TensorFlow Serving's.
    return {**(parameters or {}), SIGNATURE_NAME: name} if name else parameters


def _as_columns(data: Any, signature: Signature) -> Any:
    """Name the only input, which may be a plain value; what is named, or rows, is as it was."""
    is_named = isinstance(data, dict) or (isinstance(data, list) and data and type(data[0]) is dict)
    if is_named or len(signature.inputs) != 1:
        return data
    return {signature.inputs[0].name: data}


def _with_bytes(value: Any) -> Any:
    """Put the bytes in the place of each object that stands for some."""
    if isinstance(value, list):
        return [_with_bytes(each) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not isinstance(value.get(_BASE64), str):
        return {name: _with_bytes(each) for name, each in value.items()}
    # White space, and no padding at the end, are taken there too.
    text = "".join(value[_BASE64].split())
    padding = "" if text.endswith("=") else "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text + padding, validate=True)
    except (binascii.Error, ValueError) as error:
        got = repr(text[:64])
        raise InvalidInput(f'expected base64 in {{"b64": ...}}, got {got}: {error}') from error


def _writable(output: InferOutput) -> tuple[Any, int]:
    """Give what orjson writes for an output, and how many of its numbers become null."""
    array = outputs.as_array(output)
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        # The core widens it to FP64 first, and writes 0.20000000298023224.
        array = np.asarray(array, dtype=np.float32, order="C")
        return array if array.ndim else array[()], array.size - int(np.isfinite(array).sum())
    if output.datatype != "BYTES":
        return encoded_json.writable(array)
    return _texts(output.name, array), 0


def _texts(name: str, array: NDArray[Any]) -> Any:
    if name.endswith(_BYTES_SUFFIX):
        values: list[Any] = [{_BASE64: _base64(each)} for each in array.flat]
    else:
        try:
            values = decode_texts(array.reshape(-1))
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"output {name!r} holds bytes that are not UTF-8: V1 carries them as base64 if the"
                " model calls it NAME_bytes; the V2 protocol does in binary form"
            ) from error
    texts = np.empty(array.size, np.object_)
    texts[:] = values
    return texts.reshape(array.shape).tolist()


def _base64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def _objects(columns: dict[str, Any]) -> Any:
    """Give an object for each row; where outputs are no rows, one of whole outputs."""
    columns = {name: _rows(values) for name, values in columns.items()}
    are_lists = all(isinstance(values, list) for values in columns.values())
    if not are_lists or len(set(map(len, columns.values()))) > 1:
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _rows(values: Any) -> Any:
    if not isinstance(values, np.ndarray):
        return values
    # A scalar of FP32 keeps its digits, where a float would get more.
    return list(values) if values.dtype == np.float32 else values.tolist()
