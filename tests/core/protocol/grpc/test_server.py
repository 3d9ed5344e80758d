"""The gRPC server over real sockets, asked by plain stubs."""

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, TensorModel
from kserve.config import ServerConfig
from kserve.errors import InferenceError, InvalidInput, StartError
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.signature import Tensors
from kserve.testing import Ports, request, serving_ports

RPC_S = 10
LOCAL = ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0)
SERVICE = "inference.GRPCInferenceService"


def respond(payload: InferRequest, *args: Any) -> InferResponse:
    tensor = payload.inputs[0]
    output = InferOutput("y", tensor.shape, tensor.datatype, tensor.as_numpy())
    return InferResponse(None, "", [output])


class Echo(TensorModel):
    versions = ("1", "2")

    def predict_tensors(self, tensors: Tensors, options: Any) -> Tensors:
        return dict(tensors)


class User(Model):
    """Does what the test at hand has put into `act`."""

    def __init__(self, name: str) -> None:
        super().__init__(name, return_response_headers=True)
        self.act: Callable[..., Any] = respond

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return self.act(payload, headers, response_headers)


class Odd(Model):
    """Describes a tensor without a shape."""

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "x", "datatype": "FP32"}]


class Sleeping(Model):
    """Is registered and never ready."""

    async def healthy(self) -> bool:
        return False


USER = User("user")


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    echo = Echo("echo")
    echo.versions = ("1", "2")
    with serving_ports([echo, USER, Odd("odd")]) as ports:
        yield ports


@contextmanager
def channel_to(port: int) -> Iterator[grpc.Channel]:
    # Two servers may have had the same port one after the other.
    local = ("grpc.use_local_subchannel_pool", 1)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[local]) as channel:
        yield channel


@pytest.fixture
def channel(ports: Ports) -> Iterator[grpc.Channel]:
    with channel_to(ports.grpc) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return pb_grpc.GRPCInferenceServiceStub(channel)


def asking(model_name: str, values: Any = (1,), **fields: Any) -> pb.ModelInferRequest:
    contents = {"int64_contents": values}
    tensor = {"name": "x", "datatype": "INT64", "shape": [len(values)], "contents": contents}
    return pb.ModelInferRequest(model_name=model_name, inputs=[tensor], **fields)


def failure(call: Callable[..., Any], *args: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, timeout=RPC_S, **options)
    error: Any = caught.value
    return error.code().name, error.details()


def test_live_ready_and_metadata_of_the_server(stub: Any) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=RPC_S).live
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=RPC_S).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=RPC_S).name == "kserve"


def test_readiness_and_metadata_of_a_model(stub: Any) -> None:
    ready = stub.ModelReady(pb.ModelReadyRequest(name="echo", version="2"), timeout=RPC_S)
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="echo"), timeout=RPC_S)

    assert ready.ready
    assert metadata == pb.ModelMetadataResponse(name="echo", versions=["1", "2"])


def test_metadata_that_cannot_be_sent_is_the_models_mistake(stub: Any) -> None:
    code, text = failure(stub.ModelMetadata, pb.ModelMetadataRequest(name="odd"))

    assert (code, text) == (
        "INTERNAL",
        "the model's metadata cannot be sent, expected name, datatype and shape: KeyError('shape')",
    )


@pytest.mark.parametrize(
    ("rpc", "message"),
    [
        pytest.param("ModelReady", pb.ModelReadyRequest(name="nobody"), id="ModelReady"),
        pytest.param("ModelMetadata", pb.ModelMetadataRequest(name="nobody"), id="ModelMetadata"),
        pytest.param("ModelInfer", asking("nobody"), id="ModelInfer"),
    ],
)
def test_an_unknown_model_is_not_found(stub: Any, rpc: str, message: Any) -> None:
    assert failure(getattr(stub, rpc), message) == (
        "NOT_FOUND",
        "Model with name nobody does not exist.",
    )


