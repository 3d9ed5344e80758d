"""Texts in, texts out, for V1, V2, gRPC and `generate`: each request is one for completions."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Final

import numpy as np
import orjson

from hfserver.generation.completions import Completions
from hfserver.inputs import read_single_v1, read_single_v2
from kserve.errors import InvalidInput
from kserve.listing import listing
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
from kserve.protocol.rest.openai.errors import OpenAIError
from kserve.protocol.rest.openai.reading import read_request
from kserve.protocol.rest.openai.types import (
    Completion,
    CompletionChunk,
    CompletionRequest,
    StreamOptions,
    UsageInfo,
)
from kserve.signature import Signature, TensorSpec
from kserve.stream import may_stream_var
from kserve.text_generation import GeneratedText, GenerateRequest

# The input may have any name; the output has the one that it has of KServe's server.
SIGNATURE: Final = Signature(
    (TensorSpec("text", "BYTES", (-1,)),), (TensorSpec("output-0", "BYTES", (-1,)),)
)
# In a stream beside the texts: why each ended, empty while it has not.
_FINISH_REASON: Final = "finish_reason"

# Of the fields of completions those that are not a matter of OpenAI's wire.
PARAMETERS: Final = (
    *("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    *("stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
    *("add_special_tokens", "truncate_prompt_tokens", "echo"),
    *("response_format", "structured_outputs", "cache_salt"),
)

# What Triton's clients send beside them.
_OF_THE_PROTOCOL: Final = frozenset(
    {
        *("binary_data_output", "priority", "timeout"),
        *("sequence_id", "sequence_start", "sequence_end"),
    }
)

# A text there is a text, whatever it looks like.
_TEXTS: Final = frozenset({"cache_salt"})


class PlainTexts:
    """Continues texts as completions do.

    All texts of a request are submitted together. Where it sets no `max_tokens`, that of 16 which
    OpenAI has does not hold.

    Args:
        name: The model's name.
        completions: Answers.
    """

    def __init__(self, name: str, completions: Completions) -> None:
        self._name = name
        self._completions = completions

    async def answer_v1(self, payload: Any) -> dict[str, Any]:
        """Answer a V1 payload with a prediction for each text, which is a text.

        Raises:
            InvalidInput: The payload is none, or a parameter is unknown or wrong.
            TooManyRequests: Too many requests wait.
        """
        texts, parameters = read_single_v1(payload)
        return {"predictions": await self._whole(texts, parameters)}

    async def answer_v2(
        self, request: InferRequest, version: str | None
    ) -> InferResponse | AsyncGenerator[InferResponse]:
        """Answer a V2 request with a text for each text, or in pieces where it may stream.

        The pieces have the shape of the whole; joined row by row they are it.

        Raises:
            InvalidInput, TooManyRequests: As `answer_v1`.
        """
        texts = read_single_v2(request)
        parameters = request.parameters or {}
        if may_stream_var.get() and texts:
            completion = self._request(texts, parameters, stream=True)
            return self._v2_pieces(request, version, len(texts), completion)
        return self._respond(request, version, await self._whole(texts, parameters))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GeneratedText]:
        """Continue a text in pieces; the last one has the details, and no text.

        Raises:
            InvalidInput, TooManyRequests: As `answer_v1`.
        """
        completion = self._request([request.text_input], request.parameters, stream=True)
        details: dict[str, Any] = {}
        async with aclosing(self._chunks(completion)) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    if choice.text:
                        yield GeneratedText(text_output=choice.text)
                    details |= _end(choice.finish_reason, choice.stop_reason)
                if isinstance(chunk.usage, UsageInfo):
                    details["prompt_tokens"] = chunk.usage.prompt_tokens
                    details["completion_tokens"] = chunk.usage.completion_tokens
        yield GeneratedText(text_output="", details=details, is_last=True)

    async def _v2_pieces(
        self,
        request: InferRequest,
        version: str | None,
        n_texts: int,
        completion: CompletionRequest,
    ) -> AsyncGenerator[InferResponse]:
        async with aclosing(self._chunks(completion)) as chunks:
            async for chunk in chunks:
                if not chunk.choices:
                    continue
                texts, reasons = [""] * n_texts, [""] * n_texts
                for choice in chunk.choices:
                    texts[choice.index] = choice.text
                    reasons[choice.index] = choice.finish_reason or ""
                yield self._respond(request, version, texts, reasons)

    async def _whole(self, texts: Sequence[str], parameters: Mapping[str, Any]) -> list[str]:
        if not texts:
            _check_names(parameters)
            return []
        completion = self._request(texts, parameters, stream=False)
        with _as_invalid_input():
            answer = await self._completions.create(completion)
        assert isinstance(answer, Completion)
        return [choice.text for choice in answer.choices]

    async def _chunks(self, completion: CompletionRequest) -> AsyncGenerator[CompletionChunk]:
        with _as_invalid_input():
            answer: Any = await self._completions.create(completion)
            async with aclosing(answer) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _request(
        self, texts: Sequence[str], parameters: Mapping[str, Any], *, stream: bool
    ) -> CompletionRequest:
        _check_names(parameters)
        given = {name: _value(name, parameters[name]) for name in PARAMETERS if name in parameters}
        # As completions have it: what is null has not been sent.
        document = {name: value for name, value in given.items() if value is not None}
        with _as_invalid_input():
            request = read_request(
                "completions", {**document, "prompt": list(texts)}, self._name, ""
            )
        assert isinstance(request, CompletionRequest)
        if "max_tokens" not in document:
            request.max_tokens = None
        if stream:
            request.stream, request.stream_options = True, StreamOptions(include_usage=True)
        return request

    def _respond(
        self,
        request: InferRequest,
        version: str | None,
        texts: Sequence[str],
        reasons: Sequence[str] | None = None,
    ) -> InferResponse:
        outputs = [_output(SIGNATURE.outputs[0].name, texts)]
        if reasons is not None:
            outputs.append(_output(_FINISH_REASON, reasons))
        return InferResponse(
            response_id=request.id,
            model_name=self._name,
            model_version=version,
            infer_outputs=outputs,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )


def _end(finish_reason: str | None, stop_reason: int | str | None) -> dict[str, Any]:
    """Give the details of an end; none where it is none."""
    if finish_reason is None:
        return {}
    stop = {} if stop_reason is None else {"stop_reason": stop_reason}
    return {"finish_reason": finish_reason, **stop}


def _output(name: str, texts: Sequence[str]) -> InferOutput:
    encoded = np.array([text.encode() for text in texts], np.object_)
    return InferOutput.from_array(name, [len(texts)], "BYTES", encoded)


def _check_names(parameters: Mapping[str, Any]) -> None:
    unknown = sorted(set(parameters) - set(PARAMETERS) - _OF_THE_PROTOCOL)
    if unknown:
        raise InvalidInput(
            f"parameters: expected some of {', '.join(PARAMETERS)}; got {listing(unknown)}"
        )


def _value(name: str, value: Any) -> Any:
    """Read what V2 and gRPC have no other form for than a text: lists, objects, and what else."""
    if not isinstance(value, str) or name in _TEXTS:
        return value
    try:
        read = orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
    # Where a text may end is a text, or several.
    return value if name == "stop" and not isinstance(read, list) else read


@contextmanager
def _as_invalid_input() -> Iterator[None]:
    """Raise what completions refuse as these wires know it."""
    try:
        yield
    except OpenAIError as exc:
        raise InvalidInput(str(exc)) from exc
