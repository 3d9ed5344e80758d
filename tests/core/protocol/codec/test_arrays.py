"""Python values to arrays of a datatype, and back."""

from typing import Any

import numpy as np
import pytest

from kserve.errors import InvalidInput
from kserve.protocol.codec.arrays import array_from_values, list_from_array


@pytest.mark.parametrize(
    ("values", "datatype", "expected"),
    [
        pytest.param([True, False], "BOOL", np.array([True, False]), id="booleans"),
        pytest.param([1, 0], "BOOL", np.array([True, False]), id="one and zero as booleans"),
        pytest.param([1.0, 2], "INT8", np.array([1, 2], np.int8), id="whole floats as integers"),
        pytest.param(
            [2**63 - 1, -(2**63), 1.0],
            "INT64",
            np.array([2**63 - 1, -(2**63), 1], np.int64),
            id="INT64 limits beside a float",
        ),
        pytest.param([2**64 - 1], "UINT64", np.array([2**64 - 1], np.uint64), id="UINT64 limit"),
        pytest.param([1, 0.1], "FP32", np.array([1, 0.1], np.float32), id="rounded to FP32"),
        pytest.param([None, 1.0], "FP64", np.array([np.nan, 1.0]), id="null as NaN"),
        pytest.param([[1], [2]], "INT32", np.array([[1], [2]], np.int32), id="nested"),
        pytest.param([], "FP32", np.array([], np.float32), id="empty"),
        pytest.param(5, "FP32", np.array(5, np.float32), id="scalar"),
        pytest.param(["a", b"b"], "BYTES", np.array(["a", b"b"], np.object_), id="strings"),
        pytest.param(
            np.array([1, 2], np.int64), "INT32", np.array([1, 2], np.int32), id="narrower array"
        ),
        pytest.param(np.array([1, 2]), "FP16", np.array([1, 2], np.float16), id="integer array"),
        pytest.param(
            np.array([0.1]), "FP32", np.array([0.1], np.float32), id="float array narrowed"
        ),
        pytest.param(np.array([1.0], ">f4"), "FP32", np.array([1.0], np.float32), id="big-endian"),
        pytest.param(np.array(["a"]), "BYTES", np.array(["a"], np.object_), id="unicode array"),
        pytest.param(
            np.array(["2020-01-02T03:04:05"], "M8[s]"),
            "BYTES",
            np.array(["2020-01-02T03:04:05"], np.object_),
            id="datetimes in ISO 8601",
        ),
    ],
)
def test_values_become_an_array_of_the_datatype(
    values: Any, datatype: str, expected: np.ndarray
) -> None:
    array = array_from_values(values, datatype)

    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("values", "datatype", "reason"),
    [
        pytest.param([1.5], "INT64", "a value is not a whole number", id="fraction"),
        pytest.param([2], "BOOL", "a value is not a whole number", id="two as boolean"),
        pytest.param([300], "INT8", "a value is out of range for INT8", id="too large"),
        pytest.param([-1], "UINT8", "a value is out of range for UINT8", id="negative"),
        pytest.param([1e300], "FP32", "a value is out of range for FP32", id="overflow to inf"),
        pytest.param([10**400], "FP64", "a value is out of range for FP64", id="huge integer"),
        pytest.param([float("nan")], "INT32", "a value is out of range", id="NaN"),
        pytest.param([None], "INT64", "got a value of type NoneType", id="null"),
        pytest.param(["1"], "FP32", "expected FP32 data, got a value of type str", id="string"),
        pytest.param([{}], "FP32", "data is ragged", id="object"),
        pytest.param([[1], [2, 3]], "FP32", "data is ragged", id="ragged numbers"),
        pytest.param([["a"], ["b", "c"]], "BYTES", "data is ragged", id="ragged strings"),
        pytest.param([1], "FP8", "unknown datatype 'FP8', expected BOOL, INT8", id="datatype"),
        pytest.param(np.array([300]), "INT8", "a value is not a whole number", id="array wraps"),
        pytest.param(np.array([1.5]), "INT32", "a value is not a whole number", id="array cut"),
        pytest.param(np.array(["1"]), "FP32", "got an array of <U1", id="array of strings"),
        pytest.param(np.array([1j]), "FP32", "got an array of complex128", id="array of complex"),
    ],
)
def test_value_that_the_datatype_cannot_hold_is_refused(
    values: Any, datatype: str, reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        array_from_values(values, datatype)

    assert reason in caught.value.reason


def test_array_of_the_datatype_is_not_copied() -> None:
    array = np.ones((2, 3), np.float32)

    assert array_from_values(array, "FP32") is array


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]], id="nested as the array"),
        pytest.param(np.array(1.5), [1.5], id="scalar"),
        pytest.param(np.array([0.1], np.float32), [0.10000000149011612], id="FP32 widened"),
        pytest.param(np.array([["a"], [b"b"]], np.object_), [["a"], ["b"]], id="bytes decoded"),
        pytest.param(np.array([b"a", b"\xff"], np.object_), [b"a", b"\xff"], id="not UTF-8"),
        pytest.param(np.array(["a"]), ["a"], id="unicode array"),
    ],
)
def test_array_reads_as_a_list(array: np.ndarray, expected: list[Any]) -> None:
    assert list_from_array(array) == expected
