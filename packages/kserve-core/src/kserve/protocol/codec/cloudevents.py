"""CloudEvents around requests and responses, in structured and in binary mode.

Source: CloudEvents 1.0, "HTTP Protocol Binding" and "JSON Event Format".
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

import base64
import binascii
import json  # noqa: TID251 - its spaces, which orjson cannot write, are what KServe answers
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, unquote
from uuid import uuid4

import orjson

from kserve.config import CloudEventConfig
from kserve.errors import InvalidInput
from kserve.protocol.codec.json_body import parse

STRUCTURED_TYPE: Final = b"application/cloudevents+json"

_PREFIX: Final = b"ce-"
_REQUIRED: Final = ("specversion", "id", "source", "type")
_REQUIRED_HEADERS: Final = frozenset({b"ce-specversion", b"ce-id", b"ce-source", b"ce-type"})
_VERSIONS: Final = ("1.0", "0.3")
_DATA_KEYS: Final = ("data", "data_base64")

# What KServe's SDK looks for in a JSON body that no header calls an event.
_STRUCTURED_KEYS: Final = frozenset({"time", "type", "source", "id", "specversion", "data"})

# Of the request's data or of the one event alone; never taken over by the event that answers.
_OWN_ATTRIBUTES: Final = frozenset(
    {"id", "time", "specversion", "datacontenttype", "content-type", "datacontentencoding"}
)

# "Space (U+0020), Double-quote (U+0022), Percent (U+0025), any characters outside the printable
# ASCII range" are percent-encoded in header values.
_UNQUOTED: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


@dataclass(slots=True)
class CloudEvent:
    """An event that carries a request.

    Attributes:
        attributes: All but the data; names are lower-case, without the prefix `ce-`.
        data: The data as the bytes that it would be as an HTTP body of its own.
        content_type: The type of the data; None where the event does not tell.
        is_binary: It came with its attributes in headers.
    """

    attributes: dict[str, Any]
    data: bytes
    content_type: bytes | None
    is_binary: bool


def is_event(headers: Mapping[bytes, bytes]) -> bool:
    """Say whether the headers, lower-case, are those of an event."""
    if b"ce-specversion" in headers and _is_binary(headers):
        return True
    content_type = headers.get(b"content-type")
    # Most requests have the shorter type of plain JSON, or none.
    if content_type is None or len(content_type) < len(STRUCTURED_TYPE):
        return False
    return _media_type(content_type) == STRUCTURED_TYPE


def read(headers: Mapping[bytes, bytes], body: bytes) -> CloudEvent | None:
    """Read the event of a request that `is_event`.

    Returns:
        The event; None where the headers announce one and the body is any other JSON.

    Raises:
        InvalidInput: An attribute is missing or wrong, or the body of a structured event is no
            JSON.
    """
    event = _read_binary(headers, body) if _is_binary(headers) else _read_structured(body)
    if event is None:
        return None
    missing = [name for name in _REQUIRED if not isinstance(event.attributes.get(name), str)]
    if missing:
        raise InvalidInput(f"Cloud Event Exceptions: missing {', '.join(missing)}")
    version = event.attributes["specversion"]
    if version not in _VERSIONS:
        raise InvalidInput(
            f"Cloud Event Exceptions: expected specversion {' or '.join(_VERSIONS)}, "
            f"got {version[:64]!r}"
        )
    return event


def read_data(event: CloudEvent) -> Any:
    """Give the JSON value of an event's data, or the bytes of any other data, such as Avro.

    Raises:
        InvalidInput: The event says that its data is JSON, and it is not.
    """
    try:
        return orjson.loads(event.data.decode())
    except ValueError as error:
        if not _media_type(event.content_type).endswith(b"json"):
            return event.data
        mode = "binary" if event.is_binary else "structured"
        raise InvalidInput(f"Failed to decode or parse {mode} json cloudevent: {error}") from error


def is_structured(body: object) -> bool:
    """Say whether a JSON value is an event with `time` and `data`, whatever its headers say."""
    return type(body) is dict and "specversion" in body and body.keys() >= _STRUCTURED_KEYS


def response_attributes(
    config: CloudEventConfig, model_name: str, request: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the attributes of the event that answers one.

    Args:
        config: What they are.
        model_name: The model that answers.
        request: The attributes of the event that came.
    """
    merged = {}
    if config.merge:
        merged = {name: value for name, value in request.items() if name not in _OWN_ATTRIBUTES}
    return merged | {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": config.source or f"io.kserve.inference.{model_name}",
        "type": config.type,
        "time": datetime.now(UTC).isoformat(),
    }


