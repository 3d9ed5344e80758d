"""Bodies that are wrong: each is a 400 that names what is wrong, from every server."""

from typing import TYPE_CHECKING, Any

import orjson
import pytest

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

Json = dict[str, Any]

ROUTES = [
    pytest.param("/v1/models/{model}:predict", id="V1"),
    pytest.param("/v2/models/{model}/infer", id="V2"),
]
DATATYPES = (
    "BOOL, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FP16, FP32, FP64, BYTES"
)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n", id="white space"),
        pytest.param(b"{", id="cut short"),
        pytest.param(b'{"inputs": [}', id="a bracket missing"),
        pytest.param(b'{"inputs": [1,]}', id="a trailing comma"),
        pytest.param(b"{'inputs': []}", id="single quotes"),
        pytest.param(b"{} {}", id="two values"),
        pytest.param(b'{"a": 01}', id="a leading zero"),
        pytest.param(b'{"a": 0x1}', id="hexadecimal"),
        pytest.param(b'{"a": +1}', id="a plus sign"),
        pytest.param(b'{"a": 1e400}', id="a number beyond every double"),
        pytest.param(b'{"a": "\n"}', id="a control character in a string"),
        pytest.param(b'{"a": "\\ud800"}', id="half a surrogate pair"),
        pytest.param(b'{"a": "\x80"}', id="a byte that begins no UTF-8"),
        pytest.param(b'{"a": "\xc3"}', id="UTF-8 cut short"),
        pytest.param(b'{"a": "\xed\xa0\x80"}', id="a surrogate in UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param('{"a": 1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b"[" * 100_000, id="deep nesting, open"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep nesting, closed"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep nesting of objects"),
        pytest.param(b"\x00" * 5000, id="zeros"),
        pytest.param(b"instances=1", id="a form"),
    ],
)
def test_what_is_no_json_is_refused(server: "RunningServer", path: str, body: bytes) -> None:
    response = server.request("POST", path.format(model=server.entry.model_name), body)

    assert response.status == 400
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith("Unrecognized request format: ")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("token", ["NaN", "nan", "Infinity", "-Infinity", "-NaN"])
def test_a_token_that_is_no_json_number_is_told_to_be_null(
    server: "RunningServer", path: str, token: str
) -> None:
    body = f'{{"instances": [[{token}]], "inputs": [{token}]}}'.encode()

    response = server.request("POST", path.format(model=server.entry.model_name), body)

    assert response.status == 400
    assert response.json()["error"].startswith("Unrecognized request format: ")
    assert response.json()["error"].endswith(
        "JSON has no NaN and no infinity, send null for a missing number"
    )


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"7", b"null", b'"instances"', b"true"], ids=lambda body: body.decode()
)
def test_v1_refuses_json_without_instances(server: "RunningServer", body: bytes) -> None:
    response = server.request("POST", f"{server.entry.v1}:predict", body)

    assert response.status == 400
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    "instances",
    [
        pytest.param(1, id="a number"),
        pytest.param("x", id="a string"),
        pytest.param({"a": 1}, id="an object"),
        pytest.param([[1, 2], [3]], id="ragged rows"),
        pytest.param([[[1], [2]], [[3]]], id="ragged below the rows"),
        pytest.param([[1, 2], 3], id="a row that is no list"),
        pytest.param([{"a": 1}, {"b": 2}], id="objects of other keys"),
        pytest.param([{"a": 1}, 2], id="a row that is no object"),
    ],
)
def test_v1_refuses_instances_that_are_no_rows(server: "RunningServer", instances: Any) -> None:
    response = server.request("POST", f"{server.entry.v1}:predict", {"instances": instances})

    assert response.status == 400
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param(b"[]", "expected an inference request, a JSON object", id="a list"),
        pytest.param(b"7", "expected an inference request, a JSON object", id="a number"),
        pytest.param(b"null", "expected an inference request, a JSON object", id="null"),
        pytest.param(
            b"{}", "expected 'inputs', a list of at least one input", id="inputs are missing"
        ),
        pytest.param(
            b'{"inputs": []}', "expected 'inputs', a list of at least one input", id="no inputs"
        ),
        pytest.param(
            b'{"inputs": {}}',
            "expected 'inputs', a list of at least one input",
            id="inputs that are an object",
        ),
        pytest.param(b'{"inputs": [1]}', "inputs[0]: expected an object", id="a number as input"),
        pytest.param(
            b'{"inputs": [{}]}',
            "inputs[0]: expected 'name', a string, it is missing",
            id="an empty input",
        ),
    ],
)
def test_v2_refuses_json_that_is_no_request(
    server: "RunningServer", body: bytes, error: str
) -> None:
    response = server.request("POST", f"{server.entry.v2}/infer", body)

    assert (response.status, response.json()) == (400, {"error": error})


