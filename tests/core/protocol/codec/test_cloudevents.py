"""CloudEvents, read from and written to literal bytes; the `cloudevents` package as a peer."""

import base64
from typing import Any

import orjson
import pytest
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_binary,
    from_structured,
    to_binary,
    to_structured,
)
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as PeerEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve.config import CloudEventConfig
from kserve.errors import InvalidInput
from kserve.protocol.codec import cloudevents

BINARY_HEADERS = {
    b"ce-specversion": b"1.0",
    b"ce-id": b"36077800",
    b"ce-source": b"https://example.com/event-producer",
    b"ce-type": b"com.example.sampletype1",
}
STRUCTURED = {
    "specversion": "1.0",
    "id": "36077800",
    "source": "https://example.com/event-producer",
    "type": "com.example.sampletype1",
}
STRUCTURED_HEADERS = {b"content-type": b"application/cloudevents+json"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, False, id="none"),
        pytest.param(BINARY_HEADERS, True, id="binary"),
        pytest.param({b"ce-specversion": b"1.0", b"ce-id": b"1"}, False, id="some of binary"),
        pytest.param(STRUCTURED_HEADERS, True, id="structured"),
        pytest.param(
            {b"content-type": b"Application/CloudEvents+JSON; charset=utf-8"},
            True,
            id="structured with a charset",
        ),
        pytest.param({b"content-type": b"application/json"}, False, id="json"),
        pytest.param({b"content-type": b"application/cloudevents-batch+json"}, False, id="a batch"),
    ],
)
def test_tells_an_event_by_its_headers(headers: dict[bytes, bytes], expected: bool) -> None:
    assert cloudevents.is_event(headers) is expected


def test_reads_a_binary_event() -> None:
    headers = {
        **BINARY_HEADERS,
        b"ce-custom-extension": b"a%20%C3%BC",
        b"content-type": b"application/json",
        b"host": b"h",
    }

    event = cloudevents.read(headers, b'{"instances":[1]}')

    assert event == cloudevents.CloudEvent(
        {**STRUCTURED, "custom-extension": "a \u00fc"},
        b'{"instances":[1]}',
        b"application/json",
        is_binary=True,
    )
    assert cloudevents.read_data(event) == {"instances": [1]}


