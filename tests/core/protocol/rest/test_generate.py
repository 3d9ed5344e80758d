"""The routes `generate` and `generate_stream` over a socket: what is sent, letter by letter."""

import asyncio
import http.client
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest

from kserve import Model
from kserve.errors import InvalidInput
from kserve.testing import Response, request, serving
from kserve.text_generation import GeneratedText, GenerateRequest, TextGenerator

BAD = "bad"


class Words(Model, TextGenerator):
    """Gives the words of a text one by one, and stops at a bad one."""

    async def generate(
        self, request: GenerateRequest, headers: dict[str, str] | None = None
    ) -> AsyncIterator[GeneratedText]:
        for word in request.text_input.split():
            if word == BAD:
                raise InvalidInput("a bad word")
            yield GeneratedText(text_output=word)


class Details(Model, TextGenerator):
    """Answers with what it was given, in one piece or in two."""

    def generate(self, request: GenerateRequest, headers: dict[str, str] | None = None) -> Any:
        details = {
            **request.parameters,
            "id": request.id,
            "stream": request.stream,
            "header": (headers or {}).get("x-note"),
        }
        if not request.stream:
            return GeneratedText(text_output=request.text_input, details=details)
        return iter(
            [
                GeneratedText(text_output=request.text_input[:1]),
                GeneratedText(text_output=request.text_input[1:], details=details, is_last=True),
            ]
        )


class Bare(Model, TextGenerator):
    """Takes no headers, and answers a stream in one piece; with what is no text to "none"."""

    version = "7"

    async def generate(self, request: GenerateRequest) -> Any:  # type: ignore[override]
        return None if request.text_input == "none" else GeneratedText(text_output="whole")