@pytest.mark.parametrize(
    ("rpc", "message"),
    [
        pytest.param("ModelReady", pb.ModelReadyRequest(name="echo", version="3"), id="ready"),
        pytest.param("ModelMetadata", pb.ModelMetadataRequest(name="echo", version="3"), id="meta"),
        pytest.param("ModelInfer", asking("echo", model_version="3"), id="infer"),
    ],
)
def test_an_unknown_version_is_not_found(stub: Any, rpc: str, message: Any) -> None:
    assert failure(getattr(stub, rpc), message) == (
        "NOT_FOUND",
        "Model with name echo has no version 3: it has 1, 2.",
    )


def test_predicts_typed_and_raw(stub: Any) -> None:
    raw_request = asking("echo", id="7")
    raw_request.inputs[0].ClearField("contents")
    raw_request.raw_input_contents.append(np.int64(5).tobytes())

    typed = stub.ModelInfer(asking("echo", [5], id="7"), timeout=RPC_S)
    raw = stub.ModelInfer(raw_request, timeout=RPC_S)

    assert typed == pb.ModelInferResponse(
        model_name="echo",
        id="7",
        outputs=[
            {"name": "x", "datatype": "INT64", "shape": [1], "contents": {"int64_contents": [5]}}
        ],
    )
    assert list(raw.raw_output_contents) == [np.int64(5).tobytes()]


def test_a_large_tensor_goes_in_and_out(stub: Any) -> None:
    array = np.arange(1 << 17, dtype=np.float64)
    tensor = {"name": "x", "datatype": "FP64", "shape": array.shape}
    message = pb.ModelInferRequest(
        model_name="echo", inputs=[tensor], raw_input_contents=[array.tobytes()]
    )

    (raw,) = stub.ModelInfer(message, timeout=RPC_S).raw_output_contents

    assert raw == array.tobytes()


