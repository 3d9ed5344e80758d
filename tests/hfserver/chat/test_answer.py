"""Answers in a chat, put together of scripted events."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import orjson
import pytest
from tests.hfserver.chat.test_parsing import CASES, MARKERS, TOOLS

from hfserver.chat.answer import AnswerSettings, ChatAnswer
from hfserver.chat.families import find_family
from hfserver.chat.parsing import AnswerReader
from hfserver.generation.interface import Event, PromptEvent, TokenEvent, TokenLogprob
from kserve.protocol.rest.openai.types import ChatCompletionChunk, ChatCompletionRequest

pytestmark = pytest.mark.anyio

TEXT = (
    "<think>\nHm.\n</think>\n\nI look.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def make_request(**kwargs: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "a"}], **kwargs)


def make_settings(name: str = "hermes", **kwargs: Any) -> AnswerSettings:
    family = find_family(MARKERS[name])
    reader = AnswerReader(family.fields(tools=True), tools=TOOLS)
    return AnswerSettings(reader=reader, has_reasoning=True, **kwargs)


def script(text: str, size: int, finish: Any = "stop", index: int = 0) -> list[Event]:
    """Give events of a few characters each, as if they were tokens."""
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    events: list[Event] = [
        TokenEvent(index, (number + 7,), piece, (TokenLogprob(number + 7, -0.5, ((9, -0.1),)),))
        for number, piece in enumerate(pieces)
    ]
    return [*events, TokenEvent(index, (3,), "", (TokenLogprob(3, -0.25),), finish)]


async def replay(events: Sequence[Event]) -> AsyncGenerator[Event]:
    for event in events:
        yield event


async def stream(
    request: ChatCompletionRequest, events: Sequence[Event], settings: AnswerSettings
) -> list[ChatCompletionChunk]:
    answer = ChatAnswer(request, [1, 2], settings)
    return [chunk async for chunk in answer.stream(replay([PromptEvent(1), *events]))]


def whole(request: ChatCompletionRequest, events: Sequence[Event], settings: AnswerSettings) -> Any:
    answer = ChatAnswer(request, [1, 2], settings)
    for event in [PromptEvent(1), *events]:
        answer.take(event)
    return answer.whole()


def joined(chunks: Sequence[ChatCompletionChunk], index: int = 0) -> dict[str, Any]:
    """Join the deltas of a choice, as OpenAI's clients do."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "finish": None}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            assert message["finish"] is None
            message["content"] += choice.delta.content or ""
            message["reasoning"] += choice.delta.reasoning_content or ""
            for call in choice.delta.tool_calls or []:
                assert call.function is not None
                known = message["calls"].setdefault(call.index, {"name": "", "arguments": ""})
                known["name"] += call.function.name or ""
                known["arguments"] += call.function.arguments or ""
            message["finish"] = choice.finish_reason
    return message


def message_of(response: Any, index: int = 0) -> dict[str, Any]:
    choice = response.choices[index]
    return {
        "content": choice.message.content or "",
        "reasoning": choice.message.reasoning_content or "",
        "calls": {
            number: {"name": call.function.name, "arguments": call.function.arguments}
            for number, call in enumerate(choice.message.tool_calls or [])
        },
        "finish": choice.finish_reason,
    }