@pytest.mark.parametrize(
    ("field", "error"),
    [
        pytest.param("name", "inputs[0]: expected 'name', a string, it is missing", id="name"),
        pytest.param(
            "shape",
            "input '{name}': expected 'shape', a list of whole numbers, it is missing",
            id="shape",
        ),
        pytest.param(
            "datatype",
            "input '{name}': expected 'datatype', a string, it is missing",
            id="datatype",
        ),
        pytest.param("data", "input '{name}': 'data' is missing", id="data"),
    ],
)
def test_v2_names_the_field_that_an_input_misses(
    server: "RunningServer", field: str, error: str
) -> None:
    tensor = dict(server.entry.v2_request["inputs"][0])
    name = tensor["name"]
    del tensor[field]

    response = server.request("POST", f"{server.entry.v2}/infer", {"inputs": [tensor]})

    assert (response.status, response.json()) == (400, {"error": error.format(name=name)})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param(
            {"name": 1}, "inputs[0]: expected 'name', a string, got 1", id="name is a number"
        ),
        pytest.param(
            {"shape": "2"},
            "input '{name}': expected 'shape', a list of whole numbers, got 2",
            id="shape is a string",
        ),
        pytest.param(
            {"shape": [1.5]},
            "input '{name}': expected 'shape', a list of whole numbers, got [1.5]",
            id="shape has a fraction",
        ),
        pytest.param(
            {"shape": [True]},
            "input '{name}': expected 'shape', a list of whole numbers, got [True]",
            id="shape has a boolean",
        ),
        pytest.param(
            {"shape": None},
            "input '{name}': expected 'shape', a list of whole numbers, got None",
            id="shape is null",
        ),
        pytest.param(
            {"shape": [-1]}, "input '{name}': shape [-1] has a negative axis", id="a negative axis"
        ),
        pytest.param(
            {"shape": [1] * 33},
            "input '{name}': shape has 33 axes, expected at most 32",
            id="too many axes",
        ),
        pytest.param(
            {"shape": [2**40, 2**40]},
            "input '{name}': shape [1099511627776, 1099511627776] holds "
            "1208925819614629174706176 values, got {n_values}",
            id="a shape that no memory holds",
        ),
        pytest.param(
            {"shape": [0, 2**40, 2**40], "data": []},
            "input '{name}': shape [0, 1099511627776, 1099511627776] is too large",
            id="an empty shape that numpy refuses",
        ),
        pytest.param(
            {"shape": [97]},
            "input '{name}': shape [97] holds 97 values, got {n_values}",
            id="shape holds more than there is",
        ),
        pytest.param(
            {"shape": [1]},
            "input '{name}': shape [1] holds 1 values, got {n_values}",
            id="shape holds less than there is",
        ),
        pytest.param(
            {"shape": [0]},
            "input '{name}': shape [0] holds 0 values, got {n_values}",
            id="shape holds nothing",
        ),
        pytest.param(
            {"shape": [2, 3], "datatype": "FP64", "data": [[1, 2], [3, 4], [5, 6]]},
            "input '{name}': shape [2, 3] disagrees with data nested as [3, 2]",
            id="shape disagrees with the nesting",
        ),
        pytest.param(
            {"datatype": "FLOAT"},
            f"input '{{name}}': unknown datatype 'FLOAT', expected one of {DATATYPES}",
            id="an unknown datatype",
        ),
        pytest.param(
            {"datatype": 7},
            "input '{name}': expected 'datatype', a string, got 7",
            id="datatype is a number",
        ),
        pytest.param(
            {"data": "x"}, "input '{name}': expected 'data' to be a list", id="data is a string"
        ),
        pytest.param(
            {"data": {"0": 1}},
            "input '{name}': expected 'data' to be a list",
            id="data is an object",
        ),
        pytest.param(
            {"data": None}, "input '{name}': expected 'data' to be a list", id="data is null"
        ),
        pytest.param(
            {"shape": [2, 2], "datatype": "FP64", "data": [[1, 2], [3]]},
            "input '{name}': row 1 has 1 value, row 0 has 2 values",
            id="ragged rows",
        ),
        pytest.param(
            {"shape": [2, 2], "datatype": "FP64", "data": [[1, 2], 3, 4]},
            "input '{name}': row 1 is no list, row 0 has 2 values",
            id="a row that is no list",
        ),
        pytest.param(
            {"shape": [1], "datatype": "FP64", "data": orjson.loads("[" * 40 + "1" + "]" * 40)},
            "input '{name}': lists are nested deeper than 32 levels",
            id="lists nested too deep",
        ),
        pytest.param(
            {"parameters": []},
            "input '{name}': expected 'parameters' to be an object",
            id="parameters are a list",
        ),
        pytest.param(
            {"parameters": {"a": {}}},
            "input '{name}': expected parameter 'a' to be a string, a number or a boolean",
            id="a parameter is an object",
        ),
        pytest.param(
            {"parameters": {"binary_data_size": 8}},
            "input '{name}': parameter 'binary_data_size' announces binary data: such a request "
            "needs the header Inference-Header-Content-Length",
            id="binary data is announced",
        ),
    ],
)
def test_v2_names_what_is_wrong_with_an_input(
    server: "RunningServer", changes: Json, error: str
) -> None:
    tensor = server.entry.v2_request["inputs"][0]
    expected = error.format(name=tensor["name"], n_values=_count(tensor["data"]))

    response = server.request(
        "POST", f"{server.entry.v2}/infer", {"inputs": [{**tensor, **changes}]}
    )

    assert (response.status, response.json()) == (400, {"error": expected})