@pytest.mark.parametrize(
    ("data", "data_bytes", "content_type"),
    [
        pytest.param({"data": {"a": [1]}}, b'{"a":[1]}', b"application/json", id="object"),
        pytest.param({"data": "t"}, b'"t"', b"application/json", id="string"),
        pytest.param({}, b"null", b"application/json", id="no data"),
        pytest.param(
            {"data": "<a/>", "datacontenttype": "text/xml"}, b"<a/>", b"text/xml", id="text"
        ),
        pytest.param(
            {"data_base64": "AP8=", "datacontenttype": "application/avro"},
            b"\x00\xff",
            b"application/avro",
            id="bytes",
        ),
    ],
)
def test_reads_a_structured_event(
    data: dict[str, Any], data_bytes: bytes, content_type: bytes
) -> None:
    event = cloudevents.read(STRUCTURED_HEADERS, orjson.dumps({**STRUCTURED, **data, "x": 1}))

    rest = {name: value for name, value in data.items() if not name.startswith("data_")}
    rest.pop("data", None)
    assert event == cloudevents.CloudEvent(
        {**STRUCTURED, **rest, "x": 1}, data_bytes, content_type, is_binary=False
    )


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        pytest.param(
            {**BINARY_HEADERS, b"ce-specversion": b"2.0"},
            b"",
            "Cloud Event Exceptions: expected specversion 1.0 or 0.3, got '2.0'",
            id="version",
        ),
        pytest.param(
            STRUCTURED_HEADERS,
            b'{"specversion":"1.0","id":1,"source":"s"}',
            "Cloud Event Exceptions: missing id, type",
            id="attributes",
        ),
        pytest.param(
            STRUCTURED_HEADERS,
            b"{",
            "Unrecognized request format: unexpected end of data: line 1 column 2 (char 1)",
            id="no JSON",
        ),
        pytest.param(
            STRUCTURED_HEADERS,
            b'{"specversion":"1.0","data":1,"data_base64":"AA=="}',
            "Cloud Event Exceptions: expected data or data_base64, got both",
            id="both data",
        ),
        pytest.param(
            STRUCTURED_HEADERS,
            b'{"specversion":"1.0","data_base64":"%"}',
            "Cloud Event Exceptions: data_base64 cannot be decoded: Only base64 data is allowed",
            id="base64",
        ),
        pytest.param(
            STRUCTURED_HEADERS,
            b'{"specversion":"1.0","datacontenttype":5}',
            "Cloud Event Exceptions: expected datacontenttype to be a string",
            id="type of the data",
        ),
        pytest.param(
            STRUCTURED_HEADERS,
            b'{"specversion":"1.0","id":["1"]}',
            "Cloud Event Exceptions: expected 'id' to be a string, a number or a boolean",
            id="attribute that is a list",
        ),
        pytest.param(
            STRUCTURED_HEADERS,
            b'{"specversion":"1.0","data":' + b"[" * 300 + b"]" * 300 + b"}",
            "Cloud Event Exceptions: data is nested too deeply: Recursion limit reached",
            id="nesting",
        ),
    ],
)
def test_refuses_a_malformed_event(headers: dict[bytes, bytes], body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        cloudevents.read(headers, body)

    assert str(caught.value) == message


@pytest.mark.parametrize("body", [b"[]", b'{"instances": [1]}', b"3"])
def test_other_json_is_no_event_though_its_type_says_so(body: bytes) -> None:
    assert cloudevents.read(STRUCTURED_HEADERS, body) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"{", "unexpected end of data: line 1 column 2 (char 1)", id="cut"),
        pytest.param(
            b"0\x80\x06",
            "'utf-8' codec can't decode byte 0x80 in position 1: invalid start byte",
            id="not UTF-8",
        ),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({b"content-type": b"application/json"}, id="header"),
        pytest.param({b"content-type": b"application/cloudevents+json"}, id="event"),
        pytest.param(
            {b"ce-content-type": b"application/json", b"content-type": b"application/avro"},
            id="attribute",
        ),
    ],
)
def test_refuses_data_that_is_not_the_json_it_says(
    headers: dict[bytes, bytes], data: bytes, reason: str
) -> None:
    event = cloudevents.read({**BINARY_HEADERS, **headers}, data)

    assert event is not None
    with pytest.raises(InvalidInput) as caught:
        cloudevents.read_data(event)

    assert str(caught.value) == f"Failed to decode or parse binary json cloudevent: {reason}"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="untold"),
        pytest.param({b"content-type": b"application/avro"}, id="header"),
        pytest.param(
            {b"ce-content-type": b"application/avro", b"content-type": b"application/json"},
            id="attribute",
        ),
    ],
)
def test_gives_other_data_as_bytes(headers: dict[bytes, bytes]) -> None:
    event = cloudevents.read({**BINARY_HEADERS, **headers}, b"\x0cAlyssa\x80")

    assert event is not None
    assert cloudevents.read_data(event) == b"\x0cAlyssa\x80"


def test_an_answer_has_attributes_of_its_own() -> None:
    first = cloudevents.response_attributes(CloudEventConfig(), "m", {**STRUCTURED, "x": "1"})
    second = cloudevents.response_attributes(CloudEventConfig(), "m", STRUCTURED)

    assert first | {"id": "", "time": ""} == {
        "specversion": "1.0",
        "id": "",
        "source": "io.kserve.inference.m",
        "type": "io.kserve.inference.response",
        "time": "",
    }
    assert len({first["id"], second["id"], STRUCTURED["id"]}) == 3


def test_an_answer_takes_attributes_over_where_it_is_told() -> None:
    config = CloudEventConfig(type="t", source="s", merge=True)
    attributes = {
        **STRUCTURED,
        "specversion": "0.3",
        "subject": "x",
        "custom-extension": "y",
        "datacontenttype": "application/avro",
        "content-type": "application/avro",
    }

    merged = cloudevents.response_attributes(config, "m", attributes)

    assert merged | {"id": "", "time": ""} == {
        "source": "s",
        "type": "t",
        "subject": "x",
        "custom-extension": "y",
        "specversion": "1.0",
        "id": "",
        "time": "",
    }
    assert merged["id"] != STRUCTURED["id"]


def test_writes_headers_without_what_headers_cannot_hold() -> None:
    attributes = {"source": 'a "\u00fc"\r\n%', "flag": True, "n": 3}

    assert cloudevents.encode_headers(attributes) == [
        (b"ce-source", b"a%20%22%C3%BC%22%0D%0A%25"),
        (b"ce-flag", b"true"),
        (b"ce-n", b"3"),
    ]


