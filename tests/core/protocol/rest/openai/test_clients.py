"""OpenAI's own client, sync and async, against the routes."""

import asyncio
from collections.abc import Iterator

import numpy as np
import openai
import pytest

ENCODER = "org/encoder"
VECTOR = np.array([100 / 3, -100 / 7, np.pi * 100], np.float32)


@pytest.fixture(params=["/v1", "/openai/v1"])
def client(port: int, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{port}{request.param}"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_embeds_by_the_client_s_default_which_is_base64(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=ENCODER, input=["d", "a"])

    assert [item.index for item in answer.data] == [0, 1]
    assert np.array(answer.data[0].embedding, np.float32).tobytes() == VECTOR.tobytes()
    assert answer.usage.prompt_tokens == 2
    assert answer.model == ENCODER


def test_embeds_as_floats_and_token_ids(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model=ENCODER, input=[[100]], encoding_format="float", dimensions=2, user="somebody"
    )

    expected = VECTOR[:2] / np.linalg.norm(VECTOR[:2])
    np.testing.assert_allclose(answer.data[0].embedding, expected, rtol=1e-6)


def test_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [ENCODER, "writer", "sleeping"]
    assert client.models.retrieve(ENCODER).id == ENCODER
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


def test_chats_and_completes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="writer", messages=[{"role": "user", "content": "go"}]
    )
    completion = client.completions.create(model="writer", prompt="go", max_tokens=1)

    assert answer.choices[0].message.content == "the quick brown fox"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == 4
    assert completion.choices[0].text == "the"
    assert completion.id.startswith("cmpl-")


def test_streams(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="writer",
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    texts = [chunk.choices[0].delta.content for chunk in chunks[:-1]]
    assert "".join(filter(None, texts)) == "the quick brown fox "
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 7


def test_raises_what_ends_a_stream_midway(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="writer", prompt="fail midway", stream=True)
    texts = []

    with pytest.raises(openai.APIError, match="expected more, got 2 words"):
        for chunk in stream:
            texts.append(chunk.choices[0].text)  # noqa: PERF401 - those before the error count

    assert texts == ["the ", "quick "]


@pytest.mark.parametrize(
    ("model", "text", "kind", "code"),
    [
        (ENCODER, "refuse", openai.BadRequestError, None),
        (ENCODER, "fail", openai.InternalServerError, "internal_error"),
        ("nobody", "a", openai.NotFoundError, "model_not_found"),
        ("sleeping", "a", openai.InternalServerError, "model_not_ready"),
    ],
)
def test_raises_the_class_of_each_status(
    client: openai.OpenAI, model: str, text: str, kind: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        client.embeddings.create(model=model, input=text)

    assert caught.value.code == code
    assert caught.value.request_id
    assert "secret" not in str(caught.value)


def test_the_async_client_does_the_same(port: int) -> None:
    async def ask() -> tuple[list[float], str]:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.embeddings.create(model=ENCODER, input="d") for _ in range(8))
            )
            stream = await client.chat.completions.create(
                model="writer", messages=[{"role": "user", "content": "go"}], stream=True
            )
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return answers[-1].data[0].embedding, "".join(texts)

    vector, text = asyncio.run(ask())

    assert np.array(vector, np.float32).tobytes() == VECTOR.tobytes()
    assert text == "the quick brown fox "