@pytest.mark.parametrize(
    ("datatype", "value", "got"),
    [
        pytest.param("BOOL", "2", "is 2, which is no BOOL", id="BOOL 2"),
        pytest.param("BOOL", '"true"', "is a string, expected BOOL", id="BOOL string"),
        pytest.param("INT8", "128", "is 128, which is no INT8", id="INT8 high"),
        pytest.param("INT8", "-129", "is -129, which is no INT8", id="INT8 low"),
        pytest.param("INT16", "32768", "is 32768, which is no INT16", id="INT16 high"),
        pytest.param("INT32", "2147483648", "is 2147483648, which is no INT32", id="INT32 high"),
        pytest.param(
            "INT64",
            "9223372036854775808",
            "is 9223372036854775808, which is no INT64",
            id="INT64 high",
        ),
        pytest.param("INT64", "1.5", "is 1.5, which is no INT64", id="INT64 fraction"),
        pytest.param("INT64", "1e300", "is 1e+300, which is no INT64", id="INT64 huge"),
        pytest.param("INT64", "null", "is null, expected INT64", id="INT64 null"),
        pytest.param("INT64", "true", "is a boolean, expected INT64", id="INT64 boolean"),
        pytest.param("UINT8", "-1", "is -1, which is no UINT8", id="UINT8 low"),
        pytest.param("UINT8", "256", "is 256, which is no UINT8", id="UINT8 high"),
        pytest.param("UINT16", "65536", "is 65536, which is no UINT16", id="UINT16 high"),
        pytest.param("UINT32", "-1", "is -1, which is no UINT32", id="UINT32 low"),
        pytest.param("UINT64", "-1", "is -1, which is no UINT64", id="UINT64 low"),
        pytest.param("FP32", "1e39", "is 1e+39, which is no FP32", id="FP32 huge"),
        pytest.param("FP32", '"1"', "is a string, expected FP32", id="FP32 string"),
        pytest.param("FP64", "true", "is a boolean, expected FP64", id="FP64 boolean"),
        pytest.param("FP64", "{}", "is an object, expected FP64", id="FP64 object"),
        pytest.param("FP64", "[]", "is a list, expected FP64", id="FP64 list"),
        pytest.param("BYTES", "1", "is a number, expected BYTES", id="BYTES number"),
        pytest.param("BYTES", "null", "is null, expected BYTES", id="BYTES null"),
    ],
)
def test_v2_names_the_value_that_the_datatype_cannot_hold(
    server: "RunningServer", datatype: str, value: str, got: str
) -> None:
    good = '"a"' if datatype == "BYTES" else "1"
    body = (
        f'{{"inputs": [{{"name": "x", "shape": [2], "datatype": "{datatype}", '
        f'"data": [{good}, {value}]}}]}}'
    )

    response = server.request("POST", f"{server.entry.v2}/infer", body.encode())

    assert response.status == 400
    assert response.json() == {"error": f"input 'x': the value at [1] {got}"}


