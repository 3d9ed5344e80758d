"""Triton's client in the same process: its messages, and what it reads of our server."""

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from kserve import InferOutput, InferResponse, Model, TensorModel
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.stream import may_stream_var
from kserve.testing import Ports, serving_ports

RECEIVE_S = 10


class Doubler(TensorModel):
    platform = "doubler"

    def load(self) -> bool:
        spec = TensorSpec("x", "FP32", (-1, 2))
        self.signature = Signature((spec,), (TensorSpec("y", "FP32", (-1, 2)),))
        return True

    def predict_tensors(self, tensors: Tensors, options: Any) -> Tensors:
        return {"y": tensors["x"] * 2}


class Echo(TensorModel):
    def predict_tensors(self, tensors: Tensors, options: Any) -> Tensors:
        return dict(tensors)


class Counter(Model):
    """Answers one request with as many responses as its input says."""

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        for index in range(payload.inputs[0].as_numpy().item()):
            output = InferOutput("index", [1], "INT64", [index])
            yield InferResponse(payload.id, self.name, [output])


class Either(Model):
    """Answers with two responses where it may stream, else with one."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if not may_stream_var.get():
            return self.answer(payload, 0)
        return self.answers(payload)

    async def answers(self, payload: Any) -> Any:
        for index in (1, 2):
            yield self.answer(payload, index)

    def answer(self, payload: Any, index: int) -> InferResponse:
        return InferResponse(payload.id, self.name, [InferOutput("index", [1], "INT64", [index])])


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    models = [Doubler("doubler"), Echo("echo"), Counter("counter"), Either("either")]
    with serving_ports(models) as ports:
        yield ports


@pytest.fixture
def client(ports: Ports) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        yield client


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> Any:
    given = tritonclient.grpc.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def shared_messages() -> list[tuple[Descriptor, Descriptor]]:
    pairs = []
    waiting = [
        (ours, service_pb2.DESCRIPTOR.message_types_by_name[name])
        for name, ours in pb.DESCRIPTOR.message_types_by_name.items()
    ]
    while waiting:
        ours, tritons = waiting.pop()
        pairs.append((ours, tritons))
        waiting += [
            (ours.nested_types_by_name[n], t) for n, t in tritons.nested_types_by_name.items()
        ]
    return sorted(pairs, key=lambda pair: pair[0].full_name)


def kind(field: FieldDescriptor) -> tuple[str, int, bool, str]:
    message = field.message_type.full_name if field.message_type else ""
    return field.name, field.type, field.is_repeated, message


@pytest.mark.parametrize(
    ("ours", "tritons"),
    [pytest.param(*pair, id=pair[0].full_name) for pair in shared_messages()],
)
def test_fields_are_those_of_triton(ours: Descriptor, tritons: Descriptor) -> None:
    expected = {number: kind(field) for number, field in tritons.fields_by_number.items()}
    got = {number: kind(field) for number, field in ours.fields_by_number.items()}

    assert {number: got.get(number) for number in expected} == expected


def test_the_server_and_its_models_are_live_and_ready(client: Any) -> None:
    answers = (client.is_server_live(), client.is_server_ready(), client.is_model_ready("echo"))

    assert answers == (True, True, True)


def test_metadata_names_the_server_and_the_tensors_of_a_model(client: Any) -> None:
    server = client.get_server_metadata(as_json=True)
    model = client.get_model_metadata("doubler", as_json=True)

    assert server["name"] == "kserve"
    assert model == {
        "name": "doubler",
        "platform": "doubler",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "2"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "2"]}],
    }


def test_predicts(client: Any) -> None:
    features = np.array([[1, 2.5], [-3, 0]], np.float32)

    result = client.infer("doubler", [tensor("x", features, "FP32")], request_id="7")

    assert result.as_numpy("y").tolist() == [[2, 5], [-6, 0]]
    assert result.get_response().id == "7"


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        pytest.param(np.array([True, False]), "BOOL", id="BOOL"),
        pytest.param(np.array([-128, 127], np.int8), "INT8", id="INT8"),
        pytest.param(np.array([[-(1 << 15)]], np.int16), "INT16", id="INT16"),
        pytest.param(np.array([-(1 << 31)], np.int32), "INT32", id="INT32"),
        pytest.param(np.array([-(1 << 63), (1 << 63) - 1], np.int64), "INT64", id="INT64"),
        pytest.param(np.array([255], np.uint8), "UINT8", id="UINT8"),
        pytest.param(np.array([65535], np.uint16), "UINT16", id="UINT16"),
        pytest.param(np.array([(1 << 32) - 1], np.uint32), "UINT32", id="UINT32"),
        pytest.param(np.array([(1 << 64) - 1], np.uint64), "UINT64", id="UINT64"),
        pytest.param(np.array([1.5, -np.inf], np.float16), "FP16", id="FP16"),
        pytest.param(np.array([[0.1, np.nan]], np.float32), "FP32", id="FP32"),
        pytest.param(np.array([1e300], np.float64), "FP64", id="FP64"),
        pytest.param(np.array([b"a\0b", b"\xff", b""], np.object_), "BYTES", id="BYTES"),
        pytest.param(np.zeros((0, 3), np.float32), "FP32", id="no elements"),
        pytest.param(np.array(2.5), "FP64", id="scalar"),
    ],
)
def test_every_datatype_comes_back_as_it_went(
    client: Any, array: np.ndarray[Any, Any], datatype: str
) -> None:
    result = client.infer("echo", [tensor("x", array, datatype)]).as_numpy("x")

    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert np.array_equal(result, array, equal_nan=array.dtype.kind == "f")


def test_a_failure_has_its_status(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nobody", [tensor("x", np.zeros(1), "FP64")])

    assert caught.value.status() == str(grpc.StatusCode.NOT_FOUND)
    assert caught.value.message() == "Model with name nobody does not exist."


def test_the_repository_is_said_to_be_missing(client: Any) -> None:
    for call in (client.get_model_repository_index, lambda: client.load_model("echo")):
        with pytest.raises(InferenceServerException, match="repository API is off") as caught:
            call()

        assert caught.value.status() == str(grpc.StatusCode.UNIMPLEMENTED)


def test_a_stream_answers_every_request_in_turn(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))

    for model, value in (("counter", 2), ("nobody", 1), ("echo", 9)):
        given = tensor("x", np.array([value], np.int64), "INT64")
        client.async_stream_infer(model, [given], request_id=model)
    got = [answers.get(timeout=RECEIVE_S) for _ in range(4)]
    client.stop_stream()

    assert [error and error.message() for _, error in got] == [
        None,
        None,
        "Model with name nobody does not exist.",
        None,
    ]
    responses = [result.get_response() for result, _ in got if result is not None]
    assert [(r.id, r.parameters["triton_final_response"].bool_param) for r in responses] == [
        ("counter", False),
        ("counter", False),
        ("echo", True),
    ]
    values = [
        result.as_numpy(output.name).tolist()
        for result, _ in got
        if result is not None
        for output in result.get_response().outputs
    ]
    assert values == [[0], [1], [9]]


def test_a_stream_ends_with_an_empty_response_if_asked_for(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))

    given = tensor("x", np.array([1], np.int64), "INT64")
    client.async_stream_infer("counter", [given], request_id="7", enable_empty_final_response=True)
    first, last = (answers.get(timeout=RECEIVE_S)[0].get_response() for _ in range(2))
    client.stop_stream()

    assert first.parameters["triton_final_response"].bool_param is False
    assert (last.id, last.model_name, len(last.outputs)) == ("7", "counter", 0)
    assert last.parameters["triton_final_response"].bool_param is True


def test_a_model_knows_whether_it_may_stream(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    given = tensor("x", np.array([1], np.int64), "INT64")
    client.start_stream(lambda result, error: answers.put((result, error)))

    client.async_stream_infer("either", [given])
    streamed = [answers.get(timeout=RECEIVE_S)[0].as_numpy("index").item() for _ in range(2)]
    client.stop_stream()

    assert streamed == [1, 2]
    assert client.infer("either", [given]).as_numpy("index").item() == 0


@pytest.mark.anyio
async def test_the_async_client_predicts_and_streams(ports: Ports) -> None:
    given = tensor("x", np.array([3, 4], np.int64), "INT64")

    async def requests() -> Any:
        yield {"model_name": "echo", "inputs": [given], "request_id": "stream"}

    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        plain = await client.infer("echo", [given])
        streamed = [answer async for answer in client.stream_infer(requests())]

    assert plain.as_numpy("x").tolist() == [3, 4]
    assert [(r.get_response().id, r.as_numpy("x").tolist(), e) for r, e in streamed] == [
        ("stream", [3, 4], None)
    ]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
