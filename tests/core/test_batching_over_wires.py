"""Which requests run together, seen by a `TensorModel` that notes what it got, over real sockets.

The model is held at an event by a first request, so that what is asked meanwhile waits for certain.
"""

import itertools
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
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from kserve.errors import InvalidInput
from kserve.model import PredictOptions, TensorModel
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.testing import Ports, request, serving_ports

WAIT_S = 40
# Far longer than what may run on the event loop.
SLOW_S = 0.02

pytestmark = pytest.mark.timeout(90)

Json = dict[str, Any]
Answer = tuple[int | str, Any]

_numbers = itertools.count()

MATRIX = Signature(
    inputs=(TensorSpec("x", "FP64", (-1, -1), exact=False),),
    outputs=(TensorSpec("sum", "FP64", (-1,)),),
    optional_outputs=(TensorSpec("max", "FP64", (-1,)),),
)
TABLE = Signature(
    inputs=(TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "FP64", (-1,))),
    outputs=(TensorSpec("sum", "FP64", (-1,)),),
    is_table=True,
)


class Recording(TensorModel):
    """Adds up rows, or what `factor` makes of them; notes names, datatypes and values it got."""

    def __init__(self, name: str, signature: Signature) -> None:
        super().__init__(name)
        self.signature = signature
        self.batches: list[dict[str, tuple[str, Any]]] = []
        self.entered, self.released = threading.Event(), threading.Event()
        self.released.set()

    def hold(self) -> None:
        self.batches.clear()
        self.entered.clear()
        self.released.clear()

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        self.batches.append({k: (str(v.dtype), v.tolist()) for k, v in tensors.items()})
        self.entered.set()
        assert self.released.wait(WAIT_S)
        time.sleep(SLOW_S)
        factor = options.parameters.get("factor", 1)
        if not isinstance(factor, int):
            raise InvalidInput(f"parameter 'factor': expected an integer, got {factor!r}")
        table = np.column_stack(list(tensors.values()))
        outputs = {"sum": factor * table.sum(axis=1), "max": factor * table.max(axis=1)}
        return {name: outputs[name].astype(float) for name in options.outputs or ("sum",)}


class Line:
    """Requests that wait for a model, one behind the other."""

    def __init__(self, ports: Ports, model: Recording, pool: ThreadPoolExecutor) -> None:
        self._ports, self._model, self._pool = ports, model, pool
        self._n_waiting = 0
        model.hold()
        self._first = pool.submit(v1, ports, model.name, [[0.0, 0.0]])
        assert model.entered.wait(WAIT_S)

    def join(self, ask: Callable[..., Answer], *args: Any, **kwargs: Any) -> "Future[Answer]":
        """Ask, and return once the request waits."""
        future = self._pool.submit(ask, self._ports, self._model.name, *args, **kwargs)
        self._n_waiting += 1
        give_up_at = time.monotonic() + WAIT_S
        while self._length() != self._n_waiting:
            assert time.monotonic() < give_up_at, "it does not wait"
            time.sleep(0.005)
        return future

    def release(self, futures: "list[Future[Answer]]") -> list[Answer]:
        """Let the model go on, and give the answers; `batches` is what ran after the first."""
        self._model.released.set()
        answers = [future.result(WAIT_S) for future in futures]
        assert self._first.result(WAIT_S) == (200, [0.0])
        del self._model.batches[0]
        return answers

    def _length(self) -> float | None:
        labels = {"model_name": self._model.name}
        return REGISTRY.get_sample_value("kserve_queue_requests", labels)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def recording(signature: Signature = MATRIX) -> Recording:
    # Metrics are the process': a name of its own.
    return Recording(f"recording{next(_numbers)}", signature)


def serve(model: Recording, **settings: Any) -> Any:
    return serving_ports([model], configure_logging=False, **settings)


def v1(ports: Ports, name: str, rows: Any) -> Answer:
    answer = request(ports.http, "POST", f"/v1/models/{name}:predict", {"instances": rows})
    return answer.status, answer.json().get("predictions", answer.json().get("error"))


def v2(ports: Ports, name: str, *tensors: Json, **fields: Any) -> Answer:
    answer = request(ports.http, "POST", f"/v2/models/{name}/infer", {"inputs": tensors, **fields})
    if answer.status != 200:
        return answer.status, answer.json()["error"]
    outputs = answer.json()["outputs"]
    values = {output["name"]: output["data"] for output in outputs}
    return answer.status, values["sum"] if list(values) == ["sum"] else values


def binary(ports: Ports, name: str, rows: list[list[float]]) -> Answer:
    array = np.array(rows, "<f8")
    tensor = {**x([]), "shape": list(array.shape)}
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    head = orjson.dumps({"parameters": {"binary_data_output": True}, "inputs": [tensor]})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = request(
        ports.http, "POST", f"/v2/models/{name}/infer", head + array.tobytes(), headers
    )
    data = answer.body[int(answer.headers["inference-header-content-length"]) :]
    return answer.status, list(struct.unpack(f"<{len(data) // 8}d", data))


