"""The responses of the OpenAI API, and those of vLLM, Jina and Cohere beside it.

Arrays of numpy may stand wherever a list of numbers may.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self
from uuid import uuid4

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import ArrayLike

from kserve.protocol.rest.openai.types.requests import RerankRequest
from kserve.protocol.rest.openai.types.structs import OpenAIStruct, constant, empty_list

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


def unix_time() -> int:
    """Give the seconds since 1970, for `created`."""
    return int(datetime.now(UTC).timestamp())


def _id(prefix: str) -> Any:
    return msgspec.field(default_factory=lambda: f"{prefix}-{uuid4().hex}")


def _created() -> Any:
    return msgspec.field(default_factory=unix_time)


class Error(OpenAIStruct, kw_only=True):
    """What went wrong.

    Attributes:
        message: For people: what was expected and what came.
        type: The kind, such as `invalid_request_error`.
        param: The field of the request that is at fault.
        code: For programs, such as `model_not_found`.
    """

    message: str
    type: str
    param: str | None = constant(None)
    code: str | None = constant(None)


class ErrorResponse(OpenAIStruct, kw_only=True, dict=True):
    """The body of a response that is an error."""

    error: Error

    @property
    def http_status(self) -> int:
        """The status that it goes with: that it was made for, or its code if that is a number."""
        status: int | None = vars(self).get("_http_status")
        if status is not None:
            return status
        code = str(self.error.code or "")
        return int(code) if code.isdigit() and 400 <= int(code) <= 599 else 400


class PromptTokensDetails(OpenAIStruct, kw_only=True):
    """Which of the prompt's tokens were there already."""

    cached_tokens: int = constant(0)


class CompletionTokensDetails(OpenAIStruct, kw_only=True):
    """Which of the answer's tokens were thoughts."""

    reasoning_tokens: int = constant(0)


class UsageInfo(OpenAIStruct, kw_only=True):
    """How many tokens a request had.

    Attributes:
        prompt_tokens: Of what was sent.
        total_tokens: All.
        completion_tokens: Of what was generated; None where nothing is.
    """

    prompt_tokens: int = constant(0)
    total_tokens: int = constant(0)
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(
        cls,
        prompt_tokens: int,
        completion_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> Self:
        """Make one, with the total.

        Args:
            prompt_tokens: Of what was sent, without padding.
            completion_tokens: Of what was generated; None where nothing is.
            cached_tokens: Those of the prompt that were there already; None where nothing is kept.
        """
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + (completion_tokens or 0),
            prompt_tokens_details=(
                None if cached_tokens is None else PromptTokensDetails(cached_tokens=cached_tokens)
            ),
        )


class Model(OpenAIStruct, kw_only=True):
    """A model that can be asked.

    Attributes:
        id: Its name.
        created: When the server started, in seconds since 1970.
        max_model_len: How many tokens it takes, where it says so.
    """

    id: str
    object: str = constant("model")
    created: int = _created()
    owned_by: str = constant("")
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(OpenAIStruct, kw_only=True):
    """The models."""

    object: str = constant("list")
    data: list[Model] = empty_list()


# Completions.


class CompletionLogProbs(OpenAIStruct, kw_only=True):
    """The log probabilities of a completion's tokens, as lists of equal length."""

    text_offset: list[int] = empty_list()
    token_logprobs: list[float | None] = empty_list()
    tokens: list[str] = empty_list()
    top_logprobs: list[dict[str, float] | None] = empty_list()


class CompletionChoice(OpenAIStruct, kw_only=True):
    """One continuation; of prompt i and answer j its index is i * n + j."""

    index: int
    text: str
    logprobs: CompletionLogProbs | None = constant(None)
    finish_reason: FinishReason | None = constant(None)
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(OpenAIStruct, kw_only=True):
    """The response to a `CompletionRequest`."""

    id: str = _id("cmpl")
    object: str = constant("text_completion")
    created: int = _created()
    model: str
    choices: list[CompletionChoice]
    usage: UsageInfo | None = None
    system_fingerprint: str | None = None


class CompletionChunkChoice(CompletionChoice, kw_only=True):
    """The next piece of one continuation; the last one has the reason of its end."""


