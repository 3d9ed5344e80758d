"""The servicer as a plain class, called with messages."""

from typing import Any

import numpy as np
import pytest

from kserve import ModelServer, TensorModel
from kserve.config import ServerConfig
from kserve.errors import InvalidInput
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.signature import Tensors

pytestmark = pytest.mark.anyio


class Echo(TensorModel):
    def predict_tensors(self, tensors: Tensors, options: Any) -> Tensors:
        return dict(tensors)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def servicer() -> InferenceServicer:
    server = ModelServer(config=ServerConfig())
    model = Echo("echo")
    model.load()
    server.register_model(model)
    return InferenceServicer(server.dataplane)


def request(*raws: bytes) -> pb.ModelInferRequest:
    tensor = {"name": "x", "datatype": "INT16", "shape": [1]}
    return pb.ModelInferRequest(model_name="echo", id="7", inputs=[tensor], raw_input_contents=raws)


async def test_answers_a_message_with_a_message(servicer: InferenceServicer) -> None:
    response = await servicer.ModelInfer(request(np.int16(-2).tobytes()), None)

    assert response == pb.ModelInferResponse(
        model_name="echo",
        id="7",
        outputs=[
            {
                "name": "x",
                "datatype": "INT16",
                "shape": [1],
                "parameters": {"binary_data_size": {"int64_param": 2}},
            }
        ],
        raw_output_contents=[b"\xfe\xff"],
    )


async def test_raises_the_errors_of_kserve(servicer: InferenceServicer) -> None:
    with pytest.raises(InvalidInput) as caught:
        await servicer.ModelInfer(request(b"12", b"34"), None)

    assert str(caught.value) == "expected 1 tensors in raw_input_contents, got 2"
