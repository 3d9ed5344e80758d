"""Requests that wait together run together, and nobody notices: each gets its own answer.

The servers of these rows wait for a batch to be full, and a batch is as many rows as four requests
have: when all four are answered, they have run together, whatever the order they came in.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import triton_to_np_dtype

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

Json = dict[str, Any]
# A status, and the outputs by name or the text of the error.
Answer = tuple[int, Any]
Ask = Callable[["RunningServer", Json], Answer]

# The first row that needs a server starts it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

N_REQUESTS = 4
# Then a batch runs though it is not full, and the count of the reasons is another.
DELAY_MS = "5000"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2 * N_REQUESTS) as pool:
        yield pool


@pytest.fixture
def filling(
    server: "RunningServer", running_server: "Callable[..., RunningServer]"
) -> "RunningServer":
    """Give every server of the table in turn, one that waits for four of its requests."""
    return _filling(running_server, server.entry.name, n_rows(server.entry.v2_request))


@pytest.fixture
def filling_iris(running_server: "Callable[..., RunningServer]") -> "RunningServer":
    return _filling(running_server, "sklearnserver", 3)


def _filling(
    running_server: "Callable[..., RunningServer]", name: str, n_rows: int
) -> "RunningServer":
    size = str(N_REQUESTS * n_rows)
    return running_server(name, "--max_batch_size", size, "--max_batch_delay_ms", DELAY_MS)


def n_rows(v2_request: Json) -> int:
    return int(v2_request["inputs"][0]["shape"][0])


def over_v1(server: "RunningServer", v1_request: Json) -> Answer:
    answer = server.request("POST", f"{server.entry.v1}:predict", v1_request)
    return answer.status, answer.json().get("predictions", answer.json().get("error"))


def over_v2(server: "RunningServer", v2_request: Json) -> Answer:
    answer = server.request("POST", f"{server.entry.v2}/infer", v2_request)
    if answer.status != 200:
        return answer.status, answer.json()["error"]
    return answer.status, {output["name"]: output["data"] for output in answer.json()["outputs"]}


def over_binary(server: "RunningServer", v2_request: Json) -> Answer:
    with http_client.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        result = client.infer(
            server.entry.model_name,
            inputs_of(http_client, v2_request),
            outputs=outputs_of(http_client, v2_request),
            parameters=v2_request.get("parameters"),
        )
    return 200, values_of(server, v2_request, result)


def over_grpc(server: "RunningServer", v2_request: Json) -> Answer:
    with grpc_client.InferenceServerClient(f"127.0.0.1:{server.process.grpc_port}") as client:
        result = client.infer(
            server.entry.model_name,
            inputs_of(grpc_client, v2_request),
            outputs=outputs_of(grpc_client, v2_request),
            parameters=v2_request.get("parameters"),
        )
    return 200, values_of(server, v2_request, result)


def outputs_of(client: Any, v2_request: Json) -> list[Any] | None:
    names = [output["name"] for output in v2_request.get("outputs", [])]
    return [client.InferRequestedOutput(name) for name in names] or None


def output_names(server: "RunningServer", v2_request: Json) -> list[str]:
    return [output["name"] for output in v2_request.get("outputs", server.entry.v2_outputs)]


def inputs_of(client: Any, v2_request: Json) -> list[Any]:
    tensors = []
    for entry in v2_request["inputs"]:
        values = entry["data"]
        if entry["datatype"] == "BYTES":
            values = [text.encode() for text in values]
        array = np.array(values, triton_to_np_dtype(entry["datatype"])).reshape(entry["shape"])
        tensor = client.InferInput(entry["name"], entry["shape"], entry["datatype"])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def values_of(server: "RunningServer", v2_request: Json, result: Any) -> dict[str, list[Any]]:
    arrays = {name: result.as_numpy(name) for name in output_names(server, v2_request)}
    return {
        name: [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
        for name, array in arrays.items()
    }


def rotated(v2_request: Json, n: int) -> Json:
    """Give a request with its rows moved on by n."""
    (entry,) = v2_request["inputs"]
    return {"inputs": [{**entry, "data": entry["data"][n:] + entry["data"][:n]}]}


def batches(server: "RunningServer") -> dict[str, float]:
    """Give how many batches were started, by the reason."""
    text = server.request("GET", "/metrics").body.decode()
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    reasons = {s.labels["reason"] for s in samples if s.name == "kserve_batches_total"}
    return {
        reason: sum(
            s.value
            for s in samples
            if s.name == "kserve_batches_total" and s.labels["reason"] == reason
        )
        for reason in reasons
    }


def since(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    grown = {reason: n - before.get(reason, 0) for reason, n in after.items()}
    return {reason: n for reason, n in grown.items() if n}


def test_requests_of_all_wires_that_run_together_get_their_own_answers(
    filling: "RunningServer", server: "RunningServer", pool: ThreadPoolExecutor
) -> None:
    entry = filling.entry
    instances = entry.v1_request["instances"]
    asked: list[tuple[Ask, Json]] = [
        (over_v1, {"instances": instances[::-1]}),
        (over_v2, entry.v2_request),
        (over_binary, rotated(entry.v2_request, 1)),
        (over_grpc, rotated(entry.v2_request, 2)),
    ]
    before = batches(filling)

    futures = [pool.submit(ask, filling, payload) for ask, payload in asked]
    together = [future.result() for future in futures]

    assert together[0] == (200, entry.v1_response["predictions"][::-1])
    assert together[1] == (200, {output["name"]: output["data"] for output in entry.v2_outputs})
    assert together == [ask(server, payload) for ask, payload in asked]
    assert since(before, batches(filling)).get("full", 0) == int(entry.batches)


def tensor(rows: list[Any], name: str = "x") -> Json:
    return {"name": name, "shape": list(np.shape(rows)), "datatype": "FP64", "data": rows}


# Rows 0, 50 and 100 of the data, and others between them.
IRIS = [[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]]
OTHERS = [[6.0, 3.0, 4.9, 1.7], [5.0, 3.4, 1.5, 0.2], [6.1, 2.8, 4.5, 1.3]]
COLUMNS = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")

PREDICTED: Json = {"inputs": [tensor(IRIS)]}
DECIDED: Json = {"inputs": [tensor(OTHERS)], "parameters": {"method": "decision_function"}}
BOTH: Json = {
    "inputs": [tensor(OTHERS)],
    "outputs": [{"name": "output-0"}, {"name": "decision_function"}],
}
AS_COLUMNS: Json = {
    "inputs": [tensor([row[i] for row in OTHERS], name) for i, name in enumerate(COLUMNS)]
}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(PREDICTED, DECIDED, id="methods"),
        pytest.param(PREDICTED, BOTH, id="requested outputs"),
        pytest.param(PREDICTED, AS_COLUMNS, id="one tensor and columns"),
        pytest.param(DECIDED, BOTH, id="a method and the output of it"),
    ],
)
def test_requests_that_differ_in_what_they_ask_for_never_mix(
    filling_iris: "RunningServer",
    running_server: "Callable[..., RunningServer]",
    pool: ThreadPoolExecutor,
    one: Json,
    other: Json,
) -> None:
    alone = [over_v2(running_server("sklearnserver"), payload) for payload in (one, other)]
    before = batches(filling_iris)

    # In turn: neighbours in the queue differ.
    asks = [over_v2, over_grpc, over_binary, over_v2]
    futures = [pool.submit(ask, filling_iris, p) for ask in asks for p in (one, other)]
    answers = [future.result() for future in futures]

    assert [status for status, _ in alone] == [200, 200]
    assert answers == alone * N_REQUESTS
    # Their answers prove it; a model may or may not wait for one kind while another is there.
    assert sum(since(before, batches(filling_iris)).values()) >= 2


def test_a_row_that_the_model_refuses_fails_its_own_request_alone(
    filling_iris: "RunningServer", pool: ThreadPoolExecutor
) -> None:
    missing = [*IRIS[:2], [6.3, 3.3, None, 2.5]]
    before = batches(filling_iris)

    futures = [
        pool.submit(over_v1, filling_iris, {"instances": IRIS}),
        pool.submit(over_grpc, filling_iris, {"inputs": [tensor(OTHERS)]}),
        pool.submit(over_v2, filling_iris, {"inputs": [tensor(missing)]}),
        pool.submit(over_v2, filling_iris, {"inputs": [tensor(OTHERS)]}),
    ]
    first, second, wrong, last = [future.result() for future in futures]

    assert first == (200, [0, 1, 2])
    assert second == last == (200, {"output-0": [2, 0, 1]})
    assert wrong[0] == 400
    assert wrong[1].startswith("Input X contains NaN.")
    # Halves, and the halves of the one with the culprit.
    assert since(before, batches(filling_iris)) == {"full": 1, "retry": 4}


def test_a_request_of_a_wrong_form_is_refused_and_the_others_run_together(
    filling_iris: "RunningServer", pool: ThreadPoolExecutor
) -> None:
    narrow = {"inputs": [tensor([row[:3] for row in IRIS])]}
    unknown = {"inputs": [tensor(IRIS)], "parameters": {"method": "nonsense"}}
    before = batches(filling_iris)

    futures = [pool.submit(over_v2, filling_iris, narrow)]
    futures += [pool.submit(over_v2, filling_iris, PREDICTED) for _ in range(N_REQUESTS)]
    wrong, *good = [future.result() for future in futures]
    futures = [pool.submit(over_v2, filling_iris, unknown) for _ in range(N_REQUESTS)]
    refused = [future.result() for future in futures]

    assert wrong == (400, "input 'x': expected shape [-1, 4], got [3, 3]")
    assert good == [(200, {"output-0": [0, 1, 2]})] * N_REQUESTS
    assert [status for status, _ in refused] == [400] * N_REQUESTS
    assert {text for _, text in refused} == {
        "parameter 'method': the model has no method 'nonsense', it has predict, decision_function"
    }
    # Those of the unknown method were a batch, too, until the model refused them: 2 and 4 parts.
    assert since(before, batches(filling_iris)) == {"full": 2, "retry": 6}