def test_a_users_model_gets_a_request_and_the_metadata_as_headers(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def act(payload: InferRequest, headers: dict[str, str], response_headers: Any) -> Any:
        seen.append((payload.from_grpc, payload.parameters, headers["x-tenant"]))
        assert "trace-bin" not in headers
        response_headers["X-Model"] = "user"
        response_headers["content-type"] = "text/plain"
        return respond(payload)

    monkeypatch.setattr(USER, "act", act)

    metadata = (("x-tenant", "a"), ("trace-bin", b"\0"), ("x-request-id", "abc"))
    response, call = stub.ModelInfer.with_call(
        asking("user", parameters={"p": {"double_param": 0.5}}), timeout=RPC_S, metadata=metadata
    )

    assert seen == [(True, {"p": 0.5}, "a")]
    assert set(call.trailing_metadata()) == {("x-request-id", "abc"), ("x-model", "user")}
    assert (response.model_name, response.id) == ("user", "abc")


def message_result(payload: InferRequest) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(outputs=[{"name": "y", "datatype": "BOOL", "shape": [0]}])


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(
            lambda payload: InferResponse(None, None, [InferOutput("y", [0], "BOOL", [])]),
            id="InferResponse",
        ),
        pytest.param(message_result, id="message"),
        pytest.param(
            lambda payload: {
                "id": "7",
                "model_name": "user",
                "outputs": [{"name": "y", "datatype": "BOOL", "shape": [0], "data": []}],
            },
            id="dict as in REST",
        ),
        pytest.param(
            lambda payload: {
                "id": "7",
                "model_name": "user",
                "outputs": [{"name": "y", "datatype": "BOOL", "shape": [0], "contents": {}}],
            },
            id="dict as the message",
        ),
    ],
)
def test_a_users_model_may_answer_in_several_forms(
    stub: Any, monkeypatch: pytest.MonkeyPatch, result: Callable[[InferRequest], Any]
) -> None:
    monkeypatch.setattr(USER, "act", lambda payload, *_: result(payload))

    response = stub.ModelInfer(asking("user", id="7"), timeout=RPC_S)

    assert (response.model_name, response.id) == ("user", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [("y", "BOOL", [0])]


def test_a_message_that_the_model_keeps_is_not_changed(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pb.ModelInferResponse()
    monkeypatch.setattr(USER, "act", lambda *_: kept)

    ids = [stub.ModelInfer(asking("user", id=i), timeout=RPC_S).id for i in ("1", "2")]

    assert ids == ["1", "2"]


def raising(error: Exception) -> Callable[..., Any]:
    def act(*args: Any) -> Any:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        pytest.param(
            raising(InvalidInput("no")), ("INVALID_ARGUMENT", "no"), id="the client's mistake"
        ),
        pytest.param(
            raising(InferenceError("broken", "E1")), ("INTERNAL", "[E1] broken"), id="public"
        ),
        pytest.param(
            raising(KeyError("secret")), ("INTERNAL", "Internal server error"), id="private"
        ),
        pytest.param(
            raising(NotImplementedError("not yet")), ("UNIMPLEMENTED", "not yet"), id="missing"
        ),
        pytest.param(
            raising(InvalidInput("é\ud800")), ("INVALID_ARGUMENT", "é\\ud800"), id="not UTF-8"
        ),
        pytest.param(
            raising(InvalidInput("é" * 9000)),
            ("INVALID_ARGUMENT", "é" * 1022 + "..."),
            id="longer than metadata may be",
        ),
        pytest.param(
            lambda *_: [1],
            ("INTERNAL", "expected an inference response from the model, got list"),
            id="no response",
        ),
        pytest.param(
            lambda *_: {"outputs": [{"name": 1}]},
            (
                "INTERNAL",
                "the model's result is no inference response: outputs[0]: expected 'name' to be "
                "a str, got int",
            ),
            id="no response in a dict",
        ),
        pytest.param(
            lambda *_: {"outputs": [{"contents": {"nothing": 1}}]},
            (
                "INTERNAL",
                "the model's result is no inference response: "
                'Protocol message InferTensorContents has no "nothing" field.',
            ),
            id="no message in a dict",
        ),
        pytest.param(
            lambda payload, headers, response: response.update(x="é") or respond(payload),
            ("INTERNAL", "Internal server error"),
            id="header that cannot be sent",
        ),
        pytest.param(
            lambda payload, *_: iter([respond(payload)]),
            (
                "UNIMPLEMENTED",
                "model user streams its responses, ask it by ModelStreamInfer",
            ),
            id="a stream",
        ),
    ],
)
def test_failures_have_their_status_and_text(
    stub: Any,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[..., Any],
    expected: tuple[str, str],
) -> None:
    monkeypatch.setattr(USER, "act", act)

    assert failure(stub.ModelInfer, asking("user")) == expected


def test_a_wrong_tensor_names_what_was_expected(stub: Any) -> None:
    message = asking("echo", [1, 2])
    message.inputs[0].shape[:] = [3]

    assert failure(stub.ModelInfer, message) == (
        "INVALID_ARGUMENT",
        "input 'x': expected 3 elements in int64_contents, got 2",
    )


@pytest.mark.parametrize("rpc", ["ModelInfer", "ModelReady", "RepositoryIndex"])
def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel, rpc: str) -> None:
    code, text = failure(channel.unary_unary(f"/{SERVICE}/{rpc}"), b"\xff")

    assert code == "INVALID_ARGUMENT"
    assert text.startswith(f"expected a {rpc}Request message: ")


def test_bytes_that_are_no_message_end_a_stream(channel: grpc.Channel) -> None:
    call: Any = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")

    code, text = failure(lambda timeout: list(call(iter([b"\xff"]), timeout=timeout)))

    assert (code, text.partition(":")[0]) == (
        "INVALID_ARGUMENT",
        "expected a ModelInferRequest message",
    )


def test_an_unknown_rpc_is_unimplemented(channel: grpc.Channel) -> None:
    assert failure(channel.unary_unary(f"/{SERVICE}/ModelTrain"), b"")[0] == "UNIMPLEMENTED"


