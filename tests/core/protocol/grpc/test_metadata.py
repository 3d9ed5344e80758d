"""Request metadata, response headers, and the request's id."""

import uuid
from typing import Any

import pytest

from kserve.protocol.grpc.metadata import encode_headers, request_id, to_headers


class Context:
    def __init__(self, *metadata: tuple[str, Any]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        return self._metadata


def test_metadata_are_lower_case_headers_without_binary_ones() -> None:
    context = Context(("X-Tenant", "a"), ("x-tenant", "b"), ("trace-bin", b"\0"), ("odd", b"\xff"))

    assert to_headers(context) == {"x-tenant": "b"}


def test_the_clients_request_id_is_kept() -> None:
    assert request_id(Context(("other", "1"), ("x-request-id", "abc-7"))) == "abc-7"


@pytest.mark.parametrize(
    "given",
    [
        pytest.param((), id="none"),
        pytest.param((("x-request-id", ""),), id="empty"),
        pytest.param((("x-request-id", "a b"),), id="space"),
        pytest.param((("x-request-id", "x" * 129),), id="too long"),
        pytest.param((("x-request-id", b"abc"),), id="bytes"),
    ],
)
def test_a_request_without_a_usable_id_gets_one(given: Any) -> None:
    made = request_id(Context(*given))

    assert str(uuid.UUID(made)) == made


def test_headers_of_the_transport_are_left_out() -> None:
    headers = {
        "X-Model": "m",
        "Content-Type": "text/plain",
        "content-length": "3",
        "grpc-status": "0",
        "x-request-id": "forged",
        "n": "7",
    }

    assert encode_headers(headers) == (("x-model", "m"), ("n", "7"))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"a b": "c"}, id="space in the name"),
        pytest.param({"": "c"}, id="no name"),
        pytest.param({"x": "line\nbreak"}, id="line break"),
        pytest.param({"x": "é"}, id="not ASCII"),
        pytest.param({"x-bin": "text"}, id="binary name"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not one that gRPC can carry"):
        encode_headers(headers)
