"""The handlers of a model, in each form that they may have."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from functools import wraps
from typing import Any

import orjson
import pytest

from kserve.protocol.rest.openai import OpenAIEncoderModel, OpenAIGenerativeModel
from kserve.protocol.rest.openai.types import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
)
from kserve.testing import Response, request, serving


def completion(request: CompletionRequest, text: str) -> Completion:
    choice = CompletionChoice(index=0, text=text, finish_reason="stop")
    return Completion(model=request.model, choices=[choice])


class Alone(OpenAIGenerativeModel):
    """Takes the request alone."""

    async def create_completion(self, request: CompletionRequest) -> Any:  # type: ignore[override]
        return completion(request, "alone")


class WithRawRequest(OpenAIGenerativeModel):
    """Takes the HTTP request too, and reads its body."""

    async def create_completion(  # type: ignore[override]
        self, request: CompletionRequest, raw_request: Any = None
    ) -> Any:
        body = await raw_request.json()
        gone = await raw_request.is_disconnected()
        return completion(request, f"{body['prompt']} {raw_request.headers['x-own']} {gone}")


class WithContext(OpenAIGenerativeModel):
    """Takes the context by keyword alone."""

    async def create_completion(self, request: CompletionRequest, *, context: Any) -> Any:  # type: ignore[override]
        return completion(request, context["headers"]["x-own"])


class WithAny(OpenAIGenerativeModel):
    """Takes whatever there is."""

    async def create_completion(self, *args: Any, **keywords: Any) -> Any:
        return completion(args[0], " ".join(sorted(keywords)))


class OnThread(OpenAIGenerativeModel):
    """A plain handler that gives a plain generator."""

    def create_completion(self, request: CompletionRequest) -> Any:  # type: ignore[override]
        if not request.stream:
            return completion(request, threading.current_thread().name)
        return self._chunks(request)

    def _chunks(self, request: CompletionRequest) -> Iterator[Any]:
        for _ in range(2):
            text = threading.current_thread().name
            yield CompletionChunk(
                model=request.model, choices=[CompletionChunkChoice(index=0, text=text)]
            )


class Generator(OpenAIGenerativeModel):
    """The handler is an async generator itself, of events as KServe's SDK has them."""

    async def create_completion(  # type: ignore[override]
        self, request: CompletionRequest, raw_request: Any = None, context: Any = None
    ) -> AsyncIterator[str]:
        for text in ("a", "b"):
            choice = CompletionChunkChoice(index=0, text=text)
            chunk = CompletionChunk(model=request.model, choices=[choice])
            yield f"data: {chunk.model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"


class Unwritable(OpenAIGenerativeModel):
    """Its first chunk is nothing that JSON could carry."""

    async def create_completion(self, request: CompletionRequest) -> AsyncIterator[Any]:  # type: ignore[override]
        yield {"a": object()}
        yield {"b": 1}


class AsDict(OpenAIGenerativeModel):
    """Gives a dict."""

    async def create_completion(self, request: Any, raw_request: Any = None) -> Any:  # type: ignore[override]
        return {"choices": [{"text": "dict"}]}


class Duck:
    """A handler that is no function."""

    async def __call__(self, request: CompletionRequest, raw_request: Any = None) -> Any:
        return completion(request, "duck")


class Wrapped(OpenAIGenerativeModel):
    """Its handler is set by the instance."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.create_completion = Duck()  # type: ignore[method-assign,assignment]


class Embeds(OpenAIEncoderModel):
    """No completions at all."""


MODELS = [
    Unwritable,
    Alone,
    WithRawRequest,
    WithContext,
    WithAny,
    OnThread,
    Generator,
    AsDict,
    Wrapped,
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving([*(kind(kind.__name__) for kind in MODELS), Embeds("Embeds")]) as port:
        yield port


def ask(port: int, model: str, **more: Any) -> Response:
    body = orjson.dumps({"model": model, "prompt": "p", **more})
    return request(port, "POST", "/v1/completions", body, {"X-Own": "own"})


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("Alone", "alone"),
        ("WithRawRequest", "p own False"),
        ("WithContext", "own"),
        ("WithAny", "context raw_request"),
        ("OnThread", "OnThread-0"),
        ("AsDict", "dict"),
        ("Wrapped", "duck"),
    ],
)
def test_calls_each_form_of_handler(port: int, model: str, text: str) -> None:
    for _ in range(2):
        response = ask(port, model)

        assert response.status == 200, response.body
        assert response.json()["choices"][0]["text"] == text


def test_draws_a_plain_generator_on_the_model_s_thread(port: int) -> None:
    *events, done, end = ask(port, "OnThread", stream=True).body.split(b"\n\n")

    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["OnThread-0"] * 2
    assert (done, end) == (b"data: [DONE]", b"")


def test_passes_on_the_events_of_a_generator(port: int) -> None:
    body = ask(port, "Generator", stream=True).body

    assert body.count(b"data: [DONE]\n\n") == 1
    assert body.endswith(b"data: [DONE]\n\n")
    assert b'"text":"a"' in body and b'"text":"b"' in body


def test_a_first_chunk_that_cannot_be_sent_is_an_error_with_a_status(port: int) -> None:
    response = ask(port, "Unwritable", stream=True)

    assert response.status == 500
    assert response.json()["error"]["code"] == "internal_error"


def test_says_which_api_a_model_does_not_have(port: int) -> None:
    response = ask(port, "Embeds")

    assert response.status == 400
    message = response.json()["error"]["message"]
    assert message == "Model Embeds does not support Completions API"


class Blocking(OpenAIGenerativeModel):
    """Blocks its thread until it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered, self.may_go = threading.Event(), threading.Event()

    def create_completion(self, request: CompletionRequest) -> Any:  # type: ignore[override]
        self.entered.set()
        self.may_go.wait(15)
        return completion(request, "late")


def test_others_are_answered_while_a_plain_handler_blocks() -> None:
    model = Blocking("blocking")
    answers: list[Response] = []

    with serving([model, Alone("alone")]) as port:
        thread = threading.Thread(target=lambda: answers.append(ask(port, "blocking")))
        thread.start()
        assert model.entered.wait(15)
        live = request(port, "GET", "/v2/health/live")
        other = ask(port, "alone")
        assert not answers
        model.may_go.set()
        thread.join(15)

    assert (live.status, other.status) == (200, 200)
    assert answers[0].json()["choices"][0]["text"] == "late"


def logged(method: Any) -> Any:
    @wraps(method)
    async def wrapper(self: Any, *args: Any, **keywords: Any) -> Any:
        await asyncio.sleep(0)
        return await method(self, *args, **keywords)

    return wrapper


class Decorated(OpenAIGenerativeModel):
    """Its handler has a decorator, as code for KServe's SDK has."""

    @logged
    async def create_completion(
        self, request: CompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        return completion(request, f"decorated {sorted(context)}")


def test_calls_a_decorated_handler() -> None:
    with serving(Decorated("decorated")) as port:
        response = ask(port, "decorated")

    text = "decorated ['document', 'headers', 'response', 'threads']"
    assert response.json()["choices"][0]["text"] == text
