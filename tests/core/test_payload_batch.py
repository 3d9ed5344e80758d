"""The payloads of a user's model as one call of its `predict`."""

from typing import Any

import numpy as np
import pytest

from kserve.errors import RowCountError
from kserve.payload_batch import PayloadBatches, PayloadCall
from kserve.protocol.infer_type import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def rows(*values: Any, **others: Any) -> dict[str, Any]:
    return {"instances": list(values), **others}


def v2(
    array: Any,
    datatype: str = "FP64",
    name: str = "x",
    *,
    parameters: dict[str, Any] | None = None,
    **others: Any,
) -> InferRequest:
    array = np.asarray(array)
    tensor = InferInput.from_array(name, list(array.shape), datatype, array, parameters)
    return InferRequest("m", [tensor], **others)


def binary(array: Any, datatype: str = "FP64", **others: Any) -> InferRequest:
    array = np.asarray(array)
    tensor = InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=True)
    return InferRequest("m", [tensor], **others)


def prepared(*payloads: Any) -> list[PayloadCall]:
    return [PayloadBatches.prepare(payload) for payload in payloads]


def run(result: Any, *payloads: Any) -> list[Any]:
    """Give the results of payloads that join, where `predict` gives `result`."""
    return [answer for answer, _ in PayloadBatches(lambda *_: result).run(prepared(*payloads))]


# Which join.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(rows([1, 2]), rows([3, 4], [5, 6]), id="lists"),
        pytest.param(rows(1), rows(2.5), id="integers that are floats by their column"),
        pytest.param(rows({"a": 1, "b": "x"}), rows({"b": "y", "a": 2}), id="columns in any order"),
        pytest.param(rows("a"), rows("bcd"), id="texts"),
        pytest.param(rows([[1], [2]]), rows([[3], [4]]), id="nested lists"),
        pytest.param(rows([1], k=[1, {"a": None}]), rows([2], k=[1, {"a": None}]), id="other keys"),
        pytest.param({"instances": np.zeros((1, 2))}, {"instances": np.ones((3, 2))}, id="arrays"),
        pytest.param(v2([[1.0]]), v2([[2.0], [3.0]]), id="tensors"),
        pytest.param(
            v2([[1.0]], parameters={"p": 1}), v2([[2.0]], parameters={"p": 1}), id="parameters"
        ),
        pytest.param(v2([[1.0]]), binary([[2.0], [3.0]]), id="JSON and binary"),
        pytest.param(binary([[1.0]]), binary([[2.0], [3.0]]), id="binary of another size"),
        pytest.param(
            v2([[1.0]], request_outputs=[RequestedOutput("y", {"binary_data": True})]),
            v2([[1.0]], request_outputs=[RequestedOutput("y")]),
            id="requested outputs",
        ),
        pytest.param(v2([[1.0]], request_id="1"), v2([[1.0]], request_id="2"), id="ids"),
    ],
)
def test_payloads_that_join(first: Any, second: Any) -> None:
    one, other = prepared(first, second)

    assert one.key == other.key is not None
    assert hash(one.key) == hash(other.key)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(rows([1, 2]), rows([1, 2, 3]), id="lengths"),
        pytest.param(rows(1), rows([1]), id="nesting"),
        pytest.param(rows(1), rows("1"), id="number and text"),
        pytest.param(rows(1), rows(True), id="1 and true"),
        pytest.param(rows([1, 1]), rows([1, True]), id="1 and true in a list"),
        pytest.param(rows([1, "a"]), rows(["a", 1]), id="text in another column"),
        pytest.param(rows([1, 2]), rows([1, None]), id="null"),
        pytest.param(rows({"a": 1}), rows({"b": 1}), id="columns"),
        pytest.param(rows({"a": 1}), rows({"a": "x"}), id="column of text"),
        pytest.param(rows([1], k=1), rows([1], k=True), id="1 and true in another key"),
        pytest.param(rows([1], k=1), rows([1], k=1.0), id="1 and 1.0 in another key"),
        pytest.param(rows([1], k="1"), rows([1], k=1), id="1 and its text in another key"),
        pytest.param(rows([1]), {"instances": np.array([[1]])}, id="list and array"),
        pytest.param(
            {"instances": np.zeros((1, 2))}, {"instances": np.zeros((1, 3))}, id="shape of arrays"
        ),
        pytest.param(
            {"instances": np.zeros(1, np.float32)}, {"instances": np.zeros(1)}, id="dtype of arrays"
        ),
        pytest.param(v2([[1.0]]), v2([[1.0, 2.0]]), id="shape"),
        pytest.param(v2([[1.0]]), v2([[1.0]], "FP32"), id="datatype"),
        pytest.param(v2([[1.0]]), v2([[1.0]], name="z"), id="name"),
        pytest.param(
            v2([[1.0]], parameters={"p": 1}), v2([[1.0]], parameters={"p": True}), id="parameters"
        ),
        pytest.param(
            InferRequest("m", v2([[1.0]]).inputs, parameters={"method": "a"}),
            InferRequest("m", v2([[1.0]]).inputs, parameters={"method": "b"}),
            id="parameters of the request",
        ),
        pytest.param(
            v2([[1.0]], request_outputs=[RequestedOutput("y")]),
            v2([[1.0]], request_outputs=[RequestedOutput("z")]),
            id="requested outputs",
        ),
        pytest.param(v2([[1.0]]), v2([[1.0]], from_grpc=True), id="REST and gRPC"),
        pytest.param(v2([[1.0]], model_version="1"), v2([[1.0]], model_version="2"), id="versions"),
        pytest.param(
            v2([[1.0]]), InferRequest("alias", v2([[1.0]]).inputs), id="names of the model"
        ),
        pytest.param(
            v2(np.array(["a"], object), "BYTES"),
            binary(np.array([b"a"], object), "BYTES"),
            id="text and bytes",
        ),
    ],
)
def test_payloads_that_never_mix(first: Any, second: Any) -> None:
    one, other = prepared(first, second)

    assert None not in (one.key, other.key)
    assert one.key != other.key


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Opaque:
    """Something that only user code can make."""

    def __repr__(self) -> str:
        return "always the same"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"raw", id="raw body"),
        pytest.param([1, 2], id="list"),
        pytest.param({}, id="no rows"),
        pytest.param({"instances": []}, id="empty"),
        pytest.param({"instances": "abc"}, id="text"),
        pytest.param({"instances": {"a": [1]}}, id="rows in an object"),
        pytest.param({"instances": np.float64(1)}, id="numpy scalar"),
        pytest.param({"instances": np.array(1)}, id="array without axes"),
        pytest.param({"instances": np.zeros((0, 2))}, id="empty array"),
        pytest.param(rows([1, 2], [1]), id="ragged rows"),
        pytest.param(rows(1, "a"), id="rows of several kinds"),
        pytest.param(rows({"a": 1}, {"b": 1}), id="rows of several column sets"),
        pytest.param(rows([1], mask=np.zeros(2000)), id="array in another key"),
        pytest.param(rows([1], k=[{"a": Opaque()}]), id="object in another key"),
        pytest.param(rows(nested(2000)), id="row that is nested deeply"),
        pytest.param(rows(1, k=nested(2000)), id="other key that is nested deeply"),
        pytest.param(rows(*[0] * 70_000), id="more rows than are looked at"),
        pytest.param(rows([[]] * 70_000), id="row of more parts than are looked at"),
        pytest.param(rows(1, k=[0] * 70_000), id="other key of more parts than are looked at"),
        pytest.param(v2(1.0), id="scalar tensor"),
        pytest.param(v2(np.zeros((0, 2))), id="tensor without rows"),
        pytest.param(
            InferRequest("m", [*v2([1.0]).inputs, *v2([1.0, 2.0]).inputs]), id="unequal axes"
        ),
        pytest.param(InferRequest("m", []), id="no inputs"),
        pytest.param(v2([[1.0]], parameters={"p": Opaque()}), id="object in a parameter"),
    ],
)
def test_payloads_that_run_alone(payload: Any) -> None:
    (call,) = prepared(payload)

    assert (call.key, call.n_rows) == (None, 1)


