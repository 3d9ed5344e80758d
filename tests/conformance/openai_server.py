"""A server of a model with every handler of OpenAI's routes; a script that the suite starts."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kserve import ModelServer
from kserve.model import PredictOptions, TensorModel
from kserve.protocol.rest.openai import (
    ChatPrompt,
    OpenAIChatAdapterModel,
    OpenAIEncoderModel,
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
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.text_generation import GeneratedText, GenerateRequest, TextGenerator


class Letters(TensorModel, OpenAIEncoderModel, OpenAIChatAdapterModel, TextGenerator):
    """Counts letters, whose codes are the tokens, and writes texts backwards."""

    platform = "letters"
    batching = False
    max_model_len = 100

    def load(self) -> bool:
        """Say what the model takes over V1 and V2."""
        self.signature = Signature(
            inputs=(TensorSpec("text", "BYTES", (-1,)),),
            outputs=(TensorSpec("counts", "FP32", (-1, 4)),),
        )
        return True

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Count the letters."""
        return {"counts": self._count(list(tensors["text"]))}

    async def generate(
        self, request: GenerateRequest, headers: dict[str, str] | None = None
    ) -> AsyncIterator[GeneratedText]:
        """Write the text backwards."""
        for letter in reversed(request.text_input):
            yield GeneratedText(text_output=letter)

    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: Any = None, context: Any = None
    ) -> Embedding:
        """Give the counts as vectors."""
        vectors = truncated(self._count(request.inputs), request.dimensions)
        return Embedding(data=vectors, usage=self._usage(request.inputs))

    async def create_rerank(
        self, request: RerankRequest, raw_request: Any = None, context: Any = None
    ) -> Rerank:
        """Order documents by the letters that they share with the query."""
        scores = self._count(request.texts) @ self._count([request.query])[0]
        return Rerank.of(request, scores, self._usage([request.query, *request.texts]))

    async def create_score(
        self, request: ScoreRequest, raw_request: Any = None, context: Any = None
    ) -> ScoreResponse:
        """Give the number of letters that the texts of a pair share."""
        first, second = (self._count(list(side)) for side in zip(*request.pairs, strict=True))
        return ScoreResponse(data=(first * second).sum(axis=1), usage=UsageInfo.of(1))

    async def create_classification(
        self, request: ClassificationRequest, raw_request: Any = None, context: Any = None
    ) -> ClassificationResponse:
        """Give the share of each letter."""
        counts = self._count(request.inputs)
        shares = counts / counts.sum(axis=1, keepdims=True)
        return ClassificationResponse.of(shares, list("abcd"), self._usage(request.inputs))

    async def create_pooling(
        self, request: PoolingRequest, raw_request: Any = None, context: Any = None
    ) -> PoolingResponse:
        """Give the counts as they are."""
        return PoolingResponse(data=self._count(request.inputs), usage=self._usage(request.inputs))

    async def create_tokenize(
        self, request: TokenizeRequest, raw_request: Any = None, context: Any = None
    ) -> TokenizeResponse:
        """Give the codes of the letters."""
        text = request.prompt or "".join(each["content"] for each in request.messages or ())
        tokens = list(text.encode())
        return TokenizeResponse(tokens=tokens, count=len(tokens), max_model_len=self.max_model_len)

    async def create_detokenize(
        self, request: DetokenizeRequest, raw_request: Any = None, context: Any = None
    ) -> DetokenizeResponse:
        """Give the letters of codes."""
        return DetokenizeResponse(prompt=bytes(request.tokens).decode())

    def apply_chat_template(self, request: ChatCompletionRequest) -> ChatPrompt:
        """Give the last message."""
        return ChatPrompt(prompt=request.messages[-1]["content"])

    async def create_completion(
        self, request: CompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Write each prompt backwards."""
        texts = [_text(prompt)[::-1] for prompt in request.prompts]
        if (request.max_tokens or 0) > self.max_model_len:
            raise invalid_request(
                f"'max_tokens': expected at most {self.max_model_len}, got {request.max_tokens}",
                "max_tokens",
                "context_length_exceeded",
            )
        if request.stream:
            return self._chunks(request, texts)
        n_tokens = sum(map(len, texts))
        choices = [
            CompletionChoice(index=index, text=text, finish_reason="stop")
            for index, text in enumerate(texts)
        ]
        usage = UsageInfo.of(n_tokens, n_tokens)
        return Completion(model=request.model, choices=choices, usage=usage)

    async def _chunks(
        self, request: CompletionRequest, texts: list[str]
    ) -> AsyncIterator[CompletionChunk]:
        wants_usage = request.stream_options is not None and request.stream_options.include_usage
        first = CompletionChunk(model=request.model, choices=[])
        own: dict[str, Any] = {"id": first.id, "created": first.created, "model": request.model}
        for index, text in enumerate(texts):
            for place, letter in enumerate(text, 1):
                reason: Any = "stop" if place == len(text) else None
                choice = CompletionChunkChoice(index=index, text=letter, finish_reason=reason)
                chunk = CompletionChunk(**own, choices=[choice])
                if wants_usage:
                    chunk.usage = None
                yield chunk
        if wants_usage:
            n_tokens = sum(map(len, texts))
            yield CompletionChunk(**own, choices=[], usage=UsageInfo.of(n_tokens, n_tokens))

    def _count(self, texts: list[Any]) -> NDArray[np.float32]:
        counts = [[_text(text).count(letter) for letter in "abcd"] for text in texts]
        return np.array(counts, np.float32)

    def _usage(self, texts: list[Any]) -> UsageInfo:
        return UsageInfo.of(sum(map(len, texts)))


def _text(text: str | list[int]) -> str:
    return text if isinstance(text, str) else bytes(text).decode()


if __name__ == "__main__":
    ModelServer().start([Letters("letters")])
