"""Every datatype through V2 and V1 JSON and back, value for value."""

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
import pytest

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

# What is sent, and the text that must come back.
VALUES = [
    pytest.param("BOOL", b"[true,false]", b"[true,false]", id="BOOL"),
    pytest.param("BOOL", b"[1,0,1.0]", b"[true,false,true]", id="BOOL as numbers"),
    pytest.param("INT8", b"[-128,0,127]", b"[-128,0,127]", id="INT8"),
    pytest.param("INT16", b"[-32768,0,32767]", b"[-32768,0,32767]", id="INT16"),
    pytest.param("INT32", b"[-2147483648,2147483647]", b"[-2147483648,2147483647]", id="INT32"),
    pytest.param(
        "INT64",
        b"[-9223372036854775808,9007199254740993,9223372036854775807]",
        b"[-9223372036854775808,9007199254740993,9223372036854775807]",
        id="INT64",
    ),
    pytest.param("INT64", b"[1.0,-2.0,3e3]", b"[1,-2,3000]", id="INT64 as whole floats"),
    pytest.param("UINT8", b"[0,255]", b"[0,255]", id="UINT8"),
    pytest.param("UINT16", b"[0,65535]", b"[0,65535]", id="UINT16"),
    pytest.param("UINT32", b"[0,4294967295]", b"[0,4294967295]", id="UINT32"),
    pytest.param("UINT64", b"[0,18446744073709551615]", b"[0,18446744073709551615]", id="UINT64"),
    # The doubles of the nearest float32 values, as KServe's own servers print them.
    pytest.param(
        "FP32",
        b"[6.8,0.1,-0.0,1,16777217,null]",
        b"[6.800000190734863,0.10000000149011612,-0.0,1.0,16777216.0,null]",
        id="FP32",
    ),
    pytest.param(
        "FP64",
        b"[6.8,0.1,-0.0,1,5e-324,null]",
        b"[6.8,0.1,-0.0,1.0,5e-324,null]",
        id="FP64",
    ),
    pytest.param(
        "BYTES",
        '["","a","Grüße 🌍","\\u0000\\"\\\\\\n"]'.encode(),
        '["","a","Grüße 🌍","\\u0000\\"\\\\\\n"]'.encode(),
        id="BYTES",
    ),
]

# Long enough for any short cut that a parser takes with large arrays.
N_MANY = 5000


@pytest.mark.parametrize(("datatype", "sent", "expected"), VALUES)
def test_v2_gives_every_value_back(
    echo: "RunningServer", datatype: str, sent: bytes, expected: bytes
) -> None:
    length = len(orjson.loads(expected))
    body = _body(datatype, [length], sent)

    response = echo.request("POST", "/v2/models/echo/infer", body)

    assert (response.status, response.body) == (200, _answer(datatype, [length], expected))


@pytest.mark.parametrize(("datatype", "sent", "expected"), VALUES)
def test_v2_reads_a_datatype_in_any_case(
    echo: "RunningServer", datatype: str, sent: bytes, expected: bytes
) -> None:
    length = len(orjson.loads(expected))
    body = _body(datatype.lower(), [length], sent)

    response = echo.request("POST", "/v2/models/echo/infer", body)

    assert (response.status, response.body) == (200, _answer(datatype, [length], expected))


@pytest.mark.parametrize(
    ("datatype", "value_at"),
    [
        pytest.param("BOOL", lambda i: i % 3 == 0, id="BOOL"),
        pytest.param("INT8", lambda i: i % 256 - 128, id="INT8"),
        pytest.param("INT16", lambda i: i - 2500, id="INT16"),
        pytest.param("INT32", lambda i: i * 400_000 - 10**9, id="INT32"),
        pytest.param("INT64", lambda i: 2**63 - 1 - i, id="INT64"),
        pytest.param("UINT8", lambda i: i % 256, id="UINT8"),
        pytest.param("UINT16", lambda i: 65535 - i, id="UINT16"),
        pytest.param("UINT32", lambda i: 2**32 - 1 - i, id="UINT32"),
        pytest.param("UINT64", lambda i: 2**64 - 1 - i, id="UINT64"),
        pytest.param("FP32", lambda i: i / 8 - 300, id="FP32"),
        pytest.param("FP64", lambda i: math.sin(i), id="FP64"),
        pytest.param("FP64", lambda i: sys.float_info.max / (i + 1), id="FP64 limits"),
        pytest.param("FP64", lambda i: None if i % 7 == 0 else float(i), id="FP64 with nulls"),
        pytest.param("BYTES", lambda i: f"text {i} ü", id="BYTES"),
    ],
)
def test_v2_gives_many_values_back(
    echo: "RunningServer", datatype: str, value_at: Callable[[int], Any]
) -> None:
    values = [value_at(i) for i in range(N_MANY)]
    rows = [values[start : start + 10] for start in range(0, N_MANY, 10)]
    shape = [len(rows), 10]

    response = echo.request(
        "POST", "/v2/models/echo/infer", _body(datatype, shape, orjson.dumps(rows))
    )

    assert response.status == 200
    assert response.json() == orjson.loads(_answer(datatype, shape, orjson.dumps(values)))


