"""Small functions that user code imports from here."""

import uuid
from argparse import ArgumentTypeError
from typing import Any

from kserve.config import CloudEventConfig, boolean
from kserve.constants.constants import PredictorProtocol
from kserve.cpu import cpu_count
from kserve.payload import get_predict_input, get_predict_response
from kserve.protocol.codec import cloudevents, encoded_json

__all__ = [
    "cpu_count",
    "create_response_cloudevent",
    "generate_uuid",
    "get_predict_input",
    "get_predict_response",
    "is_structured_cloudevent",
    "is_v1",
    "is_v2",
    "strtobool",
]


def create_response_cloudevent(
    model_name: str, response: Any, req_attributes: dict[str, Any], binary_event: bool = False
) -> tuple[dict[str, str], bytes]:
    """Put a response into an event, as `CE_TYPE`, `CE_SOURCE` and `CE_MERGE` say.

    Args:
        model_name: The model that answers.
        response: The data: bytes as they are, anything else as JSON.
        req_attributes: The attributes of the event that is answered.
        binary_event: Put the attributes into headers.

    Returns:
        The headers and the body.

    Raises:
        InferenceError: The response cannot be written as JSON.
    """
    config = CloudEventConfig.from_env()
    attributes = cloudevents.response_attributes(config, model_name, req_attributes)
    is_bytes = isinstance(response, bytes)
    data = response if is_bytes else encoded_json.encode(response).body
    if not binary_event:
        content_type = b"application/octet-stream" if is_bytes else b"application/json"
        body = cloudevents.encode_structured(attributes, data, content_type)
        return {"content-type": cloudevents.STRUCTURED_TYPE.decode()}, body
    headers = {
        name.decode(): value.decode() for name, value in cloudevents.encode_headers(attributes)
    }
    return headers, data if is_bytes else cloudevents.with_spaces(data)


def generate_uuid() -> str:
    """Give a new random id."""
    return str(uuid.uuid4())


def is_structured_cloudevent(body: dict[str, Any]) -> bool:
    """Say whether `body` has the members `time`, `type`, `source`, `id`, `specversion`, `data`."""
    return cloudevents.is_structured(body)


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
    try:
        return boolean(val)
    except ArgumentTypeError as exc:
        raise ValueError(f"expected a truth value such as true or false, got {val!r}") from exc


def _is(protocol: str | PredictorProtocol, expected: PredictorProtocol) -> bool:
    if isinstance(protocol, str):
        return protocol.lower() == expected.value
    return protocol is expected
