"""Parameters as Python values and as `InferParameter` messages."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from kserve.errors import InvalidInput
from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferParameter

_INT64: Final = range(-(1 << 63), 1 << 63)
_UINT64: Final = range(1 << 64)


def encode_parameters(parameters: Mapping[str, Any] | None) -> dict[str, InferParameter]:
    """Give the messages of parameters; a message stays as it is.

    Raises:
        InvalidInput: A value is no bool, int, float or str, or an int of more than 64 bits.
    """
    return {name: _encode(name, value) for name, value in (parameters or {}).items()}


def decode_parameters(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the values of messages; other values stay, and a message without a value is left out."""
    values = {}
    for name, parameter in (parameters or {}).items():
        if not isinstance(parameter, InferParameter):
            values[name] = parameter
            continue
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            values[name] = getattr(parameter, kind)
    return values


def _encode(name: str, value: Any) -> InferParameter:
    if isinstance(value, InferParameter):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    # A bool is an int too.
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return _encode_int(name, value)
    if isinstance(value, float):
        return InferParameter(double_param=value)
    if isinstance(value, str):
        return InferParameter(string_param=value)
    raise InvalidInput(
        f"parameter {name!r}: gRPC carries bool, int, float and str, got {type(value).__name__}"
    )


def _encode_int(name: str, value: int) -> InferParameter:
    if value in _INT64:
        return InferParameter(int64_param=value)
    if value in _UINT64:
        return InferParameter(uint64_param=value)
    raise InvalidInput(f"parameter {name!r}: gRPC carries integers of 64 bits, got {value}")