class CompletionChunk(OpenAIStruct, kw_only=True):
    """One chunk of a streamed completion; all chunks have the same `id` and `created`.

    Attributes:
        usage: Null in every chunk but the last where the usage was asked for, else left out.
    """

    id: str = _id("cmpl")
    object: str = constant("text_completion")
    created: int = _created()
    model: str
    choices: list[CompletionChunkChoice]
    usage: UsageInfo | None | UnsetType = UNSET
    system_fingerprint: str | None = None


# Chats.


class ChatCompletionLogProb(OpenAIStruct, kw_only=True):
    """A token and its log probability.

    Attributes:
        bytes: The token's text as UTF-8, or a part of it.
    """

    token: str
    logprob: float = constant(-9999.0)
    bytes: list[int] | None = constant(None)


class ChatCompletionLogProbsContent(ChatCompletionLogProb, kw_only=True):
    """A token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[ChatCompletionLogProb] = empty_list()


class ChatCompletionLogProbs(OpenAIStruct, kw_only=True):
    """The log probabilities of an answer's tokens."""

    content: list[ChatCompletionLogProbsContent] | None = constant(None)
    refusal: list[ChatCompletionLogProbsContent] | None = constant(None)


class FunctionCall(OpenAIStruct, kw_only=True):
    """The function that the model calls, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(OpenAIStruct, kw_only=True):
    """A call that the model makes."""

    id: str = _id("call")
    type: str = constant("function")
    function: FunctionCall


class ChatMessage(OpenAIStruct, kw_only=True):
    """The answer in a chat."""

    role: str = constant("assistant")
    content: str | None = constant(None)
    refusal: str | None = constant(None)
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatCompletionChoice(OpenAIStruct, kw_only=True):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChatCompletionLogProbs | None = constant(None)
    finish_reason: FinishReason | None = constant(None)
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(OpenAIStruct, kw_only=True):
    """The response to a `ChatCompletionRequest`."""

    id: str = _id("chatcmpl")
    object: str = constant("chat.completion")
    created: int = _created()
    model: str
    choices: list[ChatCompletionChoice]
    usage: UsageInfo | None = None
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | None = None


class DeltaFunctionCall(OpenAIStruct, kw_only=True):
    """The next piece of a call: the name first, then the text of the arguments."""

    name: str | None = None
    arguments: str | None = None


class DeltaToolCall(OpenAIStruct, kw_only=True):
    """The next piece of one of the calls; the first one has the id and the type."""

    index: int
    id: str | None = None
    type: str | None = None
    function: DeltaFunctionCall | None = None


class ChoiceDelta(OpenAIStruct, kw_only=True):
    """The next piece of an answer; the first one has the role."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChunkChoice(OpenAIStruct, kw_only=True):
    """The next piece of one of the answers; the last one has the reason of its end."""

    index: int
    delta: ChoiceDelta
    logprobs: ChatCompletionLogProbs | None = constant(None)
    finish_reason: FinishReason | None = constant(None)
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(OpenAIStruct, kw_only=True):
    """One chunk of a streamed answer; all chunks have the same `id` and `created`.

    Attributes:
        usage: Null in every chunk but the last where the usage was asked for, else left out.
    """

    id: str = _id("chatcmpl")
    object: str = constant("chat.completion.chunk")
    created: int = _created()
    model: str
    choices: list[ChunkChoice]
    usage: UsageInfo | None | UnsetType = UNSET
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | None = None


# One pass over texts.


class EmbeddingResponseData(OpenAIStruct, kw_only=True):
    """One vector: an array, shape (n_dimensions,), a list of numbers, or their base64."""

    object: str = constant("embedding")
    index: int
    embedding: Any


class Embedding(OpenAIStruct, kw_only=True):
    """The response to an `EmbeddingRequest`.

    Attributes:
        data: A float32 matrix, shape (n_inputs, n_dimensions), which is written in the encoding
            that the request asks for; or a list of `EmbeddingResponseData`.
    """

    object: str = constant("list")
    data: Any
    model: str = constant("")
    usage: UsageInfo = msgspec.field(default_factory=UsageInfo)


class PoolingResponseData(OpenAIStruct, kw_only=True):
    """What the model makes of one text: an array of any shape, nested lists, or base64."""

    object: str = constant("pooling")
    index: int
    data: Any


class PoolingResponse(OpenAIStruct, kw_only=True):
    """The response to a `PoolingRequest`.

    Attributes:
        data: A float32 matrix with a row for each input; a list of arrays, such as matrices with a
            row for each token; or a list of `PoolingResponseData`. Arrays are written in the
            encoding that the request asks for.
    """

    object: str = constant("list")
    id: str = _id("pool")
    created: int = _created()
    model: str = constant("")
    data: Any
    usage: UsageInfo = msgspec.field(default_factory=UsageInfo)