class Endless(Model, TextGenerator):
    """Writes without end, and takes note of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.has_ended = threading.Event()

    async def generate(self, request: GenerateRequest) -> Any:  # type: ignore[override]
        try:
            while True:
                yield GeneratedText(text_output="la ")
                await asyncio.sleep(0)
        finally:
            self.has_ended.set()


class Deaf(Model):
    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return payload


@pytest.fixture(scope="module")
def endless() -> Endless:
    return Endless("endless")


@pytest.fixture(scope="module")
def server(endless: Endless) -> Iterator[int]:
    models = [Words("words"), Details("details"), Bare("bare"), Deaf("deaf"), endless]
    with serving(models) as port:
        yield port


def post(port: int, path: str, body: Any, **headers: str) -> Response:
    body = body if isinstance(body, bytes) else orjson.dumps(body)
    return request(port, "POST", f"/v2/models/{path}", body, {"x-request-id": "r", **headers})


def test_one_text(server: int) -> None:
    answer = post(server, "details/generate", {"text_input": "hello", "parameters": {"a": 1}})

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == (
        b'{"id":"r","model_name":"details","text_output":"hello",'
        b'"details":{"a":1,"id":"r","stream":false,"header":null}}'
    )


def test_parameters_may_be_beside_the_text(server: int) -> None:
    body = {"id": "mine", "text_input": "", "a": 1, "b": 2, "c": None, "parameters": {"b": 3}}

    answer = post(server, "details/generate", body, **{"x-note": "n"}).json()

    assert answer["id"] == "mine"
    assert answer["details"] == {"a": 1, "b": 3, "id": "mine", "stream": False, "header": "n"}


def test_pieces_are_events(server: int) -> None:
    answer = post(server, "words/generate_stream", {"text_input": "one two"})

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.body == (
        b'data: {"id":"r","model_name":"words","text_output":"one","done":false}\n\n'
        b'data: {"id":"r","model_name":"words","text_output":"two","done":false}\n\n'
        b'data: {"id":"r","model_name":"words","text_output":"","done":true}\n\n'
    )


def test_model_may_say_which_piece_is_the_last(server: int) -> None:
    answer = post(server, "details/generate_stream", {"text_input": "hey", "stream": True})

    events = [orjson.loads(line[6:]) for line in answer.body.split(b"\n\n")[:-1]]
    assert [event["text_output"] for event in events] == ["h", "ey"]
    assert [event["done"] for event in events] == [False, True]
    assert events[1]["details"]["stream"] is True


def test_pieces_are_joined_where_one_text_is_wanted(server: int) -> None:
    assert post(server, "words/generate", {"text_input": "a b"}).json()["text_output"] == "ab"
    assert post(server, "words/generate", {"text_input": ""}).json()["text_output"] == ""


def test_one_piece_is_a_stream_too(server: int) -> None:
    answer = post(server, "bare/generate_stream", {"text_input": "x"})

    assert answer.body.split(b"\n\n")[:-1] == [
        b'data: {"id":"r","model_name":"bare","model_version":"7","text_output":"whole",'
        b'"done":false}',
        b'data: {"id":"r","model_name":"bare","model_version":"7","text_output":"","done":true}',
    ]


def test_error_before_the_first_piece_has_a_status(server: int) -> None:
    for route in ("generate", "generate_stream"):
        answer = post(server, f"words/{route}", {"text_input": BAD})
        assert (answer.status, answer.json()) == (400, {"error": "a bad word"})


def test_error_amid_a_stream_is_its_last_event(server: int) -> None:
    answer = post(server, "words/generate_stream", {"text_input": f"one {BAD} two"})

    assert answer.status == 200
    assert answer.body.split(b"\n\n")[1:] == [b'data: {"error":"a bad word"}', b""]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "Unrecognized request format: unexpected end of data: line 1 column 2 (char 1)"),
        ([], "expected the body to be a JSON object with 'text_input'"),
        ({}, "'text_input': expected a text, got none"),
        ({"text_input": ["a"]}, """'text_input': expected a text, got ["a"]"""),
        ({"text_input": "a", "parameters": [1]}, "'parameters': expected an object"),
        (
            {"text_input": "a", "stream": True},
            "'stream': expected false, or the route generate_stream, got true",
        ),
    ],
)
def test_request_that_is_none_is_refused(server: int, body: Any, reason: str) -> None:
    answer = post(server, "words/generate", body)

    assert (answer.status, answer.json()) == (400, {"error": reason})


def test_model_that_writes_no_text_says_so(server: int) -> None:
    for route in ("generate", "generate_stream"):
        answer = post(server, f"deaf/{route}", {"text_input": "a"})
        assert answer.status == 501
        assert answer.json() == {
            "error": "model deaf does not implement generate: it writes no text"
        }


def test_what_is_no_text_is_the_models_failure(server: int) -> None:
    answer = post(server, "bare/generate", {"text_input": "none"})

    assert answer.status == 500
    assert answer.json() == {"error": "expected a GeneratedText from the model, got NoneType"}


def test_unknown_model_and_method(server: int) -> None:
    assert post(server, "nobody/generate", {"text_input": "a"}).status == 404
    answer = request(server, "GET", "/v2/models/words/generate")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("route", ["generate", "generate_stream"])
def test_client_that_goes_away_ends_the_text(server: int, endless: Endless, route: str) -> None:
    endless.has_ended.clear()
    body = b'{"text_input":""}'
    with socket.create_connection(("127.0.0.1", server)) as client:
        client.sendall(
            b"POST /v2/models/endless/%b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (route.encode(), len(body), body)
        )
        if route == "generate_stream":
            assert client.recv(100)

    assert endless.has_ended.wait(10)


def test_one_text_has_to_be_there_in_the_time_of_a_request() -> None:
    model = Endless("endless")
    with serving([model], request_timeout_s=0.1) as port:
        answer = post(port, "endless/generate", {"text_input": ""})

        assert answer.status == 504
        assert answer.json() == {"error": "no answer within 0.1 s (--request_timeout_s)"}
        assert model.has_ended.wait(10)


def test_events_come_as_they_are_made(server: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server, timeout=10)
    connection.request("POST", "/v2/models/endless/generate_stream", b'{"text_input":""}')
    answer = connection.getresponse()

    assert answer.readline().endswith(b'"text_output":"la ","done":false}\n')
    connection.close()
