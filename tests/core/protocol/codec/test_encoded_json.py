"""What user code returns, as JSON."""

import datetime
from typing import Any

import numpy as np
import pytest

from kserve.errors import InferenceError
from kserve.protocol.codec import v1_json


class Frame:
    """Has of a data frame what is looked at."""

    columns = ("a",)

    def to_dict(self, orient: str) -> Any:
        assert orient == "records"
        return [{"a": np.int64(1)}]


class Tensor:
    """Becomes an array, as tensors of the frameworks do."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array([1, 2])


@pytest.mark.parametrize(
    ("value", "expected", "n_nulled"),
    [
        pytest.param({"predictions": [[1, 2]]}, b'{"predictions":[[1,2]]}', 0, id="lists"),
        pytest.param(
            {"predictions": np.array([[1, 2]])}, b'{"predictions":[[1,2]]}', 0, id="array"
        ),
        pytest.param([np.float32(6.8)], b"[6.800000190734863]", 0, id="float32 scalar"),
        pytest.param(np.array([6.8], "<f4"), b"[6.800000190734863]", 0, id="float32 array"),
        pytest.param(np.array([1.5], ">f8"), b"[1.5]", 0, id="big-endian floats"),
        pytest.param(np.array([258], ">i2"), b"[258]", 0, id="big-endian integers"),
        pytest.param(np.zeros((2, 4), int)[:, ::2], b"[[0,0],[0,0]]", 0, id="strided"),
        pytest.param(np.array([[0.5, 1], [2, 3]]).T, b"[[0.5,2.0],[1.0,3.0]]", 0, id="transposed"),
        pytest.param(np.array(3), b"3", 0, id="0-d integer"),
        pytest.param(np.array(2.5), b"2.5", 0, id="0-d float"),
        pytest.param(
            [np.bool_(True), np.int8(-1), np.str_("x")], b'[true,-1,"x"]', 0, id="scalars"
        ),
        pytest.param(np.array([True, False]), b"[true,false]", 0, id="booleans"),
        pytest.param(np.array(["a", "b"]), b'["a","b"]', 0, id="strings"),
        pytest.param(np.array([b"a"]), b'["a"]', 0, id="bytes array"),
        pytest.param([b"a", bytearray(b"b")], b'["a","b"]', 0, id="bytes"),
        pytest.param(
            np.array([1, "x", None, np.nan, np.array([1.5])], dtype=object),
            b'[1,"x",null,null,[1.5]]',
            1,
            id="objects",
        ),
        pytest.param(
            [datetime.datetime(2020, 1, 2, 3, 4, 5), datetime.date(2020, 1, 2)],
            b'["2020-01-02T03:04:05","2020-01-02"]',
            0,
            id="datetimes",
        ),
        pytest.param(
            np.array(["2020-01-02T03:04:05", "NaT"], "M8[ns]"),
            b'["2020-01-02T03:04:05",null]',
            0,
            id="datetime64",
        ),
        pytest.param({1: "x", "y": None}, b'{"1":"x","y":null}', 0, id="keys that are no strings"),
        pytest.param(
            {"a": [float("nan"), None], "b": (np.float64("inf"),), "c": np.array([np.nan])},
            b'{"a":[null,null],"b":[null],"c":[null]}',
            3,
            id="NaN everywhere",
        ),
        pytest.param({"f": Frame()}, b'{"f":[{"a":1}]}', 0, id="data frame"),
        pytest.param({"t": Tensor()}, b'{"t":[1,2]}', 0, id="tensor"),
    ],
)
def test_writes_what_user_code_returns(value: Any, expected: bytes, n_nulled: int) -> None:
    assert v1_json.encode(value) == (expected, n_nulled)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param({"a": object()}, "object", id="an object"),
        pytest.param([b"\xff"], "utf-8", id="bytes that are no text"),
        pytest.param(["\ud800"], "surrogates", id="half a surrogate pair"),
        pytest.param(np.array([1j]), "complex", id="complex numbers"),
    ],
)
def test_names_what_json_cannot_express(value: Any, reason: str) -> None:
    with pytest.raises(InferenceError, match="cannot be written as JSON") as caught:
        v1_json.encode(value)

    assert reason in caught.value.reason