@pytest.mark.parametrize(
    ("data", "content_type", "written"),
    [
        pytest.param(b'{"a":[1.50]}', b"application/json", b',"data":{"a":[1.50]}}', id="JSON"),
        pytest.param(
            b"t", b"text/plain", b',"datacontenttype":"text/plain","data":"t"}', id="text"
        ),
        pytest.param(b"t", None, b',"data":"t"}', id="untold text"),
        pytest.param(b"\xff", None, b',"data_base64":"/w=="}', id="untold bytes"),
        pytest.param(
            b"t",
            b"application/octet-stream",
            b',"datacontenttype":"application/octet-stream","data_base64":"dA=="}',
            id="bytes",
        ),
    ],
)
def test_writes_a_structured_event(data: bytes, content_type: bytes | None, written: bytes) -> None:
    assert cloudevents.encode_structured({"id": "1"}, data, content_type) == b'{"id":"1"' + written


def test_writes_json_with_the_spaces_of_the_standard_library() -> None:
    assert cloudevents.with_spaces(b'{"predictions":[[1,2.5,"a,:b\xc3\xbc",null]]}') == (
        b'{"predictions": [[1, 2.5, "a,:b\xc3\xbc", null]]}'
    )


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_reads_what_a_peer_writes(mode: str) -> None:
    attributes = {**STRUCTURED, "datacontenttype": "application/json", "subject": "a b\u00e9%"}
    peer = PeerEvent(attributes, {"instances": [[1, 2]]})
    message = (to_binary if mode == "binary" else to_structured)(peer, JSONFormat())
    headers = {
        name.lower().encode(): value.encode("latin-1") for name, value in message.headers.items()
    }

    assert cloudevents.is_event(headers)
    event = cloudevents.read(headers, message.body)

    assert event is not None
    assert cloudevents.read_data(event) == {"instances": [[1, 2]]}
    assert event.attributes.items() >= {**STRUCTURED, "subject": "a b\u00e9%"}.items()
    assert event.is_binary is (mode == "binary")


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_peer_reads_what_is_written(mode: str) -> None:
    config = CloudEventConfig(source="a b\u00e9%")
    attributes = cloudevents.response_attributes(config, "m", {})
    if mode == "binary":
        headers = {
            name.decode(): value.decode() for name, value in cloudevents.encode_headers(attributes)
        }
        message = HTTPMessage({**headers, "content-type": "application/json"}, b'{"a": 1}')
        peer = from_binary(message, JSONFormat(), PeerEvent)
    else:
        body = cloudevents.encode_structured(attributes, b'{"a":1}', b"application/json")
        message = HTTPMessage({"content-type": "application/cloudevents+json"}, body)
        peer = from_structured(message, JSONFormat(), PeerEvent)

    assert peer.get_data() == {"a": 1}
    assert (peer.get_source(), peer.get_type(), peer.get_id(), peer.get_specversion()) == (
        "a b\u00e9%",
        "io.kserve.inference.response",
        attributes["id"],
        "1.0",
    )
    time = peer.get_time()
    assert time is not None and time.isoformat() == attributes["time"]


@given(data=st.binary(max_size=60))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_binary_data_comes_back_from_a_structured_event(data: bytes) -> None:
    body = cloudevents.encode_structured(STRUCTURED, data, b"application/octet-stream")

    event = cloudevents.read(STRUCTURED_HEADERS, body)

    assert event is not None and event.data == data
    assert orjson.loads(body)["data_base64"] == base64.b64encode(data).decode()


@given(
    body=st.one_of(
        st.binary(max_size=60),
        st.dictionaries(
            st.sampled_from([*STRUCTURED, "data", "data_base64", "datacontenttype"]),
            st.one_of(st.none(), st.integers(0, 9), st.text(max_size=4), st.just("1.0")),
        ).map(orjson.dumps),
    ),
    headers=st.dictionaries(
        st.sampled_from([*BINARY_HEADERS, b"content-type", b"ce-x"]),
        st.one_of(st.binary(max_size=6), st.just(b"1.0"), st.just(b"application/json")),
    ),
)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_bytes_give_an_event_or_invalid_input(body: bytes, headers: dict[bytes, bytes]) -> None:
    for fields in (headers, {**headers, **STRUCTURED_HEADERS}, {**BINARY_HEADERS, **headers}):
        if not cloudevents.is_event(fields):
            continue
        try:
            event = cloudevents.read(fields, body)
            if event is not None:
                cloudevents.read_data(event)
        except InvalidInput:
            continue
        assert event is None or isinstance(event.data, bytes)
