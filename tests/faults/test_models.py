"""Models that misbehave, and queues that are full: who is answered what, over every wire.

A model of these tests is held at an event, so that what is asked meanwhile waits for certain.
"""

import itertools
import math
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from kserve import Model, ModelRepository, ModelServer
from kserve.config import ServerConfig
from kserve.errors import InferenceError
from kserve.model import PredictOptions, TensorModel
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.testing import Ports, request, serving_ports
from kserve.utils.utils import get_predict_input, get_predict_response

WAIT_S = 40
RPC_S = 40
# Far longer than what may run on the event loop.
SLOW_S = 0.02
# The event loop of `serving_ports` runs on a thread of this name.
LOOP = "serving"
CULPRIT = 13.0

# A status, and the values or the text that came with it.
Answer = tuple[int | str, Any]
Act = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_numbers = itertools.count()


def double(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2 * x


def failing(error: Exception) -> Act:
    def act(x: NDArray[np.float64]) -> NDArray[np.float64]:
        if CULPRIT in x:
            raise error
        return 2 * x

    return act


class Held(TensorModel):
    """Does what the test has put into `act`, when the test lets it; notes each batch it got."""

    def __init__(self, name: str, act: Act = double, pause_s: float = SLOW_S) -> None:
        super().__init__(name)
        self.signature = Signature(
            inputs=(TensorSpec("x", "FP64", (-1,)),), outputs=(TensorSpec("y", "FP64", (-1,)),)
        )
        self.act = act
        self.pause_s = pause_s
        self.batches: list[list[float]] = []
        self.threads: list[str] = []
        self.entered, self.released = threading.Event(), threading.Event()
        self.released.set()

    def hold(self) -> None:
        self.batches.clear()
        self.entered.clear()
        self.released.clear()

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        self.batches.append(tensors["x"].tolist())
        self.threads.append(threading.current_thread().name)
        self.entered.set()
        assert self.released.wait(WAIT_S)
        time.sleep(self.pause_s)
        return {"y": self.act(tensors["x"])}


class Counting(Model):
    """A user's model whose `predict` takes many requests; notes the rows of each call."""

    batching = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.batches: list[list[float]] = []
        self.entered, self.released = threading.Event(), threading.Event()

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        rows = get_predict_input(payload)
        self.batches.append(np.asarray(rows).tolist())
        self.entered.set()
        assert self.released.wait(WAIT_S)
        return get_predict_response(payload, np.asarray(rows) * 2, self.name)


class OneByName(ModelRepository):
    """Loads a new instance of its one model each time that somebody asks for it."""

    def __init__(self, make: Callable[[], Held]) -> None:
        super().__init__()
        self._make = make

    def load_model(self, name: str) -> bool:
        model = self._make()
        model.ready = True
        self.update(model)
        return True


@pytest.fixture
def name() -> str:
    """Give a model's name that no other test has: metrics are the process'."""
    return f"m{next(_numbers)}"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def serve(*models: Any, server: ModelServer | None = None, **settings: Any) -> Any:
    return serving_ports(list(models), server, configure_logging=False, **settings)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come to that"
        time.sleep(0.01)


# The wires.


def ask_v1(ports: Ports, name: str, values: list[float]) -> Answer:
    answer = request(ports.http, "POST", f"/v1/models/{name}:predict", {"instances": values})
    return answer.status, answer.json().get("predictions", answer.json().get("error"))


def ask_v2(ports: Ports, name: str, values: list[float]) -> Answer:
    tensor = {"name": "x", "shape": [len(values)], "datatype": "FP64", "data": values}
    answer = request(ports.http, "POST", f"/v2/models/{name}/infer", {"inputs": [tensor]})
    if answer.status != 200:
        return answer.status, answer.json()["error"]
    return answer.status, answer.json()["outputs"][0]["data"]


def ask_binary(ports: Ports, name: str, values: list[float]) -> Answer:
    tail = struct.pack(f"<{len(values)}d", *values)
    tensor = {
        "name": "x",
        "shape": [len(values)],
        "datatype": "FP64",
        "parameters": {"binary_data_size": len(tail)},
    }
    head = orjson.dumps({"parameters": {"binary_data_output": True}, "inputs": [tensor]})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = request(ports.http, "POST", f"/v2/models/{name}/infer", head + tail, headers)
    if answer.status != 200:
        return answer.status, answer.json()["error"]
    data = answer.body[int(answer.headers["inference-header-content-length"]) :]
    return answer.status, list(struct.unpack(f"<{len(data) // 8}d", data))


def message(name: str, values: list[float]) -> pb.ModelInferRequest:
    raw = struct.pack(f"<{len(values)}d", *values)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP64", shape=[len(values)])
    return pb.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[raw])


