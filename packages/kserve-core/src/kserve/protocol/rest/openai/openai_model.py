"""What a model is that answers OpenAI's routes; a subclass overrides what it can do."""

from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from kserve.model import BaseKServeModel
from kserve.protocol.rest.openai.errors import unsupported_api
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ClassificationRequest,
    ClassificationResponse,
    Completion,
    CompletionChunk,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    Embedding,
    EmbeddingRequest,
    ErrorResponse,
    PoolingRequest,
    PoolingResponse,
    Rerank,
    RerankRequest,
    ScoreRequest,
    ScoreResponse,
    TokenizeRequest,
    TokenizeResponse,
)

__all__ = [
    "AsyncMappingIterator",
    "ChatCompletionRequest",
    "ChatPrompt",
    "CompletionRequest",
    "OpenAIEncoderModel",
    "OpenAIGenerativeModel",
    "OpenAIModel",
]

# Of the request: `headers`, a dict of them, lower-case; `document`, its JSON without what is null;
# `response`, whose `headers` are sent; and `threads`, where the plain handlers of the model run.
Context = dict[str, Any]

T = TypeVar("T")
U = TypeVar("U")


class ChatPrompt(msgspec.Struct, kw_only=True):
    """What a chat template made of the messages.

    Attributes:
        response_role: The role of the answer.
        prompt: The text to continue, or its token ids.
    """

    response_role: str = "assistant"
    prompt: str | list[int]


class OpenAIModel(BaseKServeModel):
    """A model of OpenAI's routes, which are there while such a model is.

    A handler takes the request, the HTTP request as Starlette has it, and the context: a dict with
    `headers`, those of the request, lower-case, and `response`, whose `headers` are sent with the
    answer. It gives a response, an `ErrorResponse`, or an async iterator of chunks, which are
    objects, or texts that are server-sent events already. It may be plain, then it runs on a thread
    of the model's own; its task is cancelled when the client goes away or the time is over. An
    `InvalidInput` or an `OpenAIError` that it raises is for the client to read.

    It may have `read_request`, which makes the request of a document in the place of
    `kserve.protocol.rest.openai.reading.read_request`: a model that leaves the fields to others.

    May stand beside `Model` or `TensorModel` as a base class: then the model answers V1 and V2 too.

    Attributes:
        max_model_len: How many tokens the model takes, for the list of models; None says nothing.
    """

    serves_openai: ClassVar[bool] = True
    max_model_len: int | None = None

    async def create_tokenize(
        self,
        request: TokenizeRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> TokenizeResponse | ErrorResponse:
        """Give the token ids of a text or a chat.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Tokenize")

    async def create_detokenize(
        self,
        request: DetokenizeRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> DetokenizeResponse | ErrorResponse:
        """Give the text of token ids.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Detokenize")


class OpenAIGenerativeModel(OpenAIModel):
    """A model that writes text."""

    async def create_completion(
        self,
        request: CompletionRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Completion | ErrorResponse | AsyncIterator[CompletionChunk | str]:
        """Continue prompts.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Completions")

    async def create_chat_completion(
        self,
        request: ChatCompletionRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> ChatCompletion | ErrorResponse | AsyncIterator[ChatCompletionChunk | str]:
        """Answer in a chat.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Chat Completions")


class OpenAIEncoderModel(OpenAIModel):
    """A model that reads text, and answers in one pass over it."""

    async def create_embedding(
        self,
        request: EmbeddingRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Embedding | ErrorResponse:
        """Give vectors of texts.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Embeddings")

    async def create_rerank(
        self,
        request: RerankRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Rerank | ErrorResponse:
        """Put documents in the order of their relevance to a query.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Rerank")

    async def create_score(
        self,
        request: ScoreRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> ScoreResponse | ErrorResponse:
        """Give the scores of pairs of texts.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Score")

    async def create_classification(
        self,
        request: ClassificationRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> ClassificationResponse | ErrorResponse:
        """Give the classes of texts, or what their tokens are.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Classification")

    async def create_pooling(
        self,
        request: PoolingRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> PoolingResponse | ErrorResponse:
        """Give what the model makes of texts, before any head of a task.

        Raises:
            OpenAIError: The model does not do it.
        """
        raise unsupported_api(self.name, "Pooling")


class AsyncMappingIterator(Generic[T, U]):
    """The items of an async iterator, each as a function makes it; None is left out.

    Args:
        iterator: Gives the items.
        mapper: Makes one of each.
    """

    def __init__(self, iterator: AsyncIterator[T], mapper: Callable[[T], U | None]) -> None:
        self._iterator = iterator
        self._mapper = mapper

    def __aiter__(self) -> "AsyncMappingIterator[T, U]":
        """Give itself."""
        return self

    async def __anext__(self) -> U:
        """Give the next item."""
        while True:
            mapped = self._mapper(await anext(self._iterator))
            if mapped is not None:
                return mapped

    async def aclose(self) -> None:
        """Close where the items come from."""
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()
