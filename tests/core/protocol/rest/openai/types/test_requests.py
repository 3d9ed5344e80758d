"""The requests, as code makes them."""

import pytest

from kserve.protocol.rest.openai import types
from kserve.protocol.rest.openai.types import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    ScoreRequest,
)

# What KServe's SDK has under `kserve.protocol.rest.openai.types`.
NAMES = [
    *("ChatCompletion", "ChatCompletionAssistantMessageParam", "ChatCompletionChoice"),
    *("ChatCompletionChunk", "ChatCompletionContentPartParam"),
    *("ChatCompletionContentPartTextParam", "ChatCompletionLogProb", "ChatCompletionLogProbs"),
    *("ChatCompletionLogProbsContent", "ChatCompletionMessageParam", "ChatCompletionRequest"),
    *("ChatCompletionToolMessageParam", "ChatMessage", "ChoiceDelta", "ChunkChoice", "Completion"),
    *("CompletionChoice", "CompletionChunk", "CompletionChunkChoice", "CompletionLogProbs"),
    *("CompletionRequest", "ConversationMessage", "CustomChatCompletionMessageParam", "Embedding"),
    *("EmbeddingCompletionRequest", "EmbeddingRequest", "EmbeddingResponseData", "Error"),
    *("ErrorResponse", "Model", "ModelList", "Rerank", "RerankRequest", "UsageInfo"),
]


@pytest.mark.parametrize("name", NAMES)
def test_has_the_names_of_the_sdk(name: str) -> None:
    assert name in types.__all__
    assert getattr(types, name) is not None


def test_code_makes_requests_with_keywords_and_defaults() -> None:
    request = CompletionRequest(model="m", prompt=["a", "b"], stop=["x", "y"])

    assert (request.max_tokens, request.n, request.stream) == (16, 1, False)
    assert request.prompts == ["a", "b"]
    assert request.stop_texts == ["x", "y"]
    assert CompletionRequest(prompt=[1]).prompts == [[1]]


def test_a_chat_has_one_limit_of_two_names() -> None:
    messages = [{"role": "user", "content": "a"}]

    assert ChatCompletionRequest(messages=messages).token_limit is None
    assert ChatCompletionRequest(messages=messages, max_tokens=1).token_limit == 1
    both = ChatCompletionRequest(messages=messages, max_tokens=1, max_completion_tokens=2)
    assert both.token_limit == 2


def test_structure_says_whether_white_space_may_stand_in_it() -> None:
    read = CompletionRequest.model_validate(
        {"prompt": "a", "structured_outputs": {"json": {}, "disable_any_whitespace": False}}
    )

    assert read.structured_outputs is not None
    assert read.structured_outputs.disable_any_whitespace is False
    assert types.StructuredOutputsParams(regex="a").disable_any_whitespace is None


def test_texts_are_a_list_of_their_own() -> None:
    texts = ["a"]
    request = EmbeddingRequest(input=texts)

    request.inputs.append("b")

    assert texts == ["a"]


def test_pairs_need_equal_numbers() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = ScoreRequest(text_1=["a", "b"], text_2=["c"]).pairs
