"""Requests and responses as messages, in both directions; no I/O.

Source: Open Inference Protocol v2,
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec.bytes_tensor import encode_bytes_tensor
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.grpc.contents import decode_contents, encode_contents
from kserve.protocol.grpc.grpc_predict_v2_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
)
from kserve.protocol.grpc.parameters import decode_parameters, encode_parameters
from kserve.protocol.infer_type import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from kserve.protocol.rest_body import AnyTensor
from kserve.protocol.tensor import BINARY_DATA_SIZE, Parameters, RawData, Tensor

# InferInputTensor and InferOutputTensor have the same fields.
_TensorMessage = Any

_RAW_INPUTS: Final = "raw_input_contents"
_RAW_OUTPUTS: Final = "raw_output_contents"


def decode_request(
    message: ModelInferRequest, raws: Sequence[RawData] | None = None
) -> InferRequest:
    """Read a request.

    Args:
        message: The request.
        raws: The raw form of each input; None takes those of the message.

    Raises:
        InvalidInput: An unknown datatype, a name that occurs twice, both forms of data, data that
            disagrees with shape or datatype, or raw data for more or fewer tensors.
    """
    raws = message.raw_input_contents if raws is None else raws
    return InferRequest(
        model_name=message.model_name,
        infer_inputs=_decode_tensors(InferInput, message.inputs, raws, _RAW_INPUTS),
        request_id=message.id or None,
        raw_inputs=raws,
        from_grpc=True,
        parameters=decode_parameters(message.parameters),
        request_outputs=[
            RequestedOutput(output.name, decode_parameters(output.parameters))
            for output in message.outputs
        ]
        or None,
        model_version=message.model_version or None,
    )


def decode_response(message: ModelInferResponse) -> InferResponse:
    """Read a response.

    Raises:
        InvalidInput: As `decode_request`.
    """
    raws = message.raw_output_contents
    return InferResponse(
        response_id=message.id or None,
        model_name=message.model_name,
        infer_outputs=_decode_tensors(InferOutput, message.outputs, raws, _RAW_OUTPUTS),
        model_version=message.model_version or None,
        raw_outputs=raws,
        from_grpc=True,
        parameters=decode_parameters(message.parameters),
    )


def encode_request(request: InferRequest) -> ModelInferRequest:
    """Give the message of a request.

    Lists go as typed contents. If one of the inputs is an array, in binary form or FP16, all go
    raw.

    Raises:
        InvalidInput: An input has no data or data that disagrees with shape or datatype, or a
            parameter is of a type that gRPC does not carry.
    """
    as_raw = any(not tensor.is_list or tensor.datatype == "FP16" for tensor in request.inputs)
    message = ModelInferRequest(
        model_name=request.model_name,
        model_version=request.model_version or "",
        id=request.id or "",
        parameters=encode_parameters(request.parameters),
    )
    for output in request.request_outputs or ():
        message.outputs.add(name=output.name, parameters=encode_parameters(output.parameters))
    raws = _encode_tensors(message.inputs, request.inputs, encode_parameters, as_raw)
    message.raw_input_contents.extend(map(bytes, raws))
    return message


def encode_response(
    response: InferResponse, *, as_raw: bool = False
) -> tuple[ModelInferResponse, list[RawData]]:
    """Give the message of a response without its raw tensors, and these.

    Args:
        response: The response; only the outputs that its request asked for are sent.
        as_raw: Send all outputs in raw form. They go so anyway if the response says so, or if one
            of them is in binary form or FP16.

    Raises:
        InvalidInput: A requested output does not exist.
        InferenceError: An output has no data, or data that disagrees with shape or datatype; or a
            parameter is of a type that gRPC does not carry.
    """
    outputs = [output for output, _ in response.outputs_to_send()]
    as_raw = as_raw or response.use_binary_outputs
    as_raw = as_raw or any(output.is_binary or output.datatype == "FP16" for output in outputs)
    message = ModelInferResponse(
        model_name=response.model_name or "",
        model_version=response.model_version or "",
        id=response.id or "",
        parameters=_encode_result_parameters(response.parameters),
    )
    try:
        raws = _encode_tensors(message.outputs, outputs, _encode_result_parameters, as_raw)
    except InvalidInput as error:
        # A tensor does not know whose it is, and takes itself for the client's.
        raise InferenceError(error.reason) from error
    return message, raws


def join_raw(message: ModelInferResponse, raws: Iterable[RawData]) -> ModelInferResponse:
    """Put the raw tensors of `encode_response` into its message."""
    message.raw_output_contents.extend(map(bytes, raws))
    return message


def _decode_tensors(
    kind: type[AnyTensor],
    messages: Sequence[_TensorMessage],
    raws: Sequence[RawData],
    raw_field: str,
) -> list[AnyTensor]:
    if raws and len(raws) != len(messages):
        raise InvalidInput(f"expected {len(messages)} tensors in {raw_field}, got {len(raws)}")
    tensors: dict[str, AnyTensor] = {}
    for message in messages:
        tensor = _decode_tensor(kind, message)
        if tensor.name in tensors:
            raise InvalidInput(f"{tensor.label}: expected each name once, got it twice")
        if not raws:
            tensor = _decode_data(tensor, message)
        elif message.HasField("contents") and message.contents.ListFields():
            raise InvalidInput(f"{tensor.label}: expected contents or {raw_field}, got both")
        tensors[tensor.name] = tensor
    return list(tensors.values())


def _decode_tensor(kind: type[AnyTensor], message: _TensorMessage) -> AnyTensor:
    tensor = kind(
        message.name,
        list(message.shape),
        message.datatype,
        parameters=decode_parameters(message.parameters),
    )
    if tensor.datatype not in NUMPY_DTYPES:
        raise InvalidInput(
            f"{tensor.label}: unknown datatype {tensor.datatype!r}, "
            f"expected {', '.join(NUMPY_DTYPES)}"
        )
    if min(tensor.shape, default=0) < 0:
        raise InvalidInput(
            f"{tensor.label}: expected 'shape' as whole numbers from 0, got {tensor.shape}"
        )
    return tensor


def _decode_data(tensor: AnyTensor, message: _TensorMessage) -> AnyTensor:
    """Give the tensor with its typed contents."""
    try:
        values = decode_contents(message.contents, tensor.datatype, math.prod(tensor.shape))
    except InvalidInput as exc:
        raise InvalidInput(f"{tensor.label}: {exc.reason}") from exc
    if isinstance(values, list):
        tensor.data = values
        return tensor
    return type(tensor).from_array(
        tensor.name, tensor.shape, tensor.datatype, values, tensor.parameters
    )


def _encode_tensors(
    messages: Any,
    tensors: Iterable[Tensor],
    encode: Callable[[Parameters], Mapping[str, InferParameter]],
    as_raw: bool,
) -> list[RawData]:
    """Add a message for each tensor; gives their raw forms if they go so."""
    raws: list[RawData] = []
    for tensor in tensors:
        array = tensor.as_numpy()
        parameters = dict(tensor.parameters or {})
        parameters.pop(BINARY_DATA_SIZE, None)
        message = messages.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        for name, parameter in encode(parameters).items():
            message.parameters[name].CopyFrom(parameter)
        if as_raw:
            raw = _encode_raw(array, tensor.datatype)
            raws.append(raw)
            # As KServe's SDK has it.
            message.parameters[BINARY_DATA_SIZE].int64_param = len(raw)
        else:
            message.contents.CopyFrom(encode_contents(array, tensor.datatype))
    return raws


def _encode_raw(array: NDArray[Any], datatype: str) -> RawData:
    if datatype == "BYTES":
        return encode_bytes_tensor(array)
    # "The byte order of the binary data is little-endian."
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _encode_result_parameters(parameters: Parameters | None) -> dict[str, InferParameter]:
    try:
        return encode_parameters(parameters)
    except InvalidInput as exc:
        # The model's mistake, not the client's.
        raise InferenceError(f"the response cannot be sent: {exc}") from exc
