"""What each field of a request is to the engine."""

from typing import Any

import msgspec
import pytest
from tests.hfserver.generation.tiny_generators import VOCABULARY, tokenizer

from hfserver.generation.defaults import SamplingDefaults
from hfserver.generation.interface import SamplingParams
from hfserver.generation.params import sampling_params
from hfserver.generation.text import TextCodec
from kserve.protocol.rest.openai import OpenAIError
from kserve.protocol.rest.openai.types import ChatCompletionRequest, CompletionRequest

PROTOCOL = SamplingDefaults()
MODEL = SamplingDefaults(
    temperature=0.6, top_p=0.95, top_k=20, min_p=0.02, repetition_penalty=1.05, max_tokens=9
)

# The field of a request, its value, and that of the parameter of the engine's, by its name.
FIELDS: dict[str, tuple[Any, str, Any]] = {
    "n": (3, "n", 3),
    "temperature": (0.5, "temperature", 0.5),
    "top_p": (0.4, "top_p", 0.4),
    "top_k": (7, "top_k", 7),
    "min_p": (0.3, "min_p", 0.3),
    "presence_penalty": (0.1, "presence_penalty", 0.1),
    "frequency_penalty": (0.2, "frequency_penalty", 0.2),
    "repetition_penalty": (1.3, "repetition_penalty", 1.3),
    "min_tokens": (2, "min_tokens", 2),
    "logit_bias": ({"5": 1.5}, "logit_bias", {5: 1.5}),
    "seed": (-1, "seed", 2**64 - 1),
    "stop": ("x", "stop", ["x"]),
    "stop_token_ids": ([6], "stop_token_ids", [6]),
    "ignore_eos": (True, "ignore_eos", True),
    "include_stop_str_in_output": (True, "include_stop", True),
    "skip_special_tokens": (False, "skip_special_tokens", False),
}


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(tokenizer(), VOCABULARY)


def params_of(
    codec: TextCodec, defaults: SamplingDefaults = PROTOCOL, **fields: Any
) -> SamplingParams:
    request = msgspec.convert({"prompt": "a", **fields}, CompletionRequest)
    return sampling_params(request, codec, defaults, max_tokens=4, logprobs=None)


NOTHING: dict[str, Any] = {"max_tokens": 4, "stop": [], "stop_token_ids": []}


def test_a_request_that_says_nothing_leaves_it_to_the_protocol(codec: TextCodec) -> None:
    assert params_of(codec) == SamplingParams(**NOTHING)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_one_parameter_and_no_other(field: str, codec: TextCodec) -> None:
    value, name, expected = FIELDS[field]

    assert params_of(codec, **{field: value}) == SamplingParams(**{**NOTHING, name: expected})


def test_a_chat_has_the_same_fields(codec: TextCodec) -> None:
    fields = {field: value for field, (value, _, _) in FIELDS.items()}
    messages = [{"role": "user", "content": "a"}]
    chat = msgspec.convert({"messages": messages, **fields}, ChatCompletionRequest)

    params = sampling_params(chat, codec, MODEL, max_tokens=4, logprobs=None)

    assert params == params_of(codec, **fields)


def test_what_the_model_says_is_for_what_the_request_does_not(codec: TextCodec) -> None:
    params = params_of(codec, MODEL, top_k=-1)

    # -1 is all of them, whatever the model says.
    own: dict[str, Any] = {
        "temperature": 0.6,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.05,
    }
    assert params == SamplingParams(**NOTHING, **own, top_k=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ["x"] * 65}, "'stop': expected at most 64, got 65"),
        (
            {"logit_bias": {str(key): 1 for key in range(1025)}},
            "'logit_bias': expected at most 1024, got 1025",
        ),
        ({"logit_bias": {"x": 1}}, "'logit_bias': expected token ids as keys, got 'x'"),
        ({"logit_bias": {str(VOCABULARY): 1}}, "'logit_bias': expected token ids from 0 to"),
        ({"stop_token_ids": [VOCABULARY]}, "'stop_token_ids': expected token ids from 0 to"),
    ],
)
def test_says_what_it_cannot_take(fields: Any, message: str, codec: TextCodec) -> None:
    with pytest.raises(OpenAIError) as caught:
        params_of(codec, **fields)

    assert message in str(caught.value)