def test_v2_refuses_fp16_in_json(server: "RunningServer") -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "FP16", "data": [1.0]}

    response = server.request("POST", f"{server.entry.v2}/infer", {"inputs": [tensor]})

    assert response.status == 400
    assert "FP16 data via JSON is not supported" in response.json()["error"]


def test_v2_refuses_an_input_that_comes_twice(server: "RunningServer") -> None:
    tensor = server.entry.v2_request["inputs"][0]

    response = server.request("POST", f"{server.entry.v2}/infer", {"inputs": [tensor, tensor]})

    assert response.status == 400
    assert response.json() == {"error": f"input '{tensor['name']}' comes twice"}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"id": 1}, "expected 'id' to be a string, got 1", id="id is a number"),
        pytest.param(
            {"parameters": []},
            "the request: expected 'parameters' to be an object",
            id="parameters are a list",
        ),
        pytest.param(
            {"parameters": {"a": [1]}},
            "the request: expected parameter 'a' to be a string, a number or a boolean",
            id="a parameter is a list",
        ),
        pytest.param({"outputs": {}}, "expected 'outputs' to be a list", id="outputs no list"),
        pytest.param(
            {"outputs": [{}]},
            "outputs[0]: expected 'name', a string, it is missing",
            id="an output without a name",
        ),
        pytest.param(
            {"outputs": [{"name": "y"}, {"name": "y"}]},
            "output 'y' comes twice",
            id="an output twice",
        ),
    ],
)
def test_v2_names_what_is_wrong_with_the_request(
    server: "RunningServer", changes: Json, error: str
) -> None:
    body = {**server.entry.v2_request, **changes}

    response = server.request("POST", f"{server.entry.v2}/infer", body)

    assert (response.status, response.json()) == (400, {"error": error})


def test_v2_refuses_an_output_that_the_model_has_not(server: "RunningServer") -> None:
    body = {**server.entry.v2_request, "outputs": [{"name": "nothing-of-the-kind"}]}

    response = server.request("POST", f"{server.entry.v2}/infer", body)

    assert response.status == 400
    assert "'nothing-of-the-kind'" in response.json()["error"]


def test_no_refusal_shows_internals_or_ends_the_server(server: "RunningServer") -> None:
    for body in (b"{", b"[]", b'{"instances": [[1], [1, 2]]}', b'{"inputs": [{"name": 3}]}'):
        for path in (f"{server.entry.v1}:predict", f"{server.entry.v2}/infer"):
            text = server.request("POST", path, body).body.decode()
            assert "Traceback" not in text
            assert ".py" not in text

    response = server.request("GET", "/v2/health/ready")

    assert (response.status, response.json()) == (200, {"ready": True})


def _count(data: Any) -> int:
    return sum(map(_count, data)) if isinstance(data, list) else 1