def ask_grpc(ports: Ports, name: str, values: list[float], timeout_s: float = RPC_S) -> Answer:
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        try:
            answer = stub.ModelInfer(message(name, values), timeout=timeout_s)
        except grpc.RpcError as exc:
            return exc.code().name, exc.details()
    data = answer.raw_output_contents[0]
    return "OK", list(struct.unpack(f"<{len(data) // 8}d", data))


WIRES = {"v1": ask_v1, "v2": ask_v2, "binary": ask_binary, "grpc": ask_grpc}
REST_STATUS = {"OK": 200, "INVALID_ARGUMENT": 400, "INTERNAL": 500}
each_wire = pytest.mark.parametrize("wire", WIRES)


def metric(ports: Ports, metric_name: str, **labels: str) -> float:
    """Give the sum of a metric's samples that have the labels, as scraped."""
    text = request(ports.http, "GET", "/metrics").body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric_name and labels.items() <= sample.labels.items()
    )


class Crowd:
    """Holds a model with one request, and has others wait behind it, one after the other."""

    def __init__(self, ports: Ports, model: Any, pool: ThreadPoolExecutor) -> None:
        self._ports, self._model, self._pool = ports, model, pool
        self._n_waiting = 0
        self.first = pool.submit(ask_v2, ports, model.name, [0.0])
        assert model.entered.wait(WAIT_S)

    def join(self, wire: str, *values: float) -> "Future[Answer]":
        future = self._pool.submit(WIRES[wire], self._ports, self._model.name, list(values))
        self._n_waiting += 1
        self.wait_for_queue(self._n_waiting)
        return future

    def wait_for_queue(self, n_requests: int) -> None:
        name = self._model.name
        wait_until(
            lambda: metric(self._ports, "kserve_queue_requests", model_name=name) == n_requests
        )

    def release(self, *futures: "Future[Answer]") -> list[Answer]:
        self._model.released.set()
        return [future.result(WAIT_S) for future in futures]


def as_rest(answer: Answer) -> Answer:
    """Give an answer with the status that REST has for it."""
    status, content = answer
    return REST_STATUS.get(str(status), status), content


def get(ports: Ports, path: str) -> int:
    return request(ports.http, "GET", path).status


# A batch with a culprit in it.


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        pytest.param(KeyError("secret"), 500, "Internal server error", id="a bug"),
        pytest.param(ValueError("x is unlucky"), 400, "x is unlucky", id="ValueError"),
        pytest.param(InferenceError("it broke"), 500, "it broke", id="InferenceError"),
        pytest.param(MemoryError(), 500, "Internal server error", id="MemoryError"),
    ],
)
@each_wire
def test_a_request_that_a_model_fails_on_fails_alone(
    name: str, pool: ThreadPoolExecutor, wire: str, error: Exception, status: int, text: str
) -> None:
    model = Held(name, failing(error))
    with serve(model) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)

        good = [crowd.join("v2", 1.0), crowd.join("grpc", 2.0)]
        culprit = crowd.join(wire, CULPRIT)
        good += [crowd.join("v1", 3.0), crowd.join("binary", 4.0, 5.0)]
        answers = crowd.release(crowd.first, *good, culprit)

    assert model.batches[1] == [1.0, 2.0, CULPRIT, 3.0, 4.0, 5.0]
    assert [as_rest(answer) for answer in answers] == [
        (200, [0.0]),
        (200, [2.0]),
        (200, [4.0]),
        (200, [6.0]),
        (200, [8.0, 10.0]),
        (status, text),
    ]