def encode_headers(attributes: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Write attributes as the headers of a binary event."""
    return [
        (_PREFIX + name.encode(), quote(_text(value), safe=_UNQUOTED).encode())
        for name, value in attributes.items()
    ]


def encode_structured(
    attributes: Mapping[str, Any], data: bytes, content_type: bytes | None
) -> bytes:
    """Write a structured event.

    Args:
        attributes: All but those of the data.
        data: JSON becomes the member `data` as it is, text a string, anything else base64.
        content_type: The type of the data; None is text if it is UTF-8.
    """
    event = dict(attributes)
    media_type = _media_type(content_type)
    if media_type.endswith(b"json"):
        event["data"] = orjson.Fragment(data)
        return orjson.dumps(event)
    if content_type is not None:
        event["datacontenttype"] = content_type.decode("latin-1")
    try:
        if content_type is not None and not media_type.startswith(b"text/"):
            raise ValueError
        event["data"] = data.decode()
    except ValueError:
        event["data_base64"] = base64.b64encode(data).decode()
    return orjson.dumps(event)


def with_spaces(body: bytes) -> bytes:
    """Write JSON again with a space after each comma and colon, as KServe's binary events have."""
    return json.dumps(orjson.loads(body), ensure_ascii=False).encode()


def _is_binary(headers: Mapping[bytes, bytes]) -> bool:
    return headers.keys() >= _REQUIRED_HEADERS


def _media_type(content_type: bytes | None) -> bytes:
    return (content_type or b"").partition(b";")[0].strip().lower()


def _read_binary(headers: Mapping[bytes, bytes], body: bytes) -> CloudEvent:
    attributes = {
        name[len(_PREFIX) :].decode("latin-1"): unquote(value.decode("latin-1"))
        for name, value in headers.items()
        if name.startswith(_PREFIX)
    }
    # KServe's SDK names the type of the data by an attribute, whatever type the request has.
    content_type = headers.get(b"ce-content-type", headers.get(b"content-type"))
    return CloudEvent(attributes, body, content_type, is_binary=True)


def _read_structured(body: bytes) -> CloudEvent | None:
    event = parse(body)
    if not isinstance(event, dict) or "specversion" not in event:
        return None
    attributes = {
        name: value for name, value in event.items() if name not in _DATA_KEYS and value is not None
    }
    for name, value in attributes.items():
        if not isinstance(value, str | int | float):
            raise InvalidInput(
                f"Cloud Event Exceptions: expected {name[:64]!r} to be a string, a number or a "
                "boolean"
            )
    content_type = event.get("datacontenttype")
    if content_type is not None and not isinstance(content_type, str):
        raise InvalidInput("Cloud Event Exceptions: expected datacontenttype to be a string")
    # "If the datacontenttype is unspecified, processing SHOULD proceed as if the datacontenttype
    # had been specified explicitly as application/json."
    type_header = (content_type or "application/json").encode()
    return CloudEvent(attributes, _event_data(event, type_header), type_header, is_binary=False)


def _event_data(event: Mapping[str, Any], content_type: bytes) -> bytes:
    encoded = event.get("data_base64")
    if encoded is not None:
        if "data" in event:
            raise InvalidInput("Cloud Event Exceptions: expected data or data_base64, got both")
        return _decode_base64(encoded)
    data = event.get("data")
    if isinstance(data, str) and not _media_type(content_type).endswith(b"json"):
        return data.encode()
    try:
        return orjson.dumps(data)
    except orjson.JSONEncodeError as error:
        # orjson writes fewer levels than it reads.
        raise InvalidInput(f"Cloud Event Exceptions: data is nested too deeply: {error}") from error


def _decode_base64(encoded: Any) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise InvalidInput(
            f"Cloud Event Exceptions: data_base64 cannot be decoded: {error}"
        ) from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return orjson.dumps(value, default=str).decode()
