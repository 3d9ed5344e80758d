"""JSON that passes through a proxy: read as far as is needed, and changed where a hook says so."""

from typing import Any, Final

import msgspec
import orjson

from kserve.protocol.rest.openai.upstream.errors import failure, gateway_error

# What the server has answered with, name by name; the values are read by whoever needs them.
RawDocument = dict[str, msgspec.Raw]

_decoder: Final = msgspec.json.Decoder(RawDocument)
_encoder: Final = msgspec.json.Encoder()

_NULL: Final = msgspec.Raw(b"null")


def read(data: bytes, required: str | None = None) -> RawDocument:
    """Read an answer of the server's.

    Args:
        data: The JSON.
        required: A name that it must have.

    Raises:
        OpenAIError: It is an error, or no answer.
    """
    try:
        document = _decoder.decode(data)
    except msgspec.DecodeError as exc:
        raise gateway_error(502, "the upstream server answers with no JSON object") from exc
    if _is_error(document):
        raise failure(orjson.loads(_encoder.encode(document)))
    if required is not None and required not in document:
        raise gateway_error(502, f"the upstream server's answer has no '{required}'")
    return document


def write(document: RawDocument, model: str) -> bytes:
    """Write an answer, under the name of the model that the client knows."""
    if "model" in document:
        document["model"] = msgspec.Raw(orjson.dumps(model))
    return _encoder.encode(document)


def overlay(original: Any, before: Any, after: Any) -> Any:
    """Give a JSON value with the changes that were made to what was read of it.

    Args:
        original: The whole.
        before: What was read of it.
        after: The same, changed.

    Returns:
        The original with these changes, and with all that was not read.
    """
    if before == after:
        return original
    if isinstance(original, dict) and isinstance(before, dict) and isinstance(after, dict):
        gone = before.keys() - after.keys()
        changed = {key: value for key, value in original.items() if key not in gone}
        for key, value in after.items():
            if key not in before or before[key] != value:
                changed[key] = overlay(original.get(key), before.get(key), value)
        return changed
    if _are_lists_alike(original, before, after):
        return [overlay(*values) for values in zip(original, before, after, strict=True)]
    return after


def _are_lists_alike(*values: Any) -> bool:
    return all(isinstance(each, list) for each in values) and len(set(map(len, values))) == 1


def _is_error(document: RawDocument) -> bool:
    error = document.get("error", _NULL)
    return bytes(error) != b"null" or bytes(document.get("object", _NULL)) == b'"error"'