def test_a_failure_carries_the_request_id(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(asking("nobody"), timeout=RPC_S, metadata=(("x-request-id", "abc"),))

    error: Any = caught.value
    assert error.trailing_metadata() == (("x-request-id", "abc"),)


class Repository:
    """Stands in for what the data plane has once there is a repository."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    async def repository_index(self, ready_only: bool) -> list[dict[str, Any]]:
        self.calls.append(("index", ready_only))
        return [
            {"name": "a", "version": "1", "state": "READY", "reason": ""},
            {"name": "b", "version": "", "state": "UNAVAILABLE", "reason": "no file"},
        ]

    async def load_model(self, name: str) -> None:
        self.calls.append(("load", name))

    async def unload_model(self, name: str) -> None:
        self.calls.append(("unload", name))


def test_the_repository_is_asked_in_kserves_and_in_tritons_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = Repository()
    server = ModelServer(config=LOCAL)
    for name in ("repository_index", "load_model", "unload_model"):
        monkeypatch.setattr(server.dataplane, name, getattr(repository, name))

    with serving_ports([Echo("echo")], server) as ports, channel_to(ports.grpc) as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=RPC_S)
        # KServe's message has the model's name as its only field, of number 1.
        kserves = pb.RepositoryModelLoadRequest(repository_name="a")
        loaded = stub.RepositoryModelLoad(kserves, timeout=RPC_S)
        tritons = pb.RepositoryModelUnloadRequest(repository_name="r", model_name="b")
        unloaded = stub.RepositoryModelUnload(tritons, timeout=RPC_S)

    assert index == pb.RepositoryIndexResponse(
        models=[
            {"name": "a", "version": "1", "state": "READY"},
            {"name": "b", "state": "UNAVAILABLE", "reason": "no file"},
        ]
    )
    assert loaded == pb.RepositoryModelLoadResponse(model_name="a", isLoaded=True)
    assert unloaded == pb.RepositoryModelUnloadResponse(model_name="b", isUnloaded=True)
    assert repository.calls == [("index", True), ("load", "a"), ("unload", "b")]


def test_without_a_repository_its_rpcs_are_unimplemented(stub: Any) -> None:
    calls = (
        (stub.RepositoryIndex, pb.RepositoryIndexRequest()),
        (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="echo")),
        (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="echo")),
    )

    for call, message in calls:
        status, text = failure(call, message)
        assert status == "UNIMPLEMENTED"
        assert text.startswith("the model repository API is off")


def test_requests_are_counted_by_status_and_logged_in_one_line(
    ports: Ports, stub: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    caplog.set_level(logging.INFO, "kserve.trace")
    before = counted(ports, "echo")

    stub.ModelInfer(asking("echo"), timeout=RPC_S, metadata=(("x-request-id", "abc"),))
    failure(stub.ModelInfer, asking("echo", [1], model_version="9"))
    failure(stub.ModelInfer, asking("nobody"))
    after = counted(ports, "echo")

    # A version that is not there is no model's request.
    assert {status: after[status] - before.get(status, 0) for status in after} == {
        "OK": 1,
    } | {status: 0 for status in before if status != "OK"}
    # An earlier test's last line may come now: it is written after its answer.
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")][-3:]
    for entry in fields:
        assert entry.pop("duration_ms") > 0
    assert fields[0] == {
        "request_id": "abc",
        "model": "echo",
        "protocol": "grpc",
        "status": "OK",
    }
    assert [(f["model"], f["status"]) for f in fields[1:]] == [
        ("echo", "NOT_FOUND"),
        ("nobody", "NOT_FOUND"),
    ]
    assert not counted(ports, "nobody")


def counted(ports: Ports, model: str) -> dict[str, float]:
    prefix = f'kserve_requests_total{{model_name="{model}",protocol="grpc",status="'
    lines = request(ports.http, "GET", "/metrics").body.decode().splitlines()
    found = [line[len(prefix) :].split('"} ') for line in lines if line.startswith(prefix)]
    return {status: float(value) for status, value in found}


def in_flight(model: str) -> float | None:
    return REGISTRY.get_sample_value("kserve_requests_in_flight", {"model_name": model})


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + RPC_S
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come to that"
        time.sleep(0.01)


def test_only_failures_of_the_server_are_logged_as_errors(
    stub: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)

    for error in (InvalidInput("no"), KeyError("secret")):
        monkeypatch.setattr(USER, "act", raising(error))
        failure(stub.ModelInfer, asking("user"))

    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [(r.getMessage(), r.exc_info and str(r.exc_info[1])) for r in errors] == [
        ("Request failed", "'secret'")
    ]


class Gate:
    """Holds a handler until it is released, and tells that it has begun."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self.n_calls = 0

    def __call__(self, payload: InferRequest, *args: Any) -> InferResponse:
        self.n_calls += 1
        self.entered.set()
        assert self.release.wait(RPC_S)
        return respond(payload)


def test_a_call_whose_deadline_passes_or_that_is_cancelled_never_reaches_the_model(
    ports: Ports, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(USER, "act", gate)
    before = counted(ports, "user")

    first = stub.ModelInfer.future(asking("user"), timeout=RPC_S)
    assert gate.entered.wait(RPC_S)
    late = stub.ModelInfer.future(asking("user"), timeout=2)
    gone = stub.ModelInfer.future(asking("user"), timeout=RPC_S)
    wait_until(lambda: in_flight("user") == 3)
    late_code = late.exception().code()
    gone.cancel()
    # The counts say that the server has noticed, too: the deadline itself, or its client, who goes
    # then. Which of them is up to their clocks.
    statuses = ("DEADLINE_EXCEEDED", "CANCELLED")
    n_before = sum(before.get(status, 0) for status in statuses)
    wait_until(lambda: sum(counted(ports, "user").get(s, 0) for s in statuses) == n_before + 2)
    gate.release.set()
    first.result()
    monkeypatch.setattr(USER, "act", respond)
    last = stub.ModelInfer(asking("user"), timeout=RPC_S)

    assert late_code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert last.model_name == "user"
    assert gate.n_calls == 1


def test_while_a_model_predicts_probes_and_other_models_answer(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(USER, "act", gate)

    slow = stub.ModelInfer.future(asking("user"), timeout=RPC_S)
    assert gate.entered.wait(RPC_S)
    stub.ServerReady(pb.ServerReadyRequest(), timeout=RPC_S)
    stub.ModelInfer(asking("echo"), timeout=RPC_S)
    is_done_meanwhile = slow.done()
    gate.release.set()

    assert not is_done_meanwhile
    assert slow.result().model_name == "user"


def test_a_stream_goes_on_after_a_failure(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(USER, "act", raising(KeyError("secret")))
    requests = [asking("user", id="1"), asking("echo", [9], id="2")]

    failed, answered = stub.ModelStreamInfer(iter(requests), timeout=RPC_S)

    assert failed == pb.ModelStreamInferResponse(
        error_message="Internal server error",
        infer_response=pb.ModelInferResponse(model_name="user", id="1"),
    )
    assert answered.infer_response.id == "2"
    assert list(answered.infer_response.outputs[0].contents.int64_contents) == [9]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
def test_a_client_that_leaves_a_stream_closes_the_models_generator(
    stub: Any, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    closed = threading.Event()

    def plain(payload: InferRequest) -> Iterator[InferResponse]:
        try:
            while True:
                yield respond(payload)
        finally:
            closed.set()

    async def forever(payload: InferRequest) -> AsyncIterator[InferResponse]:
        try:
            while True:
                # Sending alone gives the loop its turns.
                yield respond(payload)
        finally:
            closed.set()

    monkeypatch.setattr(USER, "act", lambda p, *_: (forever if is_async else plain)(p))

    call = stub.ModelStreamInfer(iter([asking("user")]), timeout=RPC_S)
    first = next(call)
    call.cancel()

    assert first.infer_response.parameters["triton_final_response"].bool_param is False
    assert closed.wait(RPC_S)


def test_a_failure_in_mid_stream_ends_that_answer_alone(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(payload: InferRequest, *args: Any) -> Iterator[InferResponse]:
        yield respond(payload)
        raise InvalidInput("enough")

    monkeypatch.setattr(USER, "act", act)

    answers = list(
        stub.ModelStreamInfer(iter([asking("user"), asking("echo", id="2")]), timeout=RPC_S)
    )

    assert [a.error_message for a in answers] == ["", "enough", ""]
    assert answers[2].infer_response.id == "2"


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"grpc_max_receive_message_length": 4096}, id="its own"),
        pytest.param({"max_request_bytes": 4096}, id="that of all wires"),
        pytest.param(
            {"grpc_max_receive_message_length": 4096, "max_request_bytes": 1}, id="its own first"
        ),
    ],
)
def test_messages_beyond_the_limits_are_refused(limits: dict[str, Any]) -> None:
    limits = {**limits, "grpc_max_send_message_length": 1024}
    with serving_ports([Echo("echo")], **limits) as ports, channel_to(ports.grpc) as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)

        too_large = failure(stub.ModelInfer, asking("echo", range(10000)))
        answer_too_large = failure(stub.ModelInfer, asking("echo", range(1000)))
        fits = stub.ModelInfer(asking("echo", range(100)), timeout=RPC_S)

    assert too_large[0] == answer_too_large[0] == "RESOURCE_EXHAUSTED"
    assert "4096" in too_large[1]
    assert list(fits.outputs[0].shape) == [100]


def test_calls_beyond_the_limit_are_refused() -> None:
    gate, user = Gate(), User("limited")
    user.act = gate

    with (
        serving_ports([user], grpc_max_concurrent_rpcs=1) as ports,
        channel_to(ports.grpc) as channel,
    ):
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(asking("limited"), timeout=RPC_S)
        assert gate.entered.wait(RPC_S)
        refused = failure(stub.ServerLive, pb.ServerLiveRequest())
        gate.release.set()
        first.result()

    assert refused[0] == "RESOURCE_EXHAUSTED"


def check(channel: grpc.Channel, name: str) -> str:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=RPC_S)
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return status