@pytest.mark.parametrize(
    ("shape", "sent", "expected"),
    [
        pytest.param([0], b"[]", b"[]", id="no values"),
        pytest.param([0, 4], b"[]", b"[]", id="no rows"),
        pytest.param([], b"[7]", b"[7]", id="a scalar"),
        pytest.param([1, 1, 1], b"[7]", b"[7]", id="axes of one"),
        pytest.param([2, 3], b"[1,2,3,4,5,6]", b"[1,2,3,4,5,6]", id="flat"),
        pytest.param([2, 3], b"[[1,2,3],[4,5,6]]", b"[1,2,3,4,5,6]", id="nested"),
        pytest.param([1, 2, 3], b"[[1,2,3],[4,5,6]]", b"[1,2,3,4,5,6]", id="partly nested"),
        pytest.param(
            [2, 2, 2], b"[[[1,2],[3,4]],[[5,6],[7,8]]]", b"[1,2,3,4,5,6,7,8]", id="three axes"
        ),
    ],
)
def test_v2_reads_data_flat_or_nested_and_answers_flat(
    echo: "RunningServer", shape: list[int], sent: bytes, expected: bytes
) -> None:
    response = echo.request("POST", "/v2/models/echo/infer", _body("INT32", shape, sent))

    assert (response.status, response.body) == (200, _answer("INT32", shape, expected))


def test_v2_keeps_several_tensors_and_their_order(echo: "RunningServer") -> None:
    tensors = [
        {"name": "z", "shape": [1], "datatype": "INT8", "data": [1]},
        {"name": "a", "shape": [2], "datatype": "BYTES", "data": ["x", "y"]},
        {"name": "m", "shape": [1, 1], "datatype": "FP64", "data": [0.5]},
    ]

    response = echo.request("POST", "/v2/models/echo/infer", {"inputs": tensors})

    assert response.status == 200
    assert response.json()["outputs"] == [{**tensor, "parameters": None} for tensor in tensors]


def test_v2_gives_the_outputs_that_are_asked_for_in_their_order(echo: "RunningServer") -> None:
    tensors = [
        {"name": name, "shape": [1], "datatype": "INT8", "data": [i]}
        for i, name in enumerate("abc")
    ]
    body = {"inputs": tensors, "outputs": [{"name": "c"}, {"name": "a"}]}

    response = echo.request("POST", "/v2/models/echo/infer", body)

    assert response.status == 200
    assert sorted(output["name"] for output in response.json()["outputs"]) == ["a", "c"]


@pytest.mark.parametrize(
    ("instances", "predictions"),
    [
        pytest.param([1, 2], [1, 2], id="whole numbers"),
        pytest.param([1, 2.5], [1.0, 2.5], id="mixed numbers"),
        pytest.param([[1.5, None]], [[1.5, None]], id="a missing number"),
        pytest.param([True, False], [True, False], id="booleans"),
        pytest.param(["a", "ü"], ["a", "ü"], id="texts"),
        pytest.param([[["a"], ["b"]]], [[["a"], ["b"]]], id="nested texts"),
        pytest.param([2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)], id="INT64 limits"),
        pytest.param([2**64 - 1, 0], [2**64 - 1, 0], id="UINT64 limits"),
        pytest.param([], [], id="no rows"),
        pytest.param(
            [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
            [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
            id="rows as objects",
        ),
    ],
)
def test_v1_gives_rows_back(
    echo: "RunningServer", instances: list[Any], predictions: list[Any]
) -> None:
    response = echo.request("POST", "/v1/models/echo:predict", {"instances": instances})

    assert response.status == 200
    assert response.body == orjson.dumps({"predictions": predictions})


def test_v1_reads_columns(echo: "RunningServer") -> None:
    body = {"inputs": {"a": [1, 2], "b": ["x", "y"]}}

    response = echo.request("POST", "/v1/models/echo:predict", body)

    assert response.status == 200
    assert response.json() == {"predictions": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]}


def test_values_that_become_null_are_counted(echo: "RunningServer") -> None:
    line = 'kserve_nonfinite_values_total{model_name="echo"} '
    body = _body("FP64", [3], b"[null,1,null]")
    echo.request("POST", "/v2/models/echo/infer", body)
    before = _sample(echo, line)

    echo.request("POST", "/v2/models/echo/infer", body)

    assert _sample(echo, line) == before + 2


def _body(datatype: str, shape: list[int], data: bytes) -> bytes:
    head = orjson.dumps({"name": "x", "shape": shape, "datatype": datatype})
    return b'{"id":"1","inputs":[' + head[:-1] + b',"data":' + data + b"}]}"


def _answer(datatype: str, shape: list[int], data: bytes) -> bytes:
    head = orjson.dumps({"name": "x", "shape": shape, "datatype": datatype, "parameters": None})
    return (
        b'{"model_name":"echo","model_version":null,"id":"1","parameters":null,"outputs":['
        + head[:-1]
        + b',"data":'
        + data
        + b"}]}"
    )


def _sample(server: "RunningServer", line: str) -> float:
    rows = server.request("GET", "/metrics").body.decode().splitlines()
    (value,) = (row.removeprefix(line) for row in rows if row.startswith(line))
    return float(value)
