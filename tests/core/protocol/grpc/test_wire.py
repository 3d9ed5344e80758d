"""Serialized messages: what is cut out and put behind is what protobuf reads and writes."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from kserve.errors import InvalidInput
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import wire

CODEC_SETTINGS = settings(derandomize=True, max_examples=100, deadline=None)

SMALL, LARGE = 10, 1 << 17

# Field 100 as a varint, in 4 bytes, in 8 bytes, and as a group.
VARINT, I32, I64 = b"\xa0\x06\x01", b"\xa5\x06" + bytes(4), b"\xa1\x06" + bytes(8)
GROUP = b"\xa3\x06\xa4\x06"


def message(*raws: bytes) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="m",
        id="7",
        inputs=[{"name": "x", "datatype": "UINT8", "shape": [len(raw)]} for raw in raws],
        raw_input_contents=raws,
    )


def without_raws(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    copy = pb.ModelInferRequest()
    copy.CopyFrom(request)
    del copy.raw_input_contents[:]
    return copy


def test_large_tensors_are_views_of_the_request() -> None:
    raws = (bytes(LARGE), b"small", b"")
    data = message(*raws).SerializeToString()

    rest, parts = wire.split_request(data)

    assert rest == without_raws(message(*raws))
    assert [bytes(part) for part in parts] == list(raws)
    assert all(isinstance(part, memoryview) and part.obj is data for part in parts)


def test_a_small_request_is_left_to_protobuf() -> None:
    data = message(b"abc").SerializeToString()

    request, parts = wire.split_request(data)

    assert (request, list(parts)) == (message(b"abc"), [b"abc"])


def test_a_large_request_without_raw_tensors_is_left_to_protobuf() -> None:
    given_request = pb.ModelInferRequest(model_name="m" * LARGE)

    request, parts = wire.split_request(given_request.SerializeToString())

    assert (request, list(parts)) == (given_request, [])


@pytest.mark.parametrize(
    "extra",
    [pytest.param(VARINT, id="varint"), pytest.param(I32, id="32"), pytest.param(I64, id="64")],
)
def test_unknown_fields_are_passed_over(extra: bytes) -> None:
    data = extra + message(bytes(LARGE)).SerializeToString() + extra

    rest, parts = wire.split_request(data)

    assert (rest.model_name, rest.id) == ("m", "7")
    assert [part.nbytes for part in parts if isinstance(part, memoryview)] == [LARGE]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(GROUP, id="group"),
        pytest.param(VARINT * 1000, id="more fields than are looked at"),
    ],
)
def test_what_is_not_understood_is_left_to_protobuf(extra: bytes) -> None:
    data = extra + message(bytes(LARGE)).SerializeToString()

    request, parts = wire.split_request(data)

    assert request.model_name == "m"
    assert list(parts) == [bytes(LARGE)]


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"\x3a\x05abc", id="data ends inside a tensor"),
        pytest.param(b"\x3a", id="data ends before a length"),
        pytest.param(b"\x3a" + b"\xff" * 11, id="length of more than ten bytes"),
        pytest.param(b"\x0a\x01\xff", id="name is no UTF-8"),
    ],
)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_broken_message_is_refused(tail: bytes, size: int) -> None:
    data = message(bytes(size)).SerializeToString() + tail

    with pytest.raises(InvalidInput, match="expected a ModelInferRequest message"):
        wire.split_request(data)


@CODEC_SETTINGS
@given(st.binary(max_size=64), st.lists(st.binary(max_size=9), max_size=3))
def test_any_bytes_are_read_as_protobuf_reads_them(garbage: bytes, raws: list[bytes]) -> None:
    # Behind a large tensor, so that our own look at the fields comes to them.
    data = message(bytes(LARGE), *raws).SerializeToString() + garbage
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except Exception:
        with pytest.raises(InvalidInput):
            wire.split_request(data)
        return

    rest, parts = wire.split_request(data)

    assert [bytes(part) for part in parts] == list(expected.raw_input_contents)
    assert without_raws(rest) == without_raws(expected)


@CODEC_SETTINGS
@given(st.lists(st.binary(max_size=300), max_size=3))
def test_a_joined_response_is_read_by_protobuf(raws: list[bytes]) -> None:
    response = pb.ModelInferResponse(model_name="m", id="7")

    data = wire.join_response(response, [memoryview(raw) for raw in raws])

    expected = pb.ModelInferResponse(model_name="m", id="7", raw_output_contents=raws)
    assert pb.ModelInferResponse.FromString(data) == expected