@pytest.mark.parametrize("name", ["", SERVICE, "echo"])
def test_health_serves(channel: grpc.Channel, name: str) -> None:
    assert check(channel, name) == "SERVING"


def test_health_of_an_unknown_name_is_not_found(channel: grpc.Channel) -> None:
    assert failure(lambda timeout: check(channel, "nobody")) == (
        "NOT_FOUND",
        "unknown service 'nobody'",
    )


def test_a_model_that_is_not_ready_does_not_serve() -> None:
    with (
        serving_ports([Echo("echo"), Sleeping("sleeping")]) as ports,
        channel_to(ports.grpc) as channel,
    ):
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)

        ready = stub.ModelReady(pb.ModelReadyRequest(name="sleeping"), timeout=RPC_S).ready
        states = {name: check(channel, name) for name in ("", "echo", "sleeping")}
        refused = failure(stub.ModelInfer, asking("sleeping"))

    assert not ready
    assert states == {"": "NOT_SERVING", "echo": "SERVING", "sleeping": "NOT_SERVING"}
    assert refused == ("UNAVAILABLE", "Model with name sleeping is not ready.")


def test_a_watch_tells_of_changes_and_ends_when_the_server_stops() -> None:
    echo, server = Echo("echo"), ModelServer(config=LOCAL)
    of = health_pb2.HealthCheckResponse

    with serving_ports([echo], server) as ports, channel_to(ports.grpc) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="echo"), timeout=RPC_S)
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=RPC_S)
        of_nobody = next(unknown).status
        statuses = [next(watch).status]
        for is_ready in (False, True):
            echo.ready = is_ready
            statuses.append(next(watch).status)
        server.stop()
        statuses += [response.status for response in watch]

    assert of_nobody == of.SERVICE_UNKNOWN
    assert statuses == [of.SERVING, of.NOT_SERVING, of.SERVING, of.NOT_SERVING]


