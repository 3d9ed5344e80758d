"""The OpenAI-style routes of a model that reads text; they always give labels and scores."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hfserver.detect import Task
from hfserver.encoder.tokenization import TextTooLong
from hfserver.inputs import Wishes
from hfserver.options import STRATEGIES, Options
from hfserver.reader import Reader
from hfserver.tasks.results import Result, TaskAnswers
from hfserver.tasks.scores import apply_function, best
from hfserver.tasks.sequence_classification import SequenceClassification
from hfserver.tasks.token_classification import TokenClassification
from kserve.errors import InvalidInput
from kserve.listing import listing, shortened
from kserve.protocol.rest.openai import OpenAIEncoderModel, invalid_request, unsupported_api
from kserve.protocol.rest.openai.types import (
    ClassificationData,
    ClassificationRequest,
    ClassificationResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    Embedding,
    EmbeddingRequest,
    EncoderRequest,
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

# What the route for pooling can give, in vLLM's words; the first is the model's own.
_SCORE: Final = "score"
_TOKEN_CLASSIFY: Final = "token_classify"
_POOLINGS: Final[Mapping[Task, tuple[str, ...]]] = {
    Task.TEXT_EMBEDDING: ("embed",),
    Task.SEQUENCE_CLASSIFICATION: ("classify", _SCORE),
    Task.TOKEN_CLASSIFICATION: (_TOKEN_CLASSIFY,),
    Task.FILL_MASK: (),
}


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
            documents = await self.reader.shortened(documents, request.max_tokens_per_doc)
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

    async def create_pooling(
        self, request: PoolingRequest, raw_request: Any = None, context: Any = None
    ) -> PoolingResponse:
        """Give the vector of each text, or of each of its tokens, or the scores of the classes.

        Raises:
            OpenAIError: The model does not do what the request asks for, or a text is too long.
        """
        pooling = self._pooling(request.task)
        results = await self._read(
            "input",
            request.inputs,
            request,
            dimensions=request.dimensions,
            normalize=request.normalize,
        )
        arrays = [result.numbers for result in results]
        if isinstance(self.answers, SequenceClassification):
            labels = self.answers.labels
            function = labels.score_function if pooling == _SCORE else labels.function
            arrays = [apply_function(function, array) for array in arrays]
        elif pooling == _TOKEN_CLASSIFY:
            arrays = [apply_function("softmax", array) for array in arrays]
        return PoolingResponse(data=arrays, usage=_usage(results))

    async def create_tokenize(
        self, request: TokenizeRequest, raw_request: Any = None, context: Any = None
    ) -> TokenizeResponse:
        """Give the token ids of a text.

        Raises:
            OpenAIError: It is a chat, which this model does not read.
        """
        if request.prompt is None:
            raise invalid_request(
                f"Model {self.name} reads no chats: expected 'prompt', got 'messages'", "messages"
            )
        ids = await self.reader.ids_of(
            request.prompt, add_special_tokens=request.add_special_tokens is not False
        )
        return TokenizeResponse(
            tokens=ids,
            count=len(ids),
            max_model_len=self.reader.max_length,
            token_strs=self.reader.tokens_of(ids) if request.return_token_strs else None,
        )

    async def create_detokenize(
        self, request: DetokenizeRequest, raw_request: Any = None, context: Any = None
    ) -> DetokenizeResponse:
        """Give the text of token ids.

        Raises:
            InvalidInput: The vocabulary does not have one of them.
        """
        return DetokenizeResponse(prompt=self.reader.text_of(request.tokens))

    async def _read(
        self, param: str, texts: Sequence[Any], request: EncoderRequest, **wishes: Any
    ) -> list[Result]:
        """Have the engine read texts as these routes do: none is cut unless the client says so."""
        self.log_texts(texts)
        limit = request.truncate_prompt_tokens
        default = "none" if limit is None else "right"
        try:
            return await self.reader.read(
                texts,
                truncation=request.truncation or default,
                max_length=None if limit == -1 else limit,
                add_special_tokens=request.add_special_tokens and self.options.add_special_tokens,
                **wishes,
            )
        except TextTooLong as exc:
            raise invalid_request(str(exc), param, "context_length_exceeded") from exc
        except InvalidInput as exc:
            # Of a wish the text begins with its name.
            name = str(exc).partition(":")[0]
            raise invalid_request(str(exc), name if name in wishes else param) from exc

    async def _score(
        self,
        param: str,
        pairs: list[tuple[str, str]],
        request: RerankRequest | ScoreRequest,
        api: str,
        *,
        use_activation: bool | None = None,
    ) -> tuple[Vectors, UsageInfo]:
        if self.task is Task.TEXT_EMBEDDING:
            return await self._compare(param, pairs, request)
        if not isinstance(self.answers, SequenceClassification) or self.answers.n_labels != 1:
            raise unsupported_api(self.name, api)
        results = await self._read(param, pairs, request)
        logits = np.concatenate([result.numbers for result in results])
        function = self.answers.labels.score_function
        if use_activation is not None:
            function = "sigmoid" if use_activation else "none"
        return apply_function(function, logits), _usage(results)

    async def _compare(
        self, param: str, pairs: list[tuple[str, str]], request: RerankRequest | ScoreRequest
    ) -> tuple[Vectors, UsageInfo]:
        """Give the cosines of the embeddings of pairs; each text is read once."""
        firsts, seconds = (list(dict.fromkeys(column)) for column in zip(*pairs, strict=True))
        read = partial(self._read, param, request=request, normalize=True)
        queries, documents = await asyncio.gather(
            read(firsts, prompt_name=self.reader.query_prompt),
            read(seconds, prompt_name=self.reader.document_prompt),
        )
        left = {text: result.numbers for text, result in zip(firsts, queries, strict=True)}
        right = {text: result.numbers for text, result in zip(seconds, documents, strict=True)}
        cosines = [float(left[first] @ right[second]) for first, second in pairs]
        return np.array(cosines, dtype=np.float32), _usage([*queries, *documents])

    def _pooling(self, wanted: str | None) -> str:
        """Give what a request for pooling gets, in vLLM's words.

        Raises:
            OpenAIError: The model does not do it.
        """
        possible = _POOLINGS[self.task]
        if not possible:
            raise unsupported_api(self.name, "Pooling")
        if wanted is None:
            return possible[0]
        if wanted not in possible:
            raise invalid_request(
                f"'task': expected {' or '.join(possible)}, got {shortened(repr(wanted))}", "task"
            )
        return wanted


def _stacked(results: Sequence[Result]) -> Vectors:
    return np.stack([result.numbers for result in results])


def _usage(results: Sequence[Result]) -> UsageInfo:
    return UsageInfo.of(sum(len(result.ids) for result in results))


def _classes(
    index: int, result: Result, answers: SequenceClassification, request: ClassificationRequest
) -> ClassificationData:
    function = answers.labels.function
    if request.use_activation is not None:
        function = function if request.use_activation else "none"
    scores = apply_function(function, result.numbers)
    names = answers.labels.names
    places = range(len(names))
    if request.top_k is not None:
        # The names say which they are.
        places = best(scores, request.top_k).tolist()
    return ClassificationData(
        index=index,
        label=names[int(scores.argmax())],
        probs=scores[list(places)],
        num_classes=len(names),
        labels=[names[place] for place in places],
    )


def _strategy(wanted: str | None) -> str | None:
    if wanted is not None and wanted not in STRATEGIES:
        raise invalid_request(
            f"'aggregation_strategy': expected one of {listing(STRATEGIES)}, "
            f"got {shortened(repr(wanted))}",
            "aggregation_strategy",
        )
    return wanted


def _need_texts(inputs: Sequence[Any]) -> None:
    if not all(isinstance(text, str) for text in inputs):
        raise invalid_request(
            "'input': entities are found in texts, got numbers of tokens", "input"
        )
