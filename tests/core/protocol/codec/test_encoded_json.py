"""What user code returns, as JSON."""

import datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
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


class Point(NamedTuple):
    x: int
    y: float


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
        pytest.param(
            {np.int64(1): np.array([np.nan]), np.str_("a"): {np.bool_(True): (1, 2)}},
            b'{"1":[null],"a":{"true":[1,2]}}',
            1,
            id="numpy keys",
        ),
        pytest.param(
            np.array([{np.int8(1): 2}], object), b'[{"1":2}]', 0, id="numpy keys in an array"
        ),
        pytest.param(
            {pd.Timestamp("2020-01-02"): 1, np.datetime64("2020-01"): 2, np.int8(3): 4},
            b'{"2020-01-02T00:00:00":1,"2020-01":2,"3":4}',
            0,
            id="times as keys",
        ),
        pytest.param([Point(1, np.nan), (2,)], b"[[1,null],[2]]", 1, id="tuples"),
        pytest.param(
            [pd.Timestamp("2020-01-02T03:04:05.000000006", tz="UTC"), pd.NaT, pd.NA],
            b'["2020-01-02T03:04:05.000000006+00:00",null,null]',
            0,
            id="pandas scalars",
        ),
        pytest.param(
            pd.DataFrame(
                {"t": pd.to_datetime(["2020-01-02", None]), "n": [1, 2], "x": [0.5, np.nan]}
            ),
            b'[{"t":"2020-01-02T00:00:00","n":1,"x":0.5},{"t":null,"n":2,"x":null}]',
            1,
            id="data frame with datetimes",
        ),
        pytest.param(
            pd.Series(["2020-01-02", None], dtype="datetime64[ns]"),
            b'["2020-01-02T00:00:00",null]',
            0,
            id="series of datetimes",
        ),
        pytest.param(
            np.array(["12020-01-02", "NaT", "2020-01-02"], "M8[D]"),
            b'["12020-01-02",null,"2020-01-02"]',
            0,
            id="beyond the year 9999",
        ),
        pytest.param(np.datetime64("300000-01-01"), b'"300000-01-01"', 0, id="a far scalar"),
        pytest.param([np.datetime64("NaT")], b"[null]", 0, id="NaT scalar"),
        pytest.param(
            np.array([np.datetime64("NaT"), np.float32(6.8)], object),
            b"[null,6.800000190734863]",
            0,
            id="scalars in an object array",
        ),
        pytest.param(
            np.ma.masked_array([0.5, 7.0], [False, True]), b"[0.5,null]", 1, id="masked floats"
        ),
        pytest.param(np.ma.masked_array([1, 2]), b"[1,2]", 0, id="masked array without a mask"),
        pytest.param([np.ma.masked], b"[null]", 1, id="masked"),
        pytest.param(np.array([[1, 2]]).view(np.matrix), b"[[1,2]]", 0, id="matrix"),
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
        pytest.param(np.array([b"\xff"]), "utf-8", id="bytes array that is no text"),
        pytest.param(np.array([b"\xff", 1], object), "utf-8", id="objects that are no text"),
        pytest.param(
            np.ma.masked_array([1, 2], [False, True]), "masked values", id="masked integers"
        ),
        pytest.param({(1, 2): 3}, "Dict key", id="a tuple as key"),
        pytest.param(["\ud800"], "surrogates", id="half a surrogate pair"),
        pytest.param(np.array([1j]), "complex", id="complex numbers"),
    ],
)
def test_names_what_json_cannot_express(value: Any, reason: str) -> None:
    with pytest.raises(InferenceError, match="cannot be written as JSON") as caught:
        v1_json.encode(value)

    assert reason in caught.value.reason