def test_reflection_describes_the_services(channel: grpc.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]

    services, file = stub.ServerReflectionInfo(iter(requests), timeout=RPC_S)

    assert [service.name for service in services.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    ]
    assert list(file.file_descriptor_response.file_descriptor_proto) == [
        pb.DESCRIPTOR.serialized_pb
    ]


def test_a_reflection_that_is_left_open_ends_when_the_server_stops() -> None:
    server = ModelServer(config=replace(LOCAL, drain_delay_s=0))
    with serving_ports([Echo("echo")], server) as ports, channel_to(ports.grpc) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        more = threading.Event()

        def ask() -> Iterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            more.wait(RPC_S)

        answers = stub.ServerReflectionInfo(ask(), timeout=RPC_S)
        next(answers)
        server.stop()
        ended = failure(lambda timeout: next(answers))
        more.set()

    assert ended == ("UNAVAILABLE", "Server is not ready. It is shutting down.")


def test_a_port_in_use_ends_the_start_and_leaves_no_server_behind() -> None:
    with serving_ports([Echo("echo")]) as ports:
        server = ModelServer(config=replace(LOCAL, grpc_port=ports.grpc))

        with pytest.raises(StartError) as caught:
            server.start([Echo("second")])

    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{ports.grpc} for gRPC: Address already in use"
    )


