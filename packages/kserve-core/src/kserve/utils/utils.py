"""Small functions that user code imports from here."""

import uuid

from kserve.constants.constants import PredictorProtocol
from kserve.cpu import cpu_count
from kserve.payload import get_predict_input, get_predict_response

__all__ = [
    "cpu_count",
    "generate_uuid",
    "get_predict_input",
    "get_predict_response",
    "is_v1",
    "is_v2",
    "strtobool",
]


def generate_uuid() -> str:
    """Give a new random id."""
    return str(uuid.uuid4())


def is_v1(protocol: str | PredictorProtocol) -> bool:
    """Say whether `protocol` is V1 over REST, by enum member or by name in any case."""
    return _is(protocol, PredictorProtocol.REST_V1)


def is_v2(protocol: str | PredictorProtocol) -> bool:
    """Say whether `protocol` is V2 over REST, by enum member or by name in any case."""
    return _is(protocol, PredictorProtocol.REST_V2)


def strtobool(val: str) -> bool:
    """Read y, yes, t, true, on, 1 as True and n, no, f, false, off, 0 as False, in any case.

    Raises:
        ValueError: `val` is another word.
    """
    word = val.lower()
    if word in ("y", "yes", "t", "true", "on", "1"):
        return True
    if word in ("n", "no", "f", "false", "off", "0"):
        return False
    raise ValueError(f"expected a truth value such as true or false, got {val!r}")


def _is(protocol: str | PredictorProtocol, expected: PredictorProtocol) -> bool:
    if isinstance(protocol, str):
        return protocol.lower() == expected.value
    return protocol is expected