async def test_gives_thoughts_text_and_calls_apart() -> None:
    response = whole(make_request(), script(TEXT, 3), make_settings())

    document = response.model_dump()
    calls = document["choices"][0]["message"].pop("tool_calls")
    assert document["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "I look.",
            "refusal": None,
            "reasoning_content": "Hm.",
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    assert [(call["type"], call["function"]) for call in calls] == [
        ("function", {"name": "weather", "arguments": '{"city":"Paris"}'}),
        ("function", {"name": "now", "arguments": "{}"}),
    ]
    assert len({call["id"] for call in calls}) == 2


async def test_streams_the_role_first_and_the_reason_last() -> None:
    chunks = await stream(make_request(stream=True), script(TEXT, 200), make_settings())

    deltas = [orjson.loads(chunk.model_dump_json())["choices"][0] for chunk in chunks]
    ids = [each["delta"]["tool_calls"][0].pop("id", None) for each in deltas[3:7]]
    assert [each["delta"] for each in deltas] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "I look."},
        {
            "tool_calls": [
                {"index": 0, "type": "function", "function": {"name": "weather", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":"Paris"}'}}]},
        {
            "tool_calls": [
                {"index": 1, "type": "function", "function": {"name": "now", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [each["finish_reason"] for each in deltas] == [None] * 7 + ["tool_calls"]
    assert [each is not None for each in ids] == [True, False, True, False]
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize(("name", "text", "parts"), CASES)
async def test_chunks_joined_are_the_whole_answer(
    name: str, text: str, parts: Any, size: int, finish: str
) -> None:
    for cut in {len(text), len(text) * 2 // 3, len(text) // 3}:
        events = script(text[:cut], size, finish)

        chunks = await stream(make_request(stream=True), events, make_settings(name))

        assert joined(chunks) == message_of(whole(make_request(), events, make_settings(name)))


async def test_a_call_that_is_cut_off_is_text() -> None:
    text = 'I look.<tool_call>{"name": "weather", "argu'

    response = whole(make_request(), script(text, 4, "length"), make_settings())

    assert message_of(response) == {
        "content": text,
        "reasoning": "",
        "calls": {},
        "finish": "length",
    }


async def test_choices_do_not_meet() -> None:
    events = [
        event
        for pair in zip(script(TEXT, 3), script("x" * len(TEXT), 3, "length", 1), strict=True)
        for event in pair
    ]
    request = make_request(n=2, stream=True)

    chunks = await stream(request, events, make_settings())
    response = whole(request, events, make_settings())

    for index in (0, 1):
        assert joined(chunks, index) == message_of(response, index)
    assert message_of(response, 1) == {
        "content": "x" * len(TEXT),
        "reasoning": "",
        "calls": {},
        "finish": "length",
    }
    assert response.usage.completion_tokens == len(events)


async def test_usage_counts_thoughts_and_what_was_cached() -> None:
    events = script("<think>ab</think>c", 1)

    response = whole(make_request(), events, make_settings())

    assert response.usage.model_dump() == {
        "prompt_tokens": 2,
        "completion_tokens": len(events),
        "total_tokens": 2 + len(events),
        "prompt_tokens_details": {"cached_tokens": 1},
        # Two letters, and the tags on both sides of them but for the last character of the second.
        "completion_tokens_details": {"reasoning_tokens": 1 + 2 + len("</think>") - 1},
    }


@pytest.mark.parametrize("so_far", [False, True])
async def test_the_last_chunk_has_the_usage_where_it_is_wanted(so_far: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": so_far}
    request = ChatCompletionRequest.model_validate(
        {"messages": [], "stream": True, "stream_options": options}
    )

    chunks = await stream(request, script("ab", 1), make_settings())

    documents = [orjson.loads(chunk.model_dump_json()) for chunk in chunks]
    assert documents[-1]["choices"] == []
    assert documents[-1]["usage"]["completion_tokens"] == 3
    if so_far:
        assert [each["usage"]["completion_tokens"] for each in documents[:-1]] == [0, 1, 2, 3]
    else:
        assert [each["usage"] for each in documents[:-1]] == [None] * 4


async def test_chunks_have_no_usage_where_it_is_not_wanted() -> None:
    chunks = await stream(make_request(stream=True), script("ab", 1), make_settings())

    assert all("usage" not in orjson.loads(chunk.model_dump_json()) for chunk in chunks)


async def test_log_probabilities_are_those_of_all_tokens() -> None:
    events = script(TEXT, 5)
    request = make_request(logprobs=True, top_logprobs=1, stream=True)
    settings = make_settings(token_name=lambda token_id: f"t{token_id}")

    chunks = await stream(request, events, settings)
    response = whole(request, events, settings)

    streamed = [
        each
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for each in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == response.choices[0].logprobs.content
    assert len(streamed) == len(events)
    assert streamed[0].model_dump() == {
        "token": "t7",
        "logprob": -0.5,
        "bytes": [116, 55],
        "top_logprobs": [{"token": "t9", "logprob": -0.1, "bytes": [116, 57]}],
    }


async def test_ids_of_tokens_are_those_of_all() -> None:
    events = script(TEXT, 5)
    request = make_request(return_token_ids=True, stream=True)

    chunks = await stream(request, events, make_settings())
    response = whole(request, events, make_settings())

    streamed = [i for chunk in chunks for i in chunk.choices[0].token_ids or []]
    assert (
        streamed
        == response.choices[0].token_ids
        == [i for event in events if isinstance(event, TokenEvent) for i in event.token_ids]
    )
    assert [chunk.prompt_token_ids for chunk in chunks][:2] == [[1, 2], None]
    assert response.prompt_token_ids == [1, 2]


async def test_thoughts_are_left_out_where_they_are_not_wanted() -> None:
    request = make_request(include_reasoning=False)

    assert message_of(whole(request, script(TEXT, 4), make_settings()))["reasoning"] == ""


async def test_begins_with_what_it_continues() -> None:
    settings = AnswerSettings(beginning="A list")
    events = script(" is", 1)

    chunks = await stream(make_request(stream=True), events, settings)

    assert joined(chunks)["content"] == "A list is"
    assert message_of(whole(make_request(), events, settings))["content"] == "A list is"


async def test_ids_of_calls_have_the_length_that_is_wanted() -> None:
    response = whole(make_request(), script(TEXT, 9), make_settings(id_length=9))

    assert [len(call.id) for call in response.choices[0].message.tool_calls] == [9, 9]


async def test_tokens_that_are_no_text_are_left_out() -> None:
    settings = make_settings(clean=lambda text: text.replace("<pad>", ""))

    response = whole(make_request(), [TokenEvent(0, (1,), "a<pad>", None, "stop", 5)], settings)

    assert response.choices[0].message.content == "a"
    assert response.choices[0].stop_reason == 5


async def test_closing_the_stream_closes_the_events() -> None:
    closed = []

    async def events() -> AsyncGenerator[Event]:
        try:
            yield PromptEvent()
            yield TokenEvent(0, (1,), "a")
        finally:
            closed.append(True)

    chunks = ChatAnswer(make_request(), [1], AnswerSettings()).stream(events())
    await anext(chunks)
    assert not closed

    await chunks.aclose()  # type: ignore[attr-defined]

    assert closed == [True]
