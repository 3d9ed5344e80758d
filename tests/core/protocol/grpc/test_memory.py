"""How often a large tensor is in memory on its way in and out."""

import re
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.testing import ServerProcess

# It starts processes.
pytestmark = pytest.mark.timeout(90)

TENSOR_BYTES = 40 << 20
N_REQUESTS = 3

ECHO = """
from kserve import ModelServer, TensorModel

class Echo(TensorModel):
    def predict_tensors(self, tensors, options):
        return dict(tensors)

ModelServer().start([Echo("echo")])
"""


def request(n_bytes: int, request_id: str) -> pb.ModelInferRequest:
    array = np.zeros(n_bytes // 4, np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": array.shape}
    return pb.ModelInferRequest(
        model_name="echo", id=request_id, inputs=[tensor], raw_input_contents=[array.tobytes()]
    )


def resident_bytes(server: ServerProcess, key: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("request_id", ["7", "78", "789", "7890"], ids=len)
def test_a_raw_tensor_is_in_memory_less_than_four_times(tmp_path: Path, request_id: str) -> None:
    # The length of the id decides how the data is aligned.
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    unlimited = [("grpc.max_receive_message_length", -1)]

    with (
        ServerProcess(str(script)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", unlimited) as channel,
    ):
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request(4, request_id), timeout=10)
        before = resident_bytes(server, "VmRSS")
        answers = (
            stub.ModelInfer(request(TENSOR_BYTES, request_id), timeout=10)
            for _ in range(N_REQUESTS)
        )
        sizes = [len(answer.raw_output_contents[0]) for answer in answers]
        peak = resident_bytes(server, "VmHWM") - before

    assert sizes == [TENSOR_BYTES] * N_REQUESTS
    assert peak < 4 * TENSOR_BYTES
