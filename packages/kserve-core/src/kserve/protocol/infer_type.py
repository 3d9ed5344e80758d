"""Inference requests and responses of the V2 protocol, and their REST forms.

Source: Open Inference Protocol v2, with its binary tensor data extension.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from kserve.dataframes import import_pandas
from kserve.errors import InferenceError, InvalidInput
from kserve.listing import listing, quoted
from kserve.protocol.codec.arrays import list_from_array
from kserve.protocol.codec.bytes_tensor import decode_bytes_tensor, encode_bytes_tensor
from kserve.protocol.grpc_form import (
    FromGrpc,
    get_content,
    read_request,
    read_response,
    to_grpc_parameters,
    to_http_parameters,
    write_request,
    write_response,
)
from kserve.protocol.rest_body import AnyTensor, RestBody, join_body
from kserve.protocol.tensor import (
    InferInput,
    InferOutput,
    Parameters,
    RawData,
    RequestedOutput,
    Tensor,
)

if TYPE_CHECKING:
    import pandas as pd

    from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "deserialize_bytes_tensor",
    "get_content",
    "serialize_byte_tensor",
    "to_grpc_parameters",
    "to_http_parameters",
]


def serialize_byte_tensor(input_tensor: NDArray[Any]) -> NDArray[np.object_]:
    """Serialize an array of strings, bytes or objects to the binary form of BYTES.

    Returns:
        A 0-d object array that holds one `bytes`; an object array of shape (0,) for no elements.

    Raises:
        InferenceError: The array is of another dtype.
    """
    if input_tensor.dtype.kind not in "OSU":
        raise InferenceError(
            f"cannot serialize a tensor of {input_tensor.dtype} as BYTES, "
            "expected objects, bytes or strings"
        )
    if input_tensor.size == 0:
        return np.empty(0, dtype=np.object_)
    return np.array(encode_bytes_tensor(input_tensor), dtype=np.object_)


def deserialize_bytes_tensor(encoded_tensor: RawData) -> NDArray[np.object_]:
    """Split the binary form of BYTES into an array of `bytes`, shape (n_elements,).

    Raises:
        InvalidInput: The data ends inside an element.
    """
    return decode_bytes_tensor(encoded_tensor)


class InferRequest:
    """An inference request.

    Args:
        model_name: The model that it is for.
        infer_inputs: The inputs.
        request_id: The client's id.
        raw_inputs: The binary form of each input, in the order of `infer_inputs`.
        from_grpc: Whether it came over gRPC.
        parameters: The parameters of the request.
        request_outputs: The outputs that the client asks for; None means all.
        model_version: The version of the model that it is for.
    """

    # Of the class: reads a ModelInferRequest. Of a request: whether it came over gRPC.
    from_grpc = FromGrpc(read_request)

    def __init__(
        self,
        model_name: str,
        infer_inputs: list[InferInput],
        request_id: str | None = None,
        raw_inputs: Sequence[RawData] | None = None,
        from_grpc: bool = False,
        parameters: Parameters | None = None,
        request_outputs: list[RequestedOutput] | None = None,
        model_version: str | None = None,
    ) -> None:
        self.id = request_id
        self.model_name = model_name
        self.inputs = infer_inputs
        self.parameters = parameters
        self.from_grpc = from_grpc
        self.request_outputs = request_outputs
        self.model_version = model_version
        self._use_raw_outputs = bool(raw_inputs)
        if raw_inputs:
            _attach_raw(infer_inputs, raw_inputs)

    @property
    def use_binary_outputs(self) -> bool:
        """Whether outputs go in binary form unless they are asked for otherwise.

        Over REST the request's parameter `binary_data_output` says so; over gRPC, whether the
        inputs came in raw form.
        """
        if self.from_grpc:
            return self._use_raw_outputs
        return bool(self.parameters and self.parameters.get("binary_data_output", False))

    @classmethod
    def from_bytes(cls, req_bytes: RawData, json_length: int, model_name: str) -> Self:
        """Read the body of a REST request: its JSON part, then the inputs in binary form.

        Args:
            req_bytes: The whole body. The tensors are views of it.
            json_length: Length in bytes of the JSON part.
            model_name: The model that the request is for.

        Raises:
            InvalidInput: The body is not a request; the reason names the part.
        """
        body = RestBody(req_bytes, json_length)
        inputs = body.tensors(InferInput, "inputs")
        for tensor in inputs:
            if tensor.datatype == "FP16" and not tensor.is_binary:
                raise InvalidInput(
                    f"{tensor.label}: Receiving FP16 data via JSON is not supported, "
                    "use the binary data format"
                )
        return cls(
            model_name=model_name,
            infer_inputs=inputs,
            request_id=body.field("id", str),
            parameters=body.field("parameters", dict),
            request_outputs=body.requested_outputs(),
        )

    def to_rest(self) -> tuple[dict[str, Any] | bytes, int | None]:
        """Give the REST form of the request.

        Inputs that came or were set in binary form go so; arrays and lists go as JSON. A request
        without an id gets a new one.

        Returns:
            The JSON document and None, or, with binary inputs, the body and the length in bytes
            of its JSON part.

        Raises:
            InvalidInput: An input has no data, or is FP16 and not in binary form.
        """
        tensors = [
            tensor.to_entry(as_binary=tensor.is_binary, as_given=True) for tensor in self.inputs
        ]
        document: dict[str, Any] = {
            "id": self.id or str(uuid.uuid4()),
            "model_name": self.model_name,
            "inputs": [entry for entry, _ in tensors],
        }
        if self.request_outputs:
            document["outputs"] = [output.to_dict() for output in self.request_outputs]
        if self.parameters:
            document["parameters"] = self.parameters
        return join_body(document, [raw for _, raw in tensors])

    def to_grpc(self) -> "ModelInferRequest":
        """Give the gRPC form of the request.

        Lists go as typed contents. If one of the inputs is an array, in binary form or FP16, all
        go raw.

        Raises:
            InvalidInput: An input has no data or data that disagrees with shape or datatype, or a
                parameter is of a type that gRPC does not carry.
        """
        return write_request(self)

    def as_dataframe(self) -> "pd.DataFrame":
        """Give the inputs as the columns of a pandas DataFrame; BYTES become `str`.

        Raises:
            InvalidInput: An input is not one column, shape (n_rows,) or (n_rows, 1), or two
                inputs differ in their number of rows, or pandas is not installed.
        """
        pd = import_pandas()
        columns = {tensor.name: _column(tensor) for tensor in self.inputs}
        counts = [len(column) for column in columns.values()]
        if len(set(counts)) > 1:
            got = [f"{name!r}: {n_rows}" for name, n_rows in zip(columns, counts, strict=True)]
            raise InvalidInput(f"expected inputs with equal numbers of rows, got {listing(got)}")
        return pd.DataFrame(columns)

    def get_input_by_name(self, name: str) -> InferInput | None:
        """Give the input of this name, or None."""
        return _find(self.inputs, name)

    def to_dict(self) -> dict[str, Any]:
        """Give id, model_name, inputs, parameters and from_grpc."""
        return {
            "id": self.id,
            "model_name": self.model_name,
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "parameters": self.parameters,
            "from_grpc": self.from_grpc,
        }

    def __contains__(self, key: object) -> bool:
        # User code asks a V1 dict for "instances" and meets a V2 request on the same path.
        if key in ("inputs", "instances"):
            return bool(self.inputs)
        return any(tensor.name == key for tensor in self.inputs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InferRequest):
            return NotImplemented
        return (
            self.model_name == other.model_name
            and self.id == other.id
            and self.from_grpc == other.from_grpc
            and (self.parameters or {}) == (other.parameters or {})
            and self.inputs == other.inputs
            and (self.request_outputs or []) == (other.request_outputs or [])
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"InferRequest(id={self.id!r}, model_name={self.model_name!r}, "
            f"inputs={self.inputs!r}, parameters={self.parameters!r}, from_grpc={self.from_grpc})"
        )


class InferResponse:
    """An inference response.

    Args:
        response_id: The id, that of the request.
        model_name: The model that answers.
        infer_outputs: The outputs.
        model_version: The version of the model that answers.
        raw_outputs: The binary form of each output, in the order of `infer_outputs`.
        from_grpc: Whether it came over gRPC.
        parameters: The parameters of the response.
        use_binary_outputs: Send outputs in binary form over REST unless the request says otherwise.
        requested_outputs: The outputs to send and how; None means all.
    """

    # Of the class: reads a ModelInferResponse. Of a response: whether it came over gRPC.
    from_grpc = FromGrpc(read_response)

    def __init__(
        self,
        response_id: str | None,
        model_name: str | None,
        infer_outputs: list[InferOutput],
        model_version: str | None = None,
        raw_outputs: Sequence[RawData] | None = None,
        from_grpc: bool = False,
        parameters: Parameters | None = None,
        use_binary_outputs: bool = False,
        requested_outputs: list[RequestedOutput] | None = None,
    ) -> None:
        self.id = response_id
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = infer_outputs
        self.parameters = parameters
        self.from_grpc = from_grpc
        self._requested_outputs = requested_outputs
        self._use_binary_outputs = use_binary_outputs
        if raw_outputs:
            _attach_raw(infer_outputs, raw_outputs)

    @classmethod
    def from_rest(cls, response: dict[str, Any]) -> Self:
        """Read the JSON document of a REST response.

        Raises:
            InvalidInput: The document is not a response; the reason names the part.
        """
        return cls._from_body(RestBody.of_document(response))

    @classmethod
    def from_bytes(cls, res_bytes: RawData, json_length: int) -> Self:
        """Read the body of a REST response: its JSON part, then the outputs in binary form.

        Args:
            res_bytes: The whole body. The tensors are views of it.
            json_length: Length in bytes of the JSON part.

        Raises:
            InvalidInput: The body is not a response; the reason names the part.
        """
        return cls._from_body(RestBody(res_bytes, json_length))

    @classmethod
    def _from_body(cls, body: "RestBody") -> Self:
        return cls(
            response_id=body.field("id", str),
            model_name=body.field("model_name", str),
            infer_outputs=body.tensors(InferOutput, "outputs"),
            model_version=body.field("model_version", str),
            parameters=body.field("parameters", dict),
        )

    def to_rest(self) -> tuple[dict[str, Any] | bytes, int | None]:
        """Give the REST form of the response.

        Only requested outputs are sent, in the order of the request. The form of each is what the
        request says for it, otherwise what it says for all.

        Returns:
            The JSON document, data as flat lists, and None; or, with binary outputs, the body and
            the length in bytes of its JSON part.

        Raises:
            InvalidInput: A requested output does not exist, an output has no data or data that
                disagrees with its shape or datatype, or is FP16 and not asked for in binary form.
            InferenceError: BYTES that are not UTF-8 are not asked for in binary form.
        """
        tensors = [
            output.to_entry(as_binary=as_binary) for output, as_binary in self.outputs_to_send()
        ]
        document: dict[str, Any] = {
            "id": self.id,
            "model_name": self.model_name,
            "model_version": self.model_version,
            "outputs": [entry for entry, _ in tensors],
        }
        if self.parameters:
            document["parameters"] = self.parameters
        return join_body(document, [raw for _, raw in tensors])

    def to_grpc(self) -> "ModelInferResponse":
        """Give the gRPC form of the response: only the requested outputs.

        They go raw if the request came so, or if one of them is in binary form or FP16.

        Raises:
            InvalidInput: As for `to_rest`.
            InferenceError: A parameter is of a type that gRPC does not carry.
        """
        return write_response(self)

    @property
    def use_binary_outputs(self) -> bool:
        """Whether outputs go in binary form unless the request asks for them otherwise."""
        return self._use_binary_outputs

    def outputs_to_send(self) -> list[tuple[InferOutput, bool]]:
        """Give the requested outputs, or all, and whether each goes in binary form.

        Raises:
            InvalidInput: A requested output does not exist.
        """
        if not self._requested_outputs:
            return [(output, self._use_binary_outputs) for output in self.outputs]
        outputs = []
        for requested in self._requested_outputs:
            output = self.get_output_by_name(requested.name)
            if output is None:
                names = [output.name for output in self.outputs]
                raise InvalidInput(
                    f"Unexpected inference output {requested.name!r} for model "
                    f"{self.model_name!r}, expected one of [{quoted(names)}]"
                )
            as_binary = requested.binary_data
            outputs.append((output, self._use_binary_outputs if as_binary is None else as_binary))
        return outputs

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """Give the output of this name, or None."""
        return _find(self.outputs, name)

    def to_dict(self) -> dict[str, Any]:
        """Give id, model_name, model_version, outputs, parameters and from_grpc."""
        return {
            "id": self.id,
            "model_name": self.model_name,
            "model_version": self.model_version,
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "parameters": self.parameters,
            "from_grpc": self.from_grpc,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InferResponse):
            return NotImplemented
        return (
            self.model_name == other.model_name
            and self.model_version == other.model_version
            and self.id == other.id
            and self.from_grpc == other.from_grpc
            and (self.parameters or {}) == (other.parameters or {})
            and self.outputs == other.outputs
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"InferResponse(id={self.id!r}, model_name={self.model_name!r}, "
            f"model_version={self.model_version!r}, outputs={self.outputs!r}, "
            f"parameters={self.parameters!r}, from_grpc={self.from_grpc})"
        )


def _attach_raw(tensors: Sequence[Tensor], raws: Sequence[RawData]) -> None:
    if len(raws) != len(tensors):
        raise InvalidInput(f"expected {len(tensors)} tensors in binary form, got {len(raws)}")
    for tensor, raw in zip(tensors, raws, strict=True):
        tensor.set_raw_data(raw)


def _find(tensors: Iterable[AnyTensor], name: str) -> AnyTensor | None:
    return next((tensor for tensor in tensors if tensor.name == name), None)


def _column(tensor: InferInput) -> Any:
    array = tensor.as_numpy()
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)):
        raise InvalidInput(
            f"input {tensor.name!r}: expected a column of shape [n] or [n, 1], "
            f"got {list(array.shape)}"
        )
    array = array.ravel()
    if tensor.datatype != "BYTES":
        return array
    return list_from_array(array)
