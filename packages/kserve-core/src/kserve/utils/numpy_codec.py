"""The datatype mapping, under the import path of KServe's SDK."""

from kserve.protocol.codec.dtypes import from_np_dtype, to_np_dtype

__all__ = ["from_np_dtype", "to_np_dtype"]
