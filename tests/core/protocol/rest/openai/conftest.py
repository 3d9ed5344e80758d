"""Models of the OpenAI routes, and one server with all of them."""

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kserve import Model, Signature, TensorModel, TensorSpec
from kserve.errors import InvalidInput
from kserve.model import PredictOptions
from kserve.protocol.rest.openai import (
    ChatPrompt,
    OpenAIChatAdapterModel,
    OpenAIEncoderModel,
    create_error_response,
    invalid_request,
    truncated,
)
from kserve.protocol.rest.openai.types import (
    ChatCompletionRequest,
    ClassificationRequest,
    ClassificationResponse,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    Embedding,
    EmbeddingRequest,
    PoolingRequest,
    PoolingResponse,
    Rerank,
    RerankRequest,
    ScoreRequest,
    ScoreResponse,
    TokenizeRequest,
    TokenizeResponse,
    UsageInfo,
)
from kserve.signature import Tensors
from kserve.testing import serving

WORDS = ["the", "quick", "brown", "fox"]


def vectors(texts: list[Any]) -> NDArray[np.float32]:
    """Give three float32 numbers for each text or list of token ids, most of them no short ones."""
    sums = [sum(text.encode()) if isinstance(text, str) else sum(text) for text in texts]
    return np.array([[n / 3, -n / 7, np.pi * n] for n in sums], np.float32)


class Encoder(TensorModel, OpenAIEncoderModel):
    """Encodes texts by their bytes; answers V1 and V2 too."""

    max_model_len = 8

    def load(self) -> bool:
        self.signature = Signature(inputs=(TensorSpec("text", "BYTES", (-1,)),))
        return True

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return {"embedding": vectors(list(tensors["text"]))}

    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        if request.inputs == ["fail"]:
            raise RuntimeError("a secret")
        if request.inputs == ["refuse"]:
            raise InvalidInput("expected another text, got 'refuse'")
        if request.inputs == ["too long"]:
            raise invalid_request("too long", "input", "context_length_exceeded")
        if request.inputs == ["error response"]:
            return create_error_response("busy", "ServerError", "", 503)
        if request.inputs == ["not finite"]:
            return Embedding(data=np.array([[np.nan, np.inf, 1]], np.float32))
        context["response"].headers["x-seen"] = context["headers"]["x-request-id"]
        n_tokens = sum(map(len, request.inputs))
        matrix = truncated(vectors(request.inputs), request.dimensions)
        return Embedding(data=matrix, usage=UsageInfo.of(n_tokens))

    async def create_rerank(
        self, request: RerankRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        scores = np.array([len(text) / 7 for text in request.texts], np.float32)
        return Rerank.of(request, scores, UsageInfo.of(len(request.query)))

    async def create_score(
        self, request: ScoreRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        scores = [len(first) / (1 + len(second)) for first, second in request.pairs]
        return ScoreResponse(data=np.array(scores, np.float32), usage=UsageInfo.of(1))

    # A plain handler, for a thread.
    def create_classification(
        self, request: ClassificationRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        assert threading.current_thread().name.startswith(self.name)
        long = np.array([len(text) > 3 for text in request.inputs], np.float64)
        return ClassificationResponse.of(
            np.stack([1 - long / 2, long / 2 + 0.125], axis=1), ["short", "long"], UsageInfo.of(2)
        )

    async def create_pooling(
        self, request: PoolingRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        tokens = [np.outer(np.arange(2), row).astype(np.float32) for row in vectors(request.inputs)]
        return PoolingResponse(data=tokens, usage=UsageInfo.of(2))

    async def create_tokenize(
        self, request: TokenizeRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        assert request.prompt is not None
        ids = list(request.prompt.encode())
        strings = [chr(i) for i in ids] if request.return_token_strs else None
        return TokenizeResponse(tokens=ids, count=len(ids), max_model_len=8, token_strs=strings)

    async def create_detokenize(
        self, request: DetokenizeRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        return DetokenizeResponse(prompt=bytes(request.tokens).decode())


class Writer(OpenAIChatAdapterModel):
    """Writes the same four words after every prompt; a prompt may ask it to fail."""

    def apply_chat_template(self, request: ChatCompletionRequest) -> ChatPrompt:
        assert threading.current_thread().name.startswith(self.name)
        return ChatPrompt(prompt=request.messages[-1]["content"])

    async def create_completion(
        self, request: CompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        if request.prompt == "fail":
            raise RuntimeError("a secret")
        if request.stream:
            return self._chunks(request)
        n_words = len(WORDS) if request.max_tokens is None else request.max_tokens
        text = " ".join(WORDS[:n_words])
        return Completion(
            model=request.model,
            choices=[
                CompletionChoice(index=index, text=text, finish_reason="stop")
                for index in range(len(request.prompts) * request.n)
            ],
            usage=UsageInfo.of(3, 4, 1),
        )

    async def _chunks(self, request: CompletionRequest) -> AsyncIterator[CompletionChunk]:
        if request.prompt == "fail at once":
            raise RuntimeError("a secret")
        base = CompletionChunk(model=request.model, choices=[])
        wants_usage = request.stream_options is not None and request.stream_options.include_usage
        for index, word in enumerate(WORDS):
            if index == 2 and request.prompt == "fail midway":
                raise InvalidInput("expected more, got 2 words")
            if index == 2 and request.prompt == "break midway":
                raise RuntimeError("a secret")
            is_last = index == len(WORDS) - 1
            choice = CompletionChunkChoice(
                index=0, text=f"{word} ", finish_reason="stop" if is_last else None
            )
            chunk = CompletionChunk(
                id=base.id, created=base.created, model=request.model, choices=[choice]
            )
            if wants_usage:
                chunk.usage = None
            yield chunk
        if wants_usage:
            base.usage = UsageInfo.of(3, 4)
            yield base


class Plain(Model):
    """No model of the routes."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": []}


class Loading(Encoder):
    """Never becomes ready."""

    def load(self) -> bool:
        return False


class NotReady(Encoder):
    """Is registered, and stops being ready."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Give the port of a server with all the models."""
    sleeping = NotReady("sleeping")
    models = [Encoder("org/encoder"), Writer("writer"), Plain("plain"), sleeping]
    with serving(models) as port:
        sleeping.ready = False
        yield port