def test_a_rest_port_in_use_stops_grpc_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ModelServer(config=replace(LOCAL, http_port=taken.getsockname()[1]))

        with pytest.raises(StartError, match="cannot listen on"):
            server.start([Echo("echo")])

    assert server.grpc_address is not None
    port = int(server.grpc_address.rpartition(":")[2])
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))


def test_without_grpc_there_is_no_address() -> None:
    with serving_ports([Echo("echo")], enable_grpc=False) as ports:
        answer = request(ports.http, "GET", "/v2/health/live")

    assert (ports.grpc, answer.status) == (0, 200)


def test_a_stop_lets_calls_of_both_wires_finish_and_takes_no_more() -> None:
    gates = {name: Gate() for name in ("over-grpc", "over-rest")}
    models = [User(name) for name in gates]
    for model in models:
        model.act = gates[model.name]
    answers: dict[str, Any] = {}
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]}
    server = ModelServer(config=LOCAL)

    with serving_ports(models, server) as ports, channel_to(ports.grpc) as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        in_flight = stub.ModelInfer.future(asking("over-grpc"), timeout=RPC_S)
        idle = stub.ModelStreamInfer(iter(threading.Event().wait, True), timeout=RPC_S)
        rest = threading.Thread(
            target=lambda: answers.update(
                rest=request(ports.http, "POST", "/v2/models/over-rest/infer", body)
            )
        )
        rest.start()
        assert all(gate.entered.wait(RPC_S) for gate in gates.values())
        server.stop()
        # Ended by the server, as it waits for no stream that has nothing to do.
        idle_end = failure(lambda timeout: next(idle))
        with channel_to(ports.grpc) as second:
            late: Any = pb_grpc.GRPCInferenceServiceStub(second)
            refused = failure(late.ServerLive, pb.ServerLiveRequest())
        for gate in gates.values():
            gate.release.set()
        answers["grpc"] = in_flight.result()
        rest.join(RPC_S)

    assert idle_end == ("UNAVAILABLE", "Server is not ready. It is shutting down.")
    assert refused[0] == "UNAVAILABLE"
    assert answers["grpc"].model_name == "over-grpc"
    assert answers["rest"].status == 200


def test_importing_kserve_imports_no_grpc() -> None:
    code = "import sys, kserve, kserve.testing; print('grpc' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
