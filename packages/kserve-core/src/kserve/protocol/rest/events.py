"""CloudEvents over REST: takes requests out of events, and puts the answers into events."""

from functools import partial
from typing import Final

from kserve.config import CloudEventConfig
from kserve.protocol.codec import cloudevents
from kserve.protocol.codec.cloudevents import CloudEvent
from kserve.protocol.compression import RawHeaders
from kserve.protocol.rest.exchange import Exchange

_CONTENT_TYPE: Final = b"content-type"
_JSON: Final = b"application/json"


def unwrap(exchange: Exchange, body: bytes) -> CloudEvent:
    """Read the event of a request, and let the answer be an event of the same mode.

    Errors, and answers in chunks, go without one; so does the answer to JSON that is no event,
    though its type says so, and stands for itself then.

    Raises:
        InvalidInput: The request is no proper event.
    """
    event = cloudevents.read(exchange.fields, body)
    if event is None:
        return CloudEvent({}, body, _JSON, is_binary=False)
    exchange.wrap = partial(_wrap, event, exchange.cloudevents, exchange.model_name)
    return event


def _wrap(
    event: CloudEvent, config: CloudEventConfig, model_name: str, body: bytes, headers: RawHeaders
) -> tuple[bytes, RawHeaders]:
    """Give the body and the headers of the event that answers one."""
    attributes = cloudevents.response_attributes(config, model_name, event.attributes)
    content_type = next((value for name, value in headers if name == _CONTENT_TYPE), None)
    # What a model copies from its predictor's answer is another event's.
    kept = [pair for pair in headers if not pair[0].startswith(b"ce-")]
    if not event.is_binary:
        kept = [pair for pair in kept if pair[0] != _CONTENT_TYPE]
        structured = (_CONTENT_TYPE, cloudevents.STRUCTURED_TYPE)
        body = cloudevents.encode_structured(attributes, body, content_type)
        return body, [structured, *kept]
    if content_type is None:
        kept.append((_CONTENT_TYPE, _JSON))
    elif content_type == _JSON:
        body = cloudevents.with_spaces(body)
    return body, [*kept, *cloudevents.encode_headers(attributes)]