def over_grpc(
    ports: Ports, name: str, rows: list[list[float]], factor: int | None = None
) -> Answer:
    array = np.array(rows, "<f8")
    message = pb.ModelInferRequest(model_name=name, raw_input_contents=[array.tobytes()])
    message.inputs.add(name="x", datatype="FP64", shape=array.shape)
    if factor is not None:
        message.parameters["factor"].int64_param = factor
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(message, timeout=WAIT_S)
    data = answer.raw_output_contents[0]
    return answer.outputs[0].name, list(struct.unpack(f"<{len(data) // 8}d", data))


def x(rows: list[list[Any]], datatype: str = "FP64") -> Json:
    return column("x", rows, datatype)


def column(name: str, rows: list[Any], datatype: str = "FP64") -> Json:
    return {"name": name, "shape": list(np.shape(rows)), "datatype": datatype, "data": rows}


def test_requests_of_all_wires_that_wait_together_run_together(pool: ThreadPoolExecutor) -> None:
    model = recording()
    with serve(model) as ports:
        line = Line(ports, model, pool)
        futures = [
            line.join(v1, [[1.0, 2.0], [3.0, 4.0]]),
            line.join(v2, x([[5, 6]])),
            line.join(binary, [[7, 8], [9, 10], [11, 12]]),
            line.join(over_grpc, [[13, 14]]),
            line.join(v1, [[15.0, 16.0]]),
        ]
        answers = line.release(futures)

    rows = [[float(i), float(i + 1)] for i in range(1, 17, 2)]
    assert model.batches == [{"x": ("float64", rows)}]
    assert answers == [
        (200, [3.0, 7.0]),
        (200, [11.0]),
        (200, [15.0, 19.0, 23.0]),
        ("sum", [27.0]),
        (200, [31.0]),
    ]


def test_an_answer_is_that_of_the_request_alone(pool: ThreadPoolExecutor) -> None:
    model = recording()
    asked: list[tuple[Callable[..., Answer], Any]] = [
        (v1, [[0.1, 0.2]]),
        (v2, x([[1e300, 1.5], [0.3, -0.0]])),
        (binary, [[5e-324, 0.0], [1.0, 2.0]]),
        (over_grpc, [[0.7, 0.1]]),
    ]
    with serve(model) as ports:
        alone = [ask(ports, model.name, payload) for ask, payload in asked]
        line = Line(ports, model, pool)
        together = line.release([line.join(ask, payload) for ask, payload in asked])

    assert len(model.batches) == 1
    assert together == alone


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param((v2, x([[1, 2]])), (v2, x([[1, 2, 3]])), id="numbers of columns"),
        pytest.param((v2, x([[1, 2]])), (v2, x([[1, 2]], "INT64")), id="datatypes"),
        pytest.param((v2, x([[1, 2]], "FP32")), (v2, x([[1, 2]])), id="widths"),
    ],
)
def test_what_differs_in_form_never_mixes(
    pool: ThreadPoolExecutor, one: tuple[Any, Json], other: tuple[Any, Json]
) -> None:
    model = recording()
    with serve(model) as ports:
        line = Line(ports, model, pool)
        futures = [line.join(*asked) for asked in (one, other, one, other)]
        answers = line.release(futures)

    assert [len(batch["x"][1]) for batch in model.batches] == [2, 2]
    assert model.batches[0] != model.batches[1]
    sums = [float(sum(asked[1]["data"][0])) for asked in (one, other)]
    assert answers == [(200, [total]) for total in sums * 2]


def test_what_differs_in_parameters_never_mixes(pool: ThreadPoolExecutor) -> None:
    model = recording()
    with serve(model) as ports:
        line = Line(ports, model, pool)
        futures = [
            line.join(v2, x([[1, 2]]), parameters={"factor": 2}),
            line.join(v2, x([[3, 4]])),
            # Equal to 2 in Python, and no integer.
            line.join(v2, x([[5, 6]]), parameters={"factor": 2.0}),
            line.join(over_grpc, [[7, 8]], factor=2),
            line.join(v1, [[9.0, 10.0]]),
        ]
        answers = line.release(futures)

    assert [batch["x"][1] for batch in model.batches] == [
        [[1.0, 2.0], [7.0, 8.0]],
        [[3.0, 4.0], [9.0, 10.0]],
        [[5.0, 6.0]],
    ]
    assert answers == [
        (200, [6.0]),
        (200, [7.0]),
        (400, "parameter 'factor': expected an integer, got 2.0"),
        ("sum", [30.0]),
        (200, [19.0]),
    ]