def test_after_three_failed_batches_requests_run_one_by_one(
    name: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long they take here.
    monkeypatch.setattr("kserve.batcher._FAILURES_S", 3600)
    monkeypatch.setattr("kserve.batcher._UNBATCHED_S", 3600)
    model = Held(name, failing(ValueError("x is unlucky")))
    with serve(model) as ports:
        for _ in range(3):
            model.hold()
            crowd = Crowd(ports, model, pool)
            crowd.release(crowd.first, crowd.join("v2", 1.0), crowd.join("v2", CULPRIT))
        spells = metric(ports, "kserve_unbatched_spells_total", model_name=name)
        model.hold()
        crowd = Crowd(ports, model, pool)
        answers = crowd.release(crowd.join("v2", 1.0), crowd.join("grpc", 2.0))
        batches = metric(ports, "kserve_batches_total", model_name=name, reason="retry")

    assert spells == 1
    assert answers == [(200, [2.0]), ("OK", [4.0])]
    assert model.batches == [[0.0], [1.0], [2.0]]
    assert batches == 6


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([1.0], [[1.0]], id="a batch of one"),
        pytest.param([1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]], id="a batch of three"),
    ],
)
def test_too_few_rows_are_nobodys_answer_and_are_not_tried_again(
    name: str, pool: ThreadPoolExecutor, rows: list[float], expected: list[list[float]]
) -> None:
    model = Held(name, lambda x: x if 0.0 in x else x[1:])
    with serve(model) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        futures = [crowd.join(wire, x) for wire, x in zip(("v2", "grpc", "v1"), rows, strict=False)]
        answers = crowd.release(*futures)

    text = (
        f"output 'y': expected {len(rows)} rows, as many as the inputs have, "
        f"got shape [{len(rows) - 1}]"
    )
    assert [as_rest(answer) for answer in answers] == [(500, text)] * len(rows)
    assert model.batches[1:] == expected