class ClassificationData(OpenAIStruct, kw_only=True):
    """The class of one text, or the entities in it.

    Attributes:
        label: The likeliest class, by its name.
        probs: The probability of each class, shape (n_classes,).
        num_classes: How many classes there are.
        labels: The names of the classes of `probs`, in order.
        entities: Of a model that classifies tokens: what it found, each a dict.
    """

    index: int
    label: str | None = constant(None)
    probs: Any = empty_list()
    num_classes: int = constant(0)
    labels: list[str] | None = None
    entities: list[dict[str, Any]] | None = None


class ClassificationResponse(OpenAIStruct, kw_only=True):
    """The response to a `ClassificationRequest`."""

    id: str = _id("classify")
    object: str = constant("list")
    created: int = _created()
    model: str = constant("")
    data: list[ClassificationData]
    usage: UsageInfo = msgspec.field(default_factory=UsageInfo)

    @classmethod
    def of(
        cls,
        probabilities: ArrayLike,
        labels: Sequence[str],
        usage: UsageInfo,
        model: str = "",
    ) -> Self:
        """Make one.

        Args:
            probabilities: Of each class, shape (n_inputs, n_classes).
            labels: The names of the classes.
            usage: The tokens.
            model: The model's name; filled in where it is empty.
        """
        rows = np.asarray(probabilities)
        data = [
            ClassificationData(
                index=index,
                label=labels[int(row.argmax())],
                probs=row,
                num_classes=len(labels),
                labels=list(labels),
            )
            for index, row in enumerate(rows)
        ]
        return cls(model=model, data=data, usage=usage)


class ScoreResponseData(OpenAIStruct, kw_only=True):
    """The score of one pair."""

    object: str = constant("score")
    index: int
    score: Any


class ScoreResponse(OpenAIStruct, kw_only=True):
    """The response to a `ScoreRequest`.

    Attributes:
        data: An array with the score of each pair, shape (n_pairs,), or a list of
            `ScoreResponseData`.
    """

    id: str = _id("score")
    object: str = constant("list")
    created: int = _created()
    model: str = constant("")
    data: Any
    usage: UsageInfo = msgspec.field(default_factory=UsageInfo)


class RerankDocument(OpenAIStruct, kw_only=True):
    """A document."""

    text: str


class RerankResult(OpenAIStruct, kw_only=True):
    """A document's relevance, and its place in the request."""

    index: int
    relevance_score: Any
    document: RerankDocument | None = None


class Rerank(OpenAIStruct, kw_only=True):
    """The response to a `RerankRequest`; the most relevant document is first."""

    id: str = _id("rerank")
    model: str = constant("")
    usage: UsageInfo = msgspec.field(default_factory=UsageInfo)
    results: list[RerankResult]

    @classmethod
    def of(
        cls, request: RerankRequest, scores: ArrayLike, usage: UsageInfo, model: str = ""
    ) -> Self:
        """Make one, of as many results as the request asks for.

        Args:
            request: The request.
            scores: Of each of its documents, in their order, shape (n_documents,).
            usage: The tokens.
            model: The model's name; filled in where it is empty.
        """
        array = np.asarray(scores)
        texts = request.texts
        # Stable, so that documents of one score keep their order; NaN is last.
        order = np.argsort(-array, kind="stable")[: request.top_n or None]
        results = [
            RerankResult(
                index=index,
                relevance_score=array[index],
                document=RerankDocument(text=texts[index]) if request.return_documents else None,
            )
            for index in order.tolist()
        ]
        return cls(model=model, usage=usage, results=results)


class TokenizeResponse(OpenAIStruct, kw_only=True):
    """The response to a `TokenizeRequest`.

    Attributes:
        tokens: The ids.
        count: How many there are.
        max_model_len: How many the model takes; None where it has no limit.
        token_strs: The tokens as texts, where they are asked for.
    """

    tokens: list[int]
    count: int
    max_model_len: int | None = constant(None)
    token_strs: list[str] | None = constant(None)


class DetokenizeResponse(OpenAIStruct, kw_only=True):
    """The response to a `DetokenizeRequest`."""

    prompt: str