def test_what_differs_in_requested_outputs_never_mixes(pool: ThreadPoolExecutor) -> None:
    model = recording()
    both = [{"name": "max"}, {"name": "sum"}]
    with serve(model) as ports:
        line = Line(ports, model, pool)
        futures = [
            line.join(v2, x([[1, 2]])),
            line.join(v2, x([[3, 4]]), outputs=both),
            line.join(v2, x([[5, 6]]), outputs=both),
            line.join(v2, x([[7, 8]]), outputs=both[:1]),
        ]
        answers = line.release(futures)

    assert [batch["x"][1] for batch in model.batches] == [
        [[1.0, 2.0]],
        [[3.0, 4.0], [5.0, 6.0]],
        [[7.0, 8.0]],
    ]
    assert answers == [
        (200, [3.0]),
        (200, {"max": [4.0], "sum": [7.0]}),
        (200, {"max": [6.0], "sum": [11.0]}),
        (200, {"max": [8.0]}),
    ]


def test_a_table_as_columns_and_as_one_tensor_never_mix(pool: ThreadPoolExecutor) -> None:
    model = recording(TABLE)
    with serve(model) as ports:
        line = Line(ports, model, pool)
        futures = [
            line.join(v2, column("a", [1]), column("b", [2])),
            line.join(v2, x([[3, 4]])),
            # In another order, and of another datatype that becomes the signature's.
            line.join(v2, column("b", [6], "INT32"), column("a", [5])),
            # A table has one name, however the client calls it.
            line.join(v2, column("y", [[7, 8]], "FP32")),
            line.join(v1, [[9.0, 10.0]]),
        ]
        answers = line.release(futures)

    assert model.batches == [
        {"a": ("float64", [1.0, 5.0]), "b": ("float64", [2.0, 6.0])},
        {"input-0": ("float64", [[3.0, 4.0], [7.0, 8.0], [9.0, 10.0]])},
    ]
    assert answers == [(200, [total]) for total in (3.0, 7.0, 11.0, 15.0, 19.0)]


def test_a_wrong_request_is_refused_before_it_waits_and_the_others_run_together(
    pool: ThreadPoolExecutor,
) -> None:
    model = recording(TABLE)
    with serve(model) as ports:
        line = Line(ports, model, pool)
        good = [line.join(v1, [[1, 2]])]
        wrong = [
            v2(ports, model.name, x([[1, 2, 3]])),
            v2(ports, model.name, column("a", [1]), column("b", [1, 2])),
            v2(ports, model.name, x([["a", "b"]], "BYTES")),
            v2(ports, model.name, x([[1, 2]]), outputs=[{"name": "nonsense"}]),
        ]
        good.append(line.join(over_grpc, [[3, 4]]))
        answers = line.release(good)

    assert wrong == [
        (400, "input 'x': expected shape [-1, 2], got [1, 3]"),
        (400, "the inputs differ in their number of rows: 'a' 1, 'b' 2"),
        (400, "input 'x': expected datatype FP64, got BYTES"),
        (400, "Unexpected inference output 'nonsense': the model has 'sum'"),
    ]
    assert answers == [(200, [3.0]), ("sum", [7.0])]
    assert model.batches == [{"input-0": ("float64", [[1.0, 2.0], [3.0, 4.0]])}]


def test_a_batch_has_no_more_rows_than_its_limit_and_a_larger_request_runs_alone(
    pool: ThreadPoolExecutor,
) -> None:
    model = recording()
    rows: NDArray[np.float64] = np.arange(20.0).reshape(10, 2)
    with serve(model, max_batch_size=4) as ports:
        line = Line(ports, model, pool)
        futures = [
            line.join(v1, rows[:2].tolist()),
            line.join(over_grpc, rows[2:3].tolist()),
            line.join(v2, x(rows[:6].tolist())),
            line.join(binary, rows[6:8].tolist()),
            line.join(v1, rows[8:].tolist()),
        ]
        answers = line.release(futures)

    assert [len(batch["x"][1]) for batch in model.batches] == [3, 6, 4]
    sums = rows.sum(axis=1).tolist()
    assert [values for _, values in answers] == [
        sums[:2],
        sums[2:3],
        sums[:6],
        sums[6:8],
        sums[8:],
    ]


def test_a_request_without_rows_is_answered_without_any(pool: ThreadPoolExecutor) -> None:
    model = recording()
    empty = {"name": "x", "shape": [0, 2], "datatype": "FP64", "data": []}
    with serve(model) as ports:
        line = Line(ports, model, pool)
        answers = line.release([line.join(v2, empty), line.join(v1, [[1, 2]])])

    assert answers == [(200, []), (200, [3.0])]
    assert [len(batch["x"][1]) for batch in model.batches] == [0, 1]