def test_nan_is_null_in_json_and_counted_and_itself_in_binary(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model = Held(name, lambda x: np.where(x == CULPRIT, np.nan, 2 * x))
    with serve(model) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        futures = [crowd.join(wire, CULPRIT, 1.0) for wire in WIRES]
        v1, v2, binary, over_grpc = crowd.release(*futures)
        n_counted = metric(ports, "kserve_nonfinite_values_total", model_name=name)

    assert [v1, v2] == [(200, [None, 2.0])] * 2
    for answer in (binary, over_grpc):
        assert math.isnan(answer[1][0])
        assert as_rest(answer)[0] == 200
        assert answer[1][1:] == [2.0]
    assert n_counted == 2


# A call that does not return.


def test_while_a_call_hangs_its_callers_get_504_and_all_others_answers(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model, other = Held(name), Held(f"{name}-other")
    with serve(model, other, request_timeout_s=2) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        # One that waits behind it, too.
        waiting = pool.submit(ask_grpc, ports, name, [1.0])
        late = [crowd.first.result(WAIT_S), waiting.result(WAIT_S)]
        others = [ask(ports, other.name, [3.0]) for ask in WIRES.values()]
        probes = [
            get(ports, path)
            for path in ("/", "/v2/health/live", "/v2/health/ready", f"/v2/models/{name}/ready")
        ]
        has_returned = model.released.is_set()
        model.released.set()
        wait_until(lambda: ask_v2(ports, name, [4.0]) == (200, [8.0]))

    text = "no answer within 2 s (--request_timeout_s)"
    assert late == [(504, text), ("DEADLINE_EXCEEDED", text)]
    assert [as_rest(answer) for answer in others] == [(200, [6.0])] * 4
    assert probes == [200] * 4
    assert not has_returned
    assert [1.0] not in model.batches


def test_a_hung_call_takes_its_model_out_of_service_until_it_returns(
    name: str, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    model, other = Held(name), Held(f"{name}-other")
    paths = ("/", "/v2/health/live", "/v2/health/ready", f"/v2/models/{name}/ready")
    reason = "A call has not returned for 1 s (--hang_timeout_s)."
    with serve(model, other, hang_timeout_s=1) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        wait_until(lambda: get(ports, "/v2/health/live") == 503)
        hung = {path: request(ports.http, "GET", path) for path in paths}
        refused = [ask(ports, name, [1.0]) for ask in WIRES.values()]
        states = _grpc_states(ports, name)
        is_unavailable = metric(ports, "kserve_model_state", model_name=name, state="unavailable")
        other_answer = ask_v2(ports, other.name, [3.0])
        (first,) = crowd.release(crowd.first)
        wait_until(lambda: get(ports, "/v2/health/live") == 200)
        well = [get(ports, path) for path in paths]
        well_states = _grpc_states(ports, name)
        answer = ask_grpc(ports, name, [4.0])

    assert {path: (r.status, r.json()) for path, r in hung.items()} == {
        "/": (503, {"error": f"Server is not live. {reason}"}),
        "/v2/health/live": (503, {"error": f"Server is not live. {reason}"}),
        "/v2/health/ready": (
            503,
            {"error": f"Server is not ready. Model with name {name} is not ready. {reason}"},
        ),
        f"/v2/models/{name}/ready": (
            503,
            {"error": f"Model with name {name} is not ready. {reason}"},
        ),
    }
    assert refused[:3] == [(503, f"Model with name {name} is not ready. {reason}")] * 3
    assert refused[3] == ("UNAVAILABLE", f"Model with name {name} is not ready. {reason}")
    assert states == ["UNAVAILABLE", False, "NOT_SERVING", "NOT_SERVING"]
    assert is_unavailable == 1
    assert other_answer == (200, [6.0])
    (logged,) = [r.getMessage() for r in caplog.records if "it is at" in r.getMessage()]
    assert "in predict_tensors" in logged
    # What hung is answered after all, and the model is back.
    assert first == (200, [0.0])
    assert well == [200] * 4
    assert well_states == [True, True, "SERVING", "SERVING"]
    assert answer == ("OK", [8.0])


def _grpc_states(ports: Ports, name: str) -> list[Any]:
    """Give what gRPC says of the server's liveness, the model's readiness and both healths."""
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            live = stub.ServerLive(pb.ServerLiveRequest(), timeout=RPC_S).live
        except grpc.RpcError as exc:
            live = exc.code().name
        ready = stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=RPC_S).ready
        serving = [
            health.Check(health_pb2.HealthCheckRequest(service=service), timeout=RPC_S).status
            for service in (name, "LIVENESS")
        ]
    return [live, ready, *map(health_pb2.HealthCheckResponse.ServingStatus.Name, serving)]


def test_a_model_that_becomes_slow_leaves_the_event_loop(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model = Held(name, pause_s=0)
    with serve(model) as ports:
        wait_until(lambda: ask_v2(ports, name, [1.0]) == (200, [2.0]) and model.threads[-1] == LOOP)
        on_loop = metric(ports, "kserve_batches_total", model_name=name, runs_on="loop")
        model.pause_s = SLOW_S
        model.threads.clear()
        for _ in range(6):
            ask_v2(ports, name, [1.0])
        slow_on = list(model.threads)
        in_threads = metric(ports, "kserve_batches_total", model_name=name, runs_on="thread")
        model.hold()
        crowd = Crowd(ports, model, pool)
        probe = get(ports, "/v2/health/live")
        (answer,) = crowd.release(crowd.first)

    # One that was held up may be bad luck; a second one is not.
    n_on_loop = slow_on.count(LOOP)
    assert n_on_loop <= 2
    assert slow_on == [LOOP] * n_on_loop + [f"{name}-0"] * (6 - n_on_loop)
    # The first ones ran in the thread too, while nothing was known of the model.
    assert in_threads >= 3 + 6 - n_on_loop
    assert on_loop == 1
    assert probe == 200
    assert answer == (200, [0.0])


# Full queues.


def test_more_requests_than_may_be_in_flight_are_refused_on_every_wire(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model, other = Held(name), Held(f"{name}-other")
    with serve(model, other, max_inflight_requests=3) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        accepted = [crowd.join("v2", 1.0), crowd.join("grpc", 2.0)]
        refused = [ask(ports, name, [9.0]) for ask in WIRES.values()]
        retry_after = _retry_after(ports, name)
        others = [ask(ports, other.name, [3.0]) for ask in WIRES.values()]
        answers = crowd.release(crowd.first, *accepted)
        again = ask_v2(ports, name, [5.0])

    text = (
        "3 requests for this model are in flight, which is as many as it takes "
        "(--max_inflight_requests)"
    )
    assert refused == [(429, text)] * 3 + [("RESOURCE_EXHAUSTED", text)]
    assert retry_after == "1"
    assert [as_rest(answer) for answer in others] == [(200, [6.0])] * 4
    assert [as_rest(answer) for answer in answers] == [(200, [0.0]), (200, [2.0]), (200, [4.0])]
    assert again == (200, [10.0])
    assert model.batches == [[0.0], [1.0, 2.0], [5.0]]


def test_more_rows_than_may_wait_are_refused_and_fewer_are_not(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model, other = Held(name), Held(f"{name}-other")
    with serve(model, other, max_queued_rows=4) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        accepted = [crowd.join("v1", 1.0, 2.0), crowd.join("grpc", 3.0)]
        refused = [ask(ports, name, [8.0, 9.0]) for ask in WIRES.values()]
        retry_after = _retry_after(ports, name, 2)
        others = [ask(ports, other.name, [3.0] * 9) for ask in WIRES.values()]
        accepted.append(crowd.join("binary", 4.0))
        answers = crowd.release(*accepted)
        larger = ask_v2(ports, name, [5.0] * 9)

    text = "3 rows wait for this model, 2 more would be over 4 (--max_queued_rows)"
    assert refused == [(429, text)] * 3 + [("RESOURCE_EXHAUSTED", text)]
    assert int(retry_after) >= 1
    assert [as_rest(answer) for answer in others] == [(200, [6.0] * 9)] * 4
    assert [as_rest(a) for a in answers] == [(200, [2.0, 4.0]), (200, [6.0]), (200, [8.0])]
    # Nothing waits: it is not refused, however large it is.
    assert larger == (200, [10.0] * 9)


def _retry_after(ports: Ports, name: str, n_rows: int = 1) -> str:
    body = {"instances": [1.0] * n_rows}
    answer = request(ports.http, "POST", f"/v1/models/{name}:predict", body)
    assert answer.status == 429
    return answer.headers["retry-after"]


def test_a_server_that_stops_answers_all_that_it_has_accepted(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model = Held(name)
    config = ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0, configure_logging=False)
    server = ModelServer(config=config)
    with serve(model, server=server) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        accepted = [crowd.join(wire, 1.0) for wire in WIRES]
        server.stop()
        wait_until(lambda: not _is_ready(ports))
        answers = crowd.release(crowd.first, *accepted)

    assert [as_rest(answer) for answer in answers] == [(200, [0.0])] + [(200, [2.0])] * 4


def _is_ready(ports: Ports) -> bool:
    try:
        return get(ports, "/v2/health/ready") == 200
    except OSError:
        return False


def test_an_unload_waits_for_all_that_waits_for_the_model(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model = Held(name)
    with serve(model, Held(f"{name}-other"), repository_api=True) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        accepted = [crowd.join(wire, 1.0) for wire in WIRES]
        path = f"/v2/repository/models/{name}/unload"
        unload = pool.submit(request, ports.http, "POST", path)
        wait_until(lambda: get(ports, f"/v2/models/{name}") == 404)
        was_unloaded = unload.done()
        answers = crowd.release(crowd.first, *accepted)
        unloaded = unload.result(WAIT_S).status

    assert not was_unloaded
    assert [as_rest(answer) for answer in answers] == [(200, [0.0])] + [(200, [2.0])] * 4
    assert unloaded == 200


def test_a_reload_leaves_what_waits_to_the_old_model_and_the_rest_to_the_new(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model = Held(name)
    repository = OneByName(lambda: Held(name, lambda x: 3 * x))
    config = ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0, configure_logging=False)
    server = ModelServer(config=config, registered_models=repository)
    with serve(model, server=server) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        accepted = [crowd.join(wire, 1.0) for wire in WIRES]
        loaded = request(ports.http, "POST", f"/v2/repository/models/{name}/load").status
        new = [ask(ports, name, [1.0]) for ask in WIRES.values()]
        answers = crowd.release(crowd.first, *accepted)

    assert loaded == 200
    assert [as_rest(answer) for answer in new] == [(200, [3.0])] * 4
    assert [as_rest(answer) for answer in answers] == [(200, [0.0])] + [(200, [2.0])] * 4


# Callers that give up.


@pytest.mark.parametrize(
    ("settings", "timeout_s"),
    [
        pytest.param({}, 3, id="the client's deadline"),
        pytest.param({"request_timeout_s": 2}, RPC_S, id="the server's deadline"),
    ],
)
def test_a_request_whose_deadline_passes_never_reaches_the_model(
    name: str, pool: ThreadPoolExecutor, settings: dict[str, Any], timeout_s: float
) -> None:
    model = Held(name)
    with serve(model, **settings) as ports:
        model.hold()
        Crowd(ports, model, pool)
        status, _ = ask_grpc(ports, name, [1.0], timeout_s)
        # The client knows of its own deadline before the server does, and may have gone by then.
        ends = ("DEADLINE_EXCEEDED", "CANCELLED")
        wait_until(lambda: sum(_n_grpc(ports, name, end) for end in ends) == 1)
        n_left = metric(ports, "kserve_queue_left_total", model_name=name)
        n_waiting = metric(ports, "kserve_queue_requests", model_name=name)
        model.released.set()
        wait_until(lambda: ask_v2(ports, name, [2.0])[0] == 200)

    assert status == "DEADLINE_EXCEEDED"
    assert (n_left, n_waiting) == (1, 0)
    assert [1.0] not in model.batches


def test_a_rest_request_whose_time_is_over_never_reaches_the_model(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model = Held(name)
    with serve(model, request_timeout_s=2) as ports:
        model.hold()
        crowd = Crowd(ports, model, pool)
        asks = (ask_v1, ask_v2, ask_binary)
        answers = list(pool.map(lambda ask: ask(ports, name, [1.0]), asks))
        n_left = metric(ports, "kserve_queue_left_total", model_name=name)
        model.released.set()
        wait_until(lambda: ask_v2(ports, name, [2.0])[0] == 200)

    assert answers == [(504, "no answer within 2 s (--request_timeout_s)")] * 3
    assert crowd.first.result(WAIT_S)[0] == 504
    assert n_left == 3
    assert [1.0] not in model.batches


def test_a_cancelled_call_leaves_the_queue_before_it_reaches_the_model(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model = Held(name)
    with serve(model) as ports, grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        model.hold()
        crowd = Crowd(ports, model, pool)
        before = crowd.join("grpc", 1.0)
        call = stub.ModelInfer.future(message(name, [CULPRIT]), timeout=RPC_S)
        crowd.wait_for_queue(2)
        call.cancel()
        crowd.wait_for_queue(1)
        wait_until(lambda: _n_grpc(ports, name, "CANCELLED") == 1)
        n_left = metric(ports, "kserve_queue_left_total", model_name=name)
        in_flight = metric(ports, "kserve_requests_in_flight", model_name=name)
        after = pool.submit(ask_v2, ports, name, [2.0])
        crowd.wait_for_queue(2)
        answers = crowd.release(crowd.first, before, after)

    assert n_left == 1
    assert in_flight == 2
    assert [as_rest(answer) for answer in answers] == [(200, [0.0]), (200, [2.0]), (200, [4.0])]
    assert model.batches == [[0.0], [1.0, 2.0]]


def test_calls_that_are_cancelled_while_they_run_leave_their_neighbour_its_answer(
    name: str, pool: ThreadPoolExecutor
) -> None:
    runs_together, may_end = threading.Event(), threading.Event()

    def act(x: NDArray[np.float64]) -> NDArray[np.float64]:
        if CULPRIT in x:
            runs_together.set()
            assert may_end.wait(WAIT_S)
        return 2 * x

    model = Held(name, act)
    with serve(model) as ports, grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        model.hold()
        crowd = Crowd(ports, model, pool)
        neighbour = crowd.join("v2", 1.0)
        calls = [stub.ModelInfer.future(message(name, [CULPRIT]), timeout=RPC_S) for _ in range(2)]
        crowd.wait_for_queue(3)
        crowd.release(crowd.first)
        assert runs_together.wait(WAIT_S)
        for call in calls:
            call.cancel()
        wait_until(lambda: _n_grpc(ports, name, "CANCELLED") == 2)
        may_end.set()
        answer = neighbour.result(WAIT_S)
        n_left = metric(ports, "kserve_queue_left_total", model_name=name)
        in_flight = metric(ports, "kserve_requests_in_flight", model_name=name)

    assert answer == (200, [2.0])
    assert model.batches == [[0.0], [1.0, CULPRIT, CULPRIT]]
    # They had left the queue for the model already.
    assert n_left == 0
    assert in_flight == 0


def _n_grpc(ports: Ports, name: str, status: str) -> float:
    labels = {"model_name": name, "protocol": "grpc", "status": status}
    return metric(ports, "kserve_requests_total", **labels)


# A user's model that opts in.


def test_a_users_model_with_batching_gets_the_rows_of_several_requests(
    name: str, pool: ThreadPoolExecutor
) -> None:
    model = Counting(name)
    with serve(model) as ports:
        crowd = Crowd(ports, model, pool)
        # Payloads of one form join: lists, tensors of REST, tensors of gRPC.
        futures = [crowd.join(wire, x) for x in (1.0, 2.0) for wire in ("v1", "v2", "grpc")]
        futures.append(crowd.join("v2", 3.0, 4.0))
        answers = crowd.release(*futures)

    assert [as_rest(answer) for answer in answers] == [
        *[(200, [2.0])] * 3,
        *[(200, [4.0])] * 3,
        (200, [6.0, 8.0]),
    ]
    assert model.batches == [[0.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0]]
