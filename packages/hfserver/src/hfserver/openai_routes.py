"""The OpenAI-style routes of a model that reads text; they always give labels and scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfserver.detect import Task
from hfserver.inputs import Wishes
from hfserver.options import STRATEGIES, Options
from hfserver.reader import Reader, TextTooLong
from hfserver.tasks.results import Result, TaskAnswers
from hfserver.tasks.scores import apply_function, best
from hfserver.tasks.sequence_classification import SequenceClassification
from hfserver.tasks.token_classification import TokenClassification
from kserve.protocol.rest.openai import OpenAIEncoderModel, invalid_request, unsupported_api
from kserve.protocol.rest.openai.types import (
    ClassificationData,
    ClassificationRequest,
    ClassificationResponse,
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

Vectors = NDArray[np.float32]


class OpenAIRoutes(OpenAIEncoderModel):
    """Answers the routes with what the reader of a model gives.

    Attributes:
        task: What the model does.
        options: What the command line says.
        reader: The model and its tokenizer.
        answers: The classes of the model.
    """

    task: Task
    options: Options
    reader: Reader
    answers: TaskAnswers

    def log_texts(self, texts: Sequence[Any]) -> None:
        """Log the texts of a request, if the command line says so."""
        raise NotImplementedError

    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: Any = None, context: Any = None
    ) -> Embedding:
        """Give vectors of texts.

        Raises:
            OpenAIError: The model embeds no texts, or a text is too long.
        """
        if self.task is not Task.TEXT_EMBEDDING:
            raise unsupported_api(self.name, "Embeddings")
        results = await self._read(
            "input",
            request.inputs,
            request,
            dimensions=request.dimensions,
            normalize=request.normalize,
            prompt=request.prompt,
            prompt_name=request.prompt_name,
        )
        return Embedding(data=_stacked(results), usage=_usage(results))

    async def create_rerank(
        self, request: RerankRequest, raw_request: Any = None, context: Any = None
    ) -> Rerank:
        """Put documents in the order of their relevance to a query.

        A cross-encoder, which has one label, reads each document with the query. A model of
        embeddings gives the cosine of the angle between the two.

        Raises:
            OpenAIError: The model does neither, or a text is too long.
        """
        documents = request.texts
        if request.max_tokens_per_doc is not None:
            documents = await self.reader.cut(documents, request.max_tokens_per_doc)
        scores, usage = await self._score(
            "documents", [(request.query, text) for text in documents], request, "Rerank"
        )
        return Rerank.of(request, scores, usage)

    async def create_score(
        self, request: ScoreRequest, raw_request: Any = None, context: Any = None
    ) -> ScoreResponse:
        """Give the scores of pairs of texts, as `create_rerank` makes them.

        Raises:
            OpenAIError: As there.
        """
        scores, usage = await self._score(
            "text_2", request.pairs, request, "Score", use_activation=request.use_activation
        )
        return ScoreResponse(data=scores, usage=usage)

    async def create_classification(
        self, request: ClassificationRequest, raw_request: Any = None, context: Any = None
    ) -> ClassificationResponse:
        """Give the classes of texts, or the entities in them.

        Raises:
            OpenAIError: The model does neither, or a text is too long.
        """
        answers = self.answers
        if isinstance(answers, SequenceClassification):
            results = await self._read("input", request.inputs, request)
            data = [
                _classes(index, result, answers, request) for index, result in enumerate(results)
            ]
        elif isinstance(answers, TokenClassification):
            strategy = _strategy(request.aggregation_strategy)
            _need_texts(request.inputs)
            results = await self._read("input", request.inputs, request)
            data = [
                ClassificationData(
                    index=index,
                    num_classes=len(answers.labels),
                    entities=answers.rich(result, Wishes(strategy=strategy)),
                )
                for index, result in enumerate(results)
            ]
        else:
            raise unsupported_api(self.name, "Classification")
        return ClassificationResponse(data=data, usage=_usage(results))