@pytest.mark.parametrize(
    ("payload", "n_rows"),
    [
        (rows(1, 2, 3), 3),
        ({"instances": np.zeros((4, 2))}, 4),
        (v2(np.zeros((5, 2))), 5),
    ],
    ids=["list", "array", "tensor"],
)
def test_rows_are_counted(payload: Any, n_rows: int) -> None:
    assert prepared(payload)[0].n_rows == n_rows


def test_columns_whose_names_read_the_same_are_no_error() -> None:
    (call,) = prepared(rows({1: "a", "1": 2}))

    assert call.n_rows == 1


# What `predict` gets.


def test_predict_gets_the_rows_of_all_and_the_other_keys_once() -> None:
    seen = []

    def predict(payload: Any, headers: dict[str, str]) -> Any:
        seen.append(payload)
        return payload["instances"]

    answers = PayloadBatches(predict).run(prepared(rows(1, k="v"), rows(2, 3, k="v")))

    assert seen == [rows(1, 2, 3, k="v")]
    assert answers == [([1], {}), ([2, 3], {})]


def test_predict_gets_arrays_as_one() -> None:
    seen = []

    def predict(payload: Any, headers: dict[str, str]) -> Any:
        seen.append(payload["instances"])
        return payload["instances"].sum(axis=1)

    answers = PayloadBatches(predict).run(
        prepared({"instances": np.ones((1, 2))}, {"instances": np.zeros((2, 2))})
    )

    assert seen[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert [answer.tolist() for answer, _ in answers] == [[2], [0, 0]]


def test_one_payload_is_given_as_it_is() -> None:
    payload = rows(1)
    seen = []

    def predict(payload: Any, headers: dict[str, str]) -> str:
        seen.append(payload)
        headers["x-set"] = "1"
        return "no rows"

    answers = PayloadBatches(predict).run(prepared(payload))

    assert seen[0] is payload
    assert answers == [("no rows", {"x-set": "1"})]


def test_predict_gets_one_request_of_the_tensors_of_all() -> None:
    seen = []

    def predict(request: InferRequest, headers: dict[str, str]) -> InferResponse:
        seen.append(request)
        array = request.inputs[0].as_numpy()
        return InferResponse(
            None, "m", [InferOutput.from_array("y", list(array.shape), "FP64", array * 2)]
        )

    first = binary([[1.0]], request_id="1", parameters={"p": 1, "binary_data_output": True})
    second = v2([[2.0], [3.0]], request_id="2")
    second.parameters = {"p": 1}
    answers = [answer for answer, _ in PayloadBatches(predict).run(prepared(first, second))]

    (request,) = seen
    (tensor,) = request.inputs
    assert (tensor.name, tensor.shape, tensor.datatype) == ("x", [3, 1], "FP64")
    assert (tensor.as_numpy().tolist(), tensor.parameters) == ([[1], [2], [3]], {})
    assert (request.id, request.model_name) == (None, "m")
    assert [answer.outputs[0].as_numpy().tolist() for answer in answers] == [[[2]], [[4], [6]]]
    assert [answer.use_binary_outputs for answer in answers] == [True, False]
    # Each is given the id of its own request when it is encoded.
    assert [answer.id for answer in answers] == [None, None]


# What it gives.


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param([1, 2, 3], [[1], [2, 3]], id="list"),
        pytest.param((1, 2, 3), [(1,), (2, 3)], id="tuple"),
        pytest.param(
            {"predictions": [1, 2, 3], "note": "n"},
            [{"predictions": [1], "note": "n"}, {"predictions": [2, 3], "note": "n"}],
            id="dict",
        ),
    ],
)
def test_each_payload_has_its_rows_of_the_result(result: Any, expected: list[Any]) -> None:
    assert run(result, rows(1), rows(2, 3)) == expected


