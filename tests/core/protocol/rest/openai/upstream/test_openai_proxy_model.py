"""The proxy over real sockets: what goes on, what comes back, and what hooks change."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any

import openai
import orjson
import pytest

from kserve.errors import InvalidInput
from kserve.executor import run_in_new_thread
from kserve.protocol.rest.openai import OpenAIProxyModel
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionChunk,
    CompletionRequest,
)
from kserve.testing import Response, request, serving

Serve = Callable[..., AbstractContextManager[int]]

WAIT_S = 15
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "theirs",
    "choices": [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop", "x": 1}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "not_known_here": [1.0, 1e-7],
}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "theirs",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello", "reasoning": "thoughts"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def post(port: int, path: str, document: Any, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(port, "POST", path, orjson.dumps(document), named)


def chunk(text: str, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text, "reasoning": "why"}, "finish_reason": None}
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "theirs"}
    return {**base, "choices": [choice], **fields}


def piece(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": None, "x": 1}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "t", "choices": [choice]}


def events(response: Response) -> list[Any]:
    *parts, rest = response.body.decode().split("\n\n")
    assert rest == ""
    data = [part.removeprefix("data: ") for part in parts]
    return [each if each == "[DONE]" else orjson.loads(each) for each in data]


def always(document: Any) -> Any:
    async def script(asked: Any) -> None:
        await asked.reply(document)

    return script


def streaming(*documents: Any) -> Any:
    async def script(asked: Any) -> None:
        await asked.begin()
        for document in documents:
            await asked.event(document)
        await asked.chunk(b"data: [DONE]\n\n")
        await asked.end()

    return script


def test_passes_on_what_the_client_sends_and_what_the_server_answers(
    upstream: Any, proxied: Serve
) -> None:
    upstream.scripts[COMPLETIONS] = always(COMPLETION)
    sent = {
        "prompt": ["a", "ü"],
        "suffix": "end",
        "best_of": 3,
        "guided_json": {"type": "object"},
        "prompt_logprobs": 1,
        "temperature": 99.0,
        "nothing": None,
        "made_tomorrow": {"a": [1]},
    }

    with proxied(upstream_model="theirs") as port:
        answer = post(port, COMPLETIONS, {"model": "served", **sent})

    (asked,) = upstream.asked_of(COMPLETIONS)
    del sent["nothing"]
    assert asked.json() == {"model": "theirs", **sent}
    assert answer.status == 200
    assert answer.body == orjson.dumps({**COMPLETION, "model": "served"})


@pytest.mark.parametrize("base", ["", "/v1", "/openai/v1", "/gateway/v1/"])
@pytest.mark.parametrize(
    ("api", "answer"),
    [
        ("completions", COMPLETION),
        ("chat/completions", ANSWER),
        ("embeddings", {"data": [{"embedding": "AACAPw=="}], "model": "theirs"}),
        ("rerank", {"results": [{"index": 0, "relevance_score": 0.5}]}),
        ("score", {"data": [{"score": 0.25}]}),
        ("classify", {"data": [{"label": "a"}]}),
        ("pooling", {"data": [{"data": [[1.5]]}]}),
        ("tokenize", {"tokens": [1, 2], "count": 2}),
        ("detokenize", {"prompt": "a"}),
    ],
)
def test_knows_where_the_server_has_each_api(
    upstream: Any, base: str, api: str, answer: dict[str, Any]
) -> None:
    v1 = base.rstrip("/") or "/v1"
    root = {"/openai/v1": "", "/gateway/v1": "/gateway", "/v1": ""}[v1]
    is_at_root = api in ("classify", "pooling", "tokenize", "detokenize")
    path = f"{root if is_at_root else v1}/{api}"
    upstream.scripts[path] = always(answer)

    with serving(OpenAIProxyModel("served", upstream.url + base, upstream_model="a")) as port:
        got = post(port, f"/v1/{api}", {"model": "served", "anything": 1})

    assert got.status == 200
    assert got.json() == ({**answer, "model": "served"} if "model" in answer else answer)
    assert upstream.asked_of(path)[0].json()["anything"] == 1


def test_forwards_the_headers_that_are_the_server_s_business(upstream: Any, proxied: Serve) -> None:
    upstream.scripts[COMPLETIONS] = always(COMPLETION)
    headers = {"x-request-id": "r1", "authorization": "Bearer \xfc", "traceparent": "00-1-2-01"}

    with proxied() as port:
        post(port, COMPLETIONS, {"prompt": "a"}, cookie="secret", x_own="1", **headers)

    (asked,) = upstream.asked_of(COMPLETIONS)
    assert {name: asked.headers.get(name) for name in headers} == headers
    assert asked.headers["content-type"] == "application/json"
    assert "cookie" not in asked.headers and "x-own" not in asked.headers


def test_shows_its_own_key_in_place_of_the_client_s(upstream: Any, proxied: Serve) -> None:
    async def refuse(asked: Any) -> None:
        await asked.reply({"error": {"message": "bad key", "type": "x", "code": "k"}}, 401)

    upstream.scripts[COMPLETIONS] = refuse

    with proxied(api_key="mine") as port:
        answer = post(port, COMPLETIONS, {"prompt": "a"}, authorization="Bearer theirs")

    assert upstream.asked_of(COMPLETIONS)[0].headers["authorization"] == "Bearer mine"
    assert answer.status == 502
    assert answer.json()["error"]["message"] == "the upstream server refuses the proxy's key (401)"


def test_passes_events_on_one_by_one(upstream: Any, proxied: Serve) -> None:
    last = chunk("", choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2})

    async def script(asked: Any) -> None:
        await asked.begin()
        await asked.event(chunk("first"))
        await upstream.going_on()
        await asked.event(chunk("second"))
        await asked.event(last)
        await asked.chunk(b"data: [DONE]\n\n")
        await asked.end()

    upstream.scripts[CHAT] = script
    with (
        proxied() as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client,
        client.chat.completions.with_streaming_response.create(
            model="served",
            messages=MESSAGES,
            stream=True,
        ) as response,
    ):
        lines = response.iter_lines()
        first = next(lines)
        # Only now does the server go on.
        upstream.may_go_on.set()
        rest = [line for line in lines if line]

    assert orjson.loads(first.removeprefix("data: ")) == chunk("first", model="served")
    assert [orjson.loads(line.removeprefix("data: ")) for line in rest[:-1]] == [
        chunk("second", model="served"),
        {**last, "model": "served"},
    ]
    assert rest[-1] == "data: [DONE]"


def test_the_clients_of_openai_are_answered(upstream: Any, proxied: Serve) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

    async def script(asked: Any) -> None:
        if asked.json().get("stream"):
            await streaming(chunk("a"), chunk("b"), chunk("", choices=[], usage=usage))(asked)
        else:
            await asked.reply(ANSWER)

    async def ask(url: str) -> tuple[str, int]:
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            answer = await client.chat.completions.create(model="served", messages=MESSAGES)
            stream: Any = await client.chat.completions.create(
                model="served",
                messages=MESSAGES,
                stream=True,
            )
            chunks: list[Any] = [each async for each in stream]
        assert chunks[-1].usage is not None and chunks[0].model == answer.model == "served"
        texts = [each.choices[0].delta.content or "" for each in chunks[:-1]]
        return "".join(texts), chunks[-1].usage.total_tokens

    upstream.scripts[CHAT] = script
    with proxied() as port:
        url = f"http://127.0.0.1:{port}/openai/v1"
        with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
            whole = client.chat.completions.create(model="served", messages=MESSAGES)
            stream: Any = client.chat.completions.create(
                model="served",
                messages=MESSAGES,
                stream=True,
            )
            texts = [each.choices[0].delta.content for each in stream if each.choices]
        asynchronous = asyncio.run(ask(url))

    assert whole.choices[0].message.content == "hello"
    assert whole.choices[0].message.reasoning == "thoughts"  # type: ignore[attr-defined]
    assert texts == ["a", "b"]
    assert asynchronous == ("ab", 3)


class Hooked(OpenAIProxyModel):
    """Changes everything, and leaves what it does not know."""

    threads: set[str] = set()

    def preprocess_chat_completion_request(
        self, request: ChatCompletionRequest, raw_request: Any = None
    ) -> None:
        self.threads.add(threading.current_thread().name)
        request.messages.append({"role": "user", "content": "more"})
        request.temperature = None
        request.max_tokens = 5
        raw_request.scope["upstream_headers"] = {"X-Tenant": "t1", "authorization": "Bearer own"}

    def postprocess_chat_completion(  # type: ignore[override]
        self, chat_completion: ChatCompletion, request: ChatCompletionRequest
    ) -> None:
        chat_completion.choices[0].message.content = f"{request.messages[-1]['content']}!"

    def postprocess_chat_completion_chunk(
        self,
        chat_completion_chunk: ChatCompletionChunk,
        request: ChatCompletionRequest,
        raw_request: Any = None,
    ) -> None:
        text = chat_completion_chunk.choices[0].delta.content
        if text == "bad":
            raise InvalidInput("not this word")
        chat_completion_chunk.choices[0].delta.content = (text or "").upper()


def test_plain_hooks_change_in_place_and_keep_what_they_do_not_know(
    upstream: Any, proxied: Serve
) -> None:
    upstream.scripts[CHAT] = always(ANSWER)

    with proxied(Hooked) as port:
        answer = post(
            port,
            CHAT,
            {"model": "served", "messages": MESSAGES, "temperature": 1, "new": {"a": None}},
        )

    (asked,) = upstream.asked_of(CHAT)
    assert asked.json() == {
        "model": "served",
        "messages": [*MESSAGES, {"role": "user", "content": "more"}],
        "max_tokens": 5,
        "new": {"a": None},
    }
    assert (asked.headers["x-tenant"], asked.headers["authorization"]) == ("t1", "Bearer own")
    assert answer.json()["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "more!", "reasoning": "thoughts"},
            "finish_reason": "stop",
        }
    ]
    assert answer.json()["model"] == "served"
    assert Hooked.threads == {"served-0"}


def test_hooks_of_chunks_run_for_each_and_may_end_the_stream(upstream: Any, proxied: Serve) -> None:
    upstream.scripts[CHAT] = streaming(chunk("a"), chunk("b"), chunk("bad"), chunk("c"))

    with proxied(Hooked) as port:
        answer = post(port, CHAT, {"model": "served", "messages": MESSAGES, "stream": True})

    first, second, error, done = events(answer)
    expected = chunk("A", model="served")
    assert first == expected
    assert second == chunk("B", model="served")
    assert error["error"]["message"] == "not this word"
    assert done == "[DONE]"


def test_a_request_for_which_there_is_a_hook_must_have_the_types(
    upstream: Any, proxied: Serve
) -> None:
    with proxied(Hooked) as port:
        answer = post(port, CHAT, {"model": "served", "messages": "hi"})

    assert answer.status == 400
    assert answer.json()["error"] == {
        "message": "'messages': expected an array, got 'hi'",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "invalid_type",
    }
    assert not upstream.asked_of(CHAT)


class AsyncHooked(OpenAIProxyModel):
    """Has async hooks, and gives new objects."""

    async def preprocess_completion_request(
        self, request: CompletionRequest, raw_request: Any = None
    ) -> CompletionRequest:
        await asyncio.sleep(0)
        request.model = "another"
        return request

    async def postprocess_completion(
        self, completion: Completion, request: CompletionRequest, raw_request: Any = None
    ) -> Completion:
        return Completion(model="mine", choices=completion.choices[:0])

    async def postprocess_completion_chunk(
        self, completion: CompletionChunk, request: CompletionRequest, raw_request: Any = None
    ) -> None:
        completion.choices[0].text += f" {request.model}"


def test_async_hooks_may_give_new_objects(upstream: Any, proxied: Serve) -> None:
    async def script(asked: Any) -> None:
        if asked.json().get("stream"):
            await streaming(piece("a"))(asked)
        else:
            await asked.reply(COMPLETION)

    upstream.scripts[COMPLETIONS] = script

    with proxied(AsyncHooked) as port:
        whole = post(port, COMPLETIONS, {"model": "served", "prompt": "a"})
        streamed = post(port, COMPLETIONS, {"model": "served", "prompt": "a", "stream": True})

    assert [asked.json()["model"] for asked in upstream.asked_of(COMPLETIONS)] == ["another"] * 2
    assert whole.json()["choices"] == []
    assert whole.json()["not_known_here"] == [1.0, 1e-7]
    assert events(streamed)[0]["choices"][0] == {
        "index": 0,
        "text": "a another",
        "finish_reason": None,
        "x": 1,
    }


class Lenient(OpenAIProxyModel):
    """Looks at what came as it is."""

    def postprocess_completion(self, completion: Completion) -> None:  # type: ignore[override]
        completion.choices.append({"text": 7})  # type: ignore[arg-type]


def test_answers_must_have_the_types_of_hooks_unless_they_are_not_validated(
    upstream: Any, proxied: Serve
) -> None:
    upstream.scripts[COMPLETIONS] = always({"id": 3, "choices": [{"text": 5}]})

    with proxied(Lenient) as port:
        strict = post(port, COMPLETIONS, {"prompt": "a"})
    with proxied(Lenient, skip_upstream_validation=True) as port:
        lenient = post(port, COMPLETIONS, {"prompt": "a"})

    assert strict.status == 502
    assert strict.json()["error"]["message"].startswith(
        "the upstream server's answer is not a Completion: "
    )
    assert lenient.status == 200
    assert lenient.json()["choices"] == [{"text": 5}, {"text": 7}]


class Wrapping(OpenAIProxyModel):
    """Overrides handlers, and looks at what the proxy gives."""

    async def create_completion(
        self, request: CompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        result = await super().create_completion(request, raw_request, context)
        if isinstance(result, Completion):
            result.choices[0].text += "?"
            return result
        return self._with_marks(result)

    async def _with_marks(self, chunks: AsyncIterator[CompletionChunk]) -> AsyncIterator[Any]:
        async for each in chunks:
            each.choices[0].text += "?"
            yield each

    async def create_embedding(
        self, request: Any, raw_request: Any = None, context: Any = None
    ) -> Any:
        answer = await super().create_embedding(request, raw_request, context)
        return {**answer, "n_inputs": len(request.inputs)}


def test_a_handler_that_is_overridden_gets_objects(upstream: Any, proxied: Serve) -> None:
    async def script(asked: Any) -> None:
        if asked.json().get("stream"):
            await streaming(piece("a"), piece("b"), {"choices": 1})(asked)
        else:
            await asked.reply(COMPLETION)

    upstream.scripts[COMPLETIONS] = script
    upstream.scripts["/v1/embeddings"] = always({"data": [], "x": 1})

    with proxied(Wrapping) as port:
        whole = post(port, COMPLETIONS, {"prompt": "a"})
        streamed = post(port, COMPLETIONS, {"prompt": "a", "stream": True})
        embedded = post(port, "/v1/embeddings", {"input": ["a", "b"]})

    assert whole.json()["choices"][0]["text"] == "hello?"
    *pieces, error, done = events(streamed)
    assert [each["choices"][0]["text"] for each in pieces] == ["a?", "b?"]
    assert "is not a CompletionChunk" in error["error"]["message"]
    assert done == "[DONE]"
    assert embedded.json() == {"data": [], "x": 1, "n_inputs": 2}


def test_a_request_may_come_from_code(upstream: Any) -> None:
    upstream.scripts[COMPLETIONS] = always(COMPLETION)

    async def ask() -> Any:
        model = OpenAIProxyModel("served", upstream.url)
        try:
            return await model.create_completion(
                CompletionRequest(model="served", prompt="a", max_tokens=3),
                {"upstream_headers": {"x-own": "1"}},
            )
        finally:
            await run_in_new_thread(model.stop)

    raw = asyncio.run(ask())

    (asked,) = upstream.asked_of(COMPLETIONS)
    assert asked.json() == {"model": "served", "prompt": "a", "max_tokens": 3}
    assert asked.headers["x-own"] == "1"
    assert orjson.loads(bytes(raw))["choices"] == COMPLETION["choices"]


def test_is_listed_with_what_the_server_says_of_it(upstream: Any, proxied: Serve) -> None:
    upstream.scripts["/v1/models"] = always({"data": [{"id": "theirs", "max_model_len": 4096}]})
    upstream.scripts[COMPLETIONS] = always(COMPLETION)

    with proxied() as port:
        ready = request(port, "GET", "/v2/health/ready")
        listed = request(port, "GET", "/openai/v1/models")
        retrieved = request(port, "GET", "/openai/v1/models/served")
        post(port, COMPLETIONS, {"prompt": "a"})

    assert ready.status == 200
    assert [(each["id"], each["max_model_len"]) for each in listed.json()["data"]] == [
        ("served", 4096)
    ]
    assert retrieved.json()["max_model_len"] == 4096
    assert upstream.asked_of(COMPLETIONS)[0].json()["model"] == "theirs"


def test_refuses_a_url_that_is_none() -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT or https://HOST, got 'x:1'"):
        OpenAIProxyModel("served", "x:1")
