"""The datatypes of the protocol and their numpy dtypes."""

import numpy as np
import pytest

from kserve.protocol.codec.dtypes import NUMPY_DTYPES, from_np_dtype, to_np_dtype
from kserve.utils import numpy_codec

DTYPES = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


def test_table_holds_every_datatype_of_the_protocol() -> None:
    assert NUMPY_DTYPES == DTYPES


@pytest.mark.parametrize(("datatype", "dtype"), DTYPES.items(), ids=DTYPES)
def test_datatype_and_dtype_map_to_each_other(datatype: str, dtype: type) -> None:
    assert to_np_dtype(datatype) == dtype
    assert from_np_dtype(dtype) == datatype


@pytest.mark.parametrize("datatype", ["BF16", "fp32", ""], ids=["other", "lower case", "empty"])
def test_unknown_datatype_has_no_dtype(datatype: str) -> None:
    assert to_np_dtype(datatype) is None


@pytest.mark.parametrize("dtype", ["U5", "S5", "O", "M8[s]"])
def test_strings_bytes_objects_and_datetimes_travel_as_bytes(dtype: str) -> None:
    assert from_np_dtype(np.dtype(dtype)) == "BYTES"


@pytest.mark.parametrize("dtype", ["c8", "m8[s]", "V4"])
def test_dtype_that_the_protocol_lacks_has_no_datatype(dtype: str) -> None:
    assert from_np_dtype(np.dtype(dtype)) is None


def test_byte_order_does_not_change_the_datatype() -> None:
    assert from_np_dtype(np.dtype(">f4")) == "FP32"


def test_compatibility_module_gives_the_same_functions() -> None:
    assert numpy_codec.to_np_dtype is to_np_dtype
    assert numpy_codec.from_np_dtype is from_np_dtype
