"""Chats that are answered as completions."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kserve.protocol.rest.openai import (
    ChatPrompt,
    OpenAIChatAdapterModel,
    create_error_response,
)
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogProbs,
    CompletionRequest,
    ErrorResponse,
    UsageInfo,
)

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Adapter(OpenAIChatAdapterModel):
    """Keeps the requests it gets, and answers with what it was made with."""

    def __init__(self, answer: Any) -> None:
        super().__init__("adapter")
        self.answer = answer
        self.requests: list[CompletionRequest] = []

    def apply_chat_template(self, request: ChatCompletionRequest) -> ChatPrompt:
        prompt = "".join(message["content"] for message in request.messages)
        return ChatPrompt(response_role="robot", prompt=prompt)

    async def create_completion(
        self, request: CompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        self.requests.append(request)
        return self.answer


class AsyncAdapter(Adapter):
    """Its template is async."""

    async def apply_chat_template(self, request: ChatCompletionRequest) -> ChatPrompt:  # type: ignore[override]
        return ChatPrompt(prompt=[1, 2])


def completion(*texts: str, **more: Any) -> Completion:
    choices = [
        CompletionChoice(index=index, text=text, finish_reason="stop", **more)
        for index, text in enumerate(texts)
    ]
    return Completion(id="i", created=1, model="m", choices=choices, usage=UsageInfo.of(1, 2))


async def chat(answer: Any, kind: type[Adapter] = Adapter, **more: Any) -> tuple[Any, Any]:
    model = kind(answer)
    request = ChatCompletionRequest(model="m", messages=MESSAGES, **more)
    result = await model.create_chat_completion(request)
    return result, model.requests[0]


async def test_gives_the_template_s_prompt_and_every_shared_field() -> None:
    _, request = await chat(
        completion("x"),
        n=2,
        temperature=0.5,
        stop="s",
        seed=3,
        logit_bias={"1": 2.0},
        max_completion_tokens=7,
        top_k=4,
        user="u",
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "text"},
        request_id="r",
    )

    assert request.prompt == "ab"
    assert (request.n, request.temperature, request.stop, request.seed) == (2, 0.5, "s", 3)
    assert (request.logit_bias, request.max_tokens, request.top_k) == ({"1": 2.0}, 7, 4)
    assert (request.user, request.logprobs, request.request_id) == ("u", 2, "r")
    assert request.response_format == {"type": "text"}
    # The template has written them.
    assert request.add_special_tokens is False


async def test_a_chat_without_a_limit_has_none() -> None:
    _, request = await chat(completion("x"))

    assert (request.max_tokens, request.logprobs) == (None, None)


async def test_an_async_template_may_give_token_ids() -> None:
    _, request = await chat(completion("x"), AsyncAdapter, logprobs=True)

    assert (request.prompt, request.logprobs) == ([1, 2], 0)


async def test_gives_each_continuation_as_an_answer() -> None:
    answer, _ = await chat(completion("x", "y"), n=2)

    assert isinstance(answer, ChatCompletion)
    assert (answer.id, answer.created, answer.model) == ("i", 1, "m")
    assert [(c.index, c.message.role, c.message.content) for c in answer.choices] == [
        (0, "robot", "x"),
        (1, "robot", "y"),
    ]
    assert answer.usage == UsageInfo.of(1, 2)


async def test_gives_the_log_probabilities() -> None:
    logprobs = CompletionLogProbs(
        tokens=["é", "b"],
        token_logprobs=[None, -0.5],
        top_logprobs=[None, {"b": -0.5, "c": -1.5}],
        text_offset=[0, 1],
    )

    answer, _ = await chat(completion("éb", logprobs=logprobs), logprobs=True, top_logprobs=2)

    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("é", -9999.0, [195, 169])
    assert first.top_logprobs == []
    assert [(top.token, top.logprob) for top in second.top_logprobs] == [("b", -0.5), ("c", -1.5)]


def chunk(text: str, index: int = 0, **more: Any) -> CompletionChunk:
    choice = CompletionChunkChoice(index=index, text=text)
    return CompletionChunk(id="i", created=1, model="m", choices=[choice], **more)


async def test_streams_the_role_of_each_answer_once() -> None:
    async def chunks() -> AsyncIterator[CompletionChunk]:
        for text, index in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
            yield chunk(text, index)
        yield CompletionChunk(id="i", created=1, model="m", choices=[], usage=UsageInfo.of(1, 4))

    answer, _ = await chat(chunks(), stream=True)
    got = [each async for each in answer]

    deltas = [(c.index, c.delta.role, c.delta.content) for each in got for c in each.choices]
    assert deltas == [(0, "robot", "a"), (1, "robot", "b"), (0, None, "c"), (1, None, "d")]
    assert "usage" not in got[0].model_dump()
    assert got[-1].usage == UsageInfo.of(1, 4)
    assert {each.id for each in got} == {"i"}


async def test_reads_the_events_of_code_for_the_sdk() -> None:
    async def events() -> AsyncIterator[str]:
        yield f"data: {chunk('a').model_dump_json()}\n\n"
        yield f"data: {chunk('b').model_dump_json()}\n\ndata: {chunk('c').model_dump_json()}\n\n"
        yield 'data: {"error":{"message":"bad"}}\n\n'
        yield "data: [DONE]\n\n"

    answer, _ = await chat(events(), stream=True)
    got = [each async for each in answer]

    assert got.pop() == 'data: {"error":{"message":"bad"}}\n\n'
    assert [each.choices[0].delta.content for each in got] == ["a", "b", "c"]


async def test_closes_the_completion_with_the_chat() -> None:
    is_closed = False

    async def chunks() -> AsyncIterator[CompletionChunk]:
        nonlocal is_closed
        try:
            while True:
                yield chunk("a")
        finally:
            is_closed = True

    answer, _ = await chat(chunks(), stream=True)
    await anext(answer)
    await answer.aclose()

    assert is_closed


async def test_passes_an_error_on() -> None:
    response = create_error_response("no")

    answer, _ = await chat(response)

    assert isinstance(answer, ErrorResponse) and answer is response


async def test_needs_a_template() -> None:
    class Bare(OpenAIChatAdapterModel):
        """Has none."""

    with pytest.raises(NotImplementedError, match="does not implement apply_chat_template"):
        await Bare("bare").create_chat_completion(ChatCompletionRequest(messages=MESSAGES))