def test_a_result_may_be_a_response_as_a_dict() -> None:
    result = {
        "model_name": "m",
        "id": "1",
        "outputs": [{"name": "y", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}],
    }

    answers = run(result, v2([1.0]), v2([2.0, 3.0]))

    assert [answer.outputs[0].data for answer in answers] == [[1], [2, 3]]
    assert [answer.outputs[0].shape for answer in answers] == [[1], [2]]


def test_response_headers_are_those_of_each() -> None:
    def predict(payload: Any, headers: dict[str, str]) -> Any:
        headers["x-set"] = "1"
        return payload["instances"]

    (_, first), (_, second) = PayloadBatches(predict).run(prepared(rows(1), rows(2)))
    first["x-other"] = "2"

    assert second == {"x-set": "1"}


def test_what_is_written_into_one_result_reaches_no_other() -> None:
    first, second = run({"predictions": [1, 2, 3], "note": {}}, rows(1), rows(2, 3))
    array = np.array([1, 2, 3])
    output = InferOutput.from_array("y", [3], "INT64", array, {"p": []})
    response = InferResponse(None, "m", [output], parameters={"q": []})
    one, other = run(response, v2([1.0]), v2([2.0, 3.0]))

    first["note"]["mine"] = 1
    one.parameters["q"].append(1)
    one.outputs[0].parameters["p"].append(1)

    assert second == {"predictions": [2, 3], "note": {}}
    assert (other.parameters, other.outputs[0].parameters) == ({"q": []}, {"p": []})


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        pytest.param([1, 2], "expected 3 predictions, one for each row, got 2", id="too few"),
        pytest.param(
            {"predictions": [1]}, "expected 3 predictions, one for each row, got 1", id="in a dict"
        ),
        pytest.param("abc", "expected 3 predictions, one for each row, got 3", id="text"),
        pytest.param(None, "expected 3 predictions, one for each row, got NoneType", id="nothing"),
        pytest.param({}, "expected 3 predictions, one for each row, got NoneType", id="no rows"),
        pytest.param(iter([1]), "expected 3 predictions, one for each row, got list_it", id="it"),
        pytest.param({"outputs": 1}, "the model's result is no inference response", id="outputs"),
    ],
)
def test_a_result_without_a_row_for_each_is_refused(result: Any, reason: str) -> None:
    with pytest.raises(RowCountError, match=f"^{reason}"):
        run(result, rows(1), rows(2, 3))


def test_a_response_without_a_row_for_each_is_refused() -> None:
    response = InferResponse(
        None, "m", [InferOutput.from_array("y", [2], "INT64", np.array([1, 2]))]
    )

    with pytest.raises(RowCountError, match="^expected 3 predictions, one for each row, got 2$"):
        run(response, v2([1.0]), v2([2.0, 3.0]))


async def test_an_async_predict_is_called_once_for_all() -> None:
    seen = []

    async def predict(payload: Any, headers: dict[str, str]) -> Any:
        seen.append(payload)
        return payload["instances"]

    answers = await PayloadBatches(predict).run_async(prepared(rows(1), rows(2)))

    assert (seen, answers) == ([rows(1, 2)], [([1], {}), ([2], {})])
