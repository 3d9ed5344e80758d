"""OpenAI's asynchronous client: streams and whole answers of one model at the same time."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.hfserver.chat.test_chats import client_of, make_model, save

from kserve.testing import serving

pytestmark = pytest.mark.timeout(120)

QUESTIONS = [f"What is {number} like?" for number in range(6)]
LIMITS: dict[str, Any] = {"model": "toy", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory: Path = save(tmp_path_factory.mktemp("async"))
    with serving([make_model(directory)]) as port:
        yield port


def chat(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def one_by_one(port: int) -> tuple[list[str], list[str]]:
    """Give the texts of chats and of completions, each asked for alone and whole."""
    with client_of(port) as client:
        chats = [
            client.chat.completions.create(messages=chat(text), **LIMITS).choices[0].message.content
            for text in QUESTIONS
        ]
        completions = [
            client.completions.create(prompt=text, **LIMITS).choices[0].text for text in QUESTIONS
        ]
    return [text or "" for text in chats], completions


async def at_once(port: int) -> dict[str, list[str]]:
    """Give the same by the asynchronous client, all at once, whole and streamed."""
    url = f"http://127.0.0.1:{port}/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def whole_chat(text: str) -> str:
            answer = await client.chat.completions.create(messages=chat(text), **LIMITS)
            return answer.choices[0].message.content or ""

        async def streamed_chat(text: str) -> str:
            stream = await client.chat.completions.create(
                messages=chat(text), stream=True, **LIMITS
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def whole(text: str) -> str:
            answer = await client.completions.create(prompt=text, **LIMITS)
            return str(answer.choices[0].text)

        async def streamed(text: str) -> str:
            stream = await client.completions.create(prompt=text, stream=True, **LIMITS)
            return "".join([chunk.choices[0].text async for chunk in stream])

        ways = (whole_chat, streamed_chat, whole, streamed)
        answers = await asyncio.gather(*(way(text) for text in QUESTIONS for way in ways))
    return {way.__name__: list(answers[place :: len(ways)]) for place, way in enumerate(ways)}


def test_streams_and_whole_answers_side_by_side_are_those_of_each_alone(port: int) -> None:
    chats, completions = one_by_one(port)

    answers = asyncio.run(at_once(port))

    assert answers == {
        "whole_chat": chats,
        "streamed_chat": chats,
        "whole": completions,
        "streamed": completions,
    }
    assert len(set(chats)) == len(QUESTIONS)


def test_a_stream_that_is_left_ends_alone(port: int) -> None:
    chats, _ = one_by_one(port)

    async def ask() -> list[str]:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            limits = {**LIMITS, "max_tokens": 1000}
            extra = {"ignore_eos": True}
            left = await client.chat.completions.create(
                messages=chat("Go on."), stream=True, extra_body=extra, **limits
            )
            await anext(aiter(left))
            others = [
                client.chat.completions.create(messages=chat(text), **LIMITS) for text in QUESTIONS
            ]
            tasks = [asyncio.ensure_future(other) for other in others]
            await left.close()
            return [(await task).choices[0].message.content or "" for task in tasks]

    assert asyncio.run(ask()) == chats
