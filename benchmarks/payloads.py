"""Requests as the bytes that go over the wire, and the check of what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

DATATYPES: Final[Mapping[str, str]] = {"float64": "FP64", "float32": "FP32", "int64": "INT64"}
INPUT_NAME: Final = "input-0"
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST.

    Attributes:
        path: Its path.
        body: Its whole body.
        headers: Those beside Host and Content-Length.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def wire(self) -> bytes:
        """All of it, as HTTP/1.1."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body


def v1_json(model: str, rows: NDArray[Any]) -> HttpRequest:
    """Give a V1 request for rows of shape (n_rows, n_features)."""
    body = orjson.dumps({"instances": rows.tolist()})
    return HttpRequest(f"/v1/models/{model}:predict", body, _JSON)


def v2_json(model: str, rows: NDArray[Any], outputs: Sequence[str] = ()) -> HttpRequest:
    """Give a V2 request whose tensor is JSON.

    Args:
        model: Whom it is for.
        rows: Its tensor, (n_rows, n_features).
        outputs: The outputs that it asks for; the model's own if empty.
    """
    request: dict[str, Any] = {"inputs": [{**_tensor(rows), "data": rows.ravel().tolist()}]}
    if outputs:
        request["outputs"] = [{"name": name} for name in outputs]
    body = orjson.dumps(request)
    return HttpRequest(_infer_path(model), body, _JSON)


def v2_binary(model: str, rows: NDArray[Any]) -> HttpRequest:
    """Give a V2 request whose tensor is binary, and which asks for binary outputs."""
    data = rows.tobytes()
    head = orjson.dumps(
        {
            "inputs": [{**_tensor(rows), "parameters": {"binary_data_size": len(data)}}],
            "parameters": {"binary_data_output": True},
        }
    )
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return HttpRequest(_infer_path(model), head + data, headers)


def grpc_raw(model: str, rows: NDArray[Any]) -> pb.ModelInferRequest:
    """Give a `ModelInferRequest` with raw contents."""
    return pb.ModelInferRequest(
        model_name=model, inputs=[_tensor(rows)], raw_input_contents=[rows.tobytes()]
    )


def grpc_typed(model: str, rows: NDArray[np.float64]) -> pb.ModelInferRequest:
    """Give a `ModelInferRequest` with typed contents."""
    contents = {"fp64_contents": rows.ravel().tolist()}
    return pb.ModelInferRequest(model_name=model, inputs=[{**_tensor(rows), "contents": contents}])


def v1_predictions(body: bytes) -> NDArray[Any]:
    """Give the predictions of a V1 answer.

    Raises:
        ValueError: The body is no such answer.
    """
    return np.array(_json_object(body)["predictions"])


def v2_output(body: bytes, json_length: int | None = None) -> NDArray[Any]:
    """Give the first output of a V2 answer over REST.

    Args:
        body: The body.
        json_length: The header Inference-Header-Content-Length where the answer has it.

    Raises:
        ValueError: The body is no such answer.
    """
    output = _json_object(body[:json_length])["outputs"][0]
    if "data" in output:
        return np.array(output["data"]).reshape(output["shape"])
    return _from_raw(body[json_length:], output["datatype"], output["shape"])


def grpc_output(message: pb.ModelInferResponse) -> NDArray[Any]:
    """Give the first output of a response over gRPC, raw or INT64."""
    output = message.outputs[0]
    if message.raw_output_contents:
        return _from_raw(message.raw_output_contents[0], output.datatype, list(output.shape))
    return np.array(output.contents.int64_contents).reshape(list(output.shape))


def _infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def _tensor(rows: NDArray[Any]) -> dict[str, Any]:
    return {
        "name": INPUT_NAME,
        "shape": list(rows.shape),
        "datatype": DATATYPES[rows.dtype.name],
    }


def _json_object(body: bytes) -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads(body)
    return value


def _from_raw(data: bytes, datatype: str, shape: list[int]) -> NDArray[Any]:
    dtype = next(name for name, known in DATATYPES.items() if known == datatype)
    return np.frombuffer(data, dtype).reshape(shape)
