"""OpenAI's completions: requests to what the engine takes, and its events to responses."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import uuid4

from hfserver.chat.formats import output_grammar
from hfserver.chat.grammar import Grammar, GrammarCompiler
from hfserver.generation.defaults import SamplingDefaults
from hfserver.generation.interface import (
    ContextLengthExceeded,
    Event,
    Events,
    FinishReason,
    GenerationEngine,
    GenerationRequest,
    PromptEvent,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from hfserver.generation.params import sampling_params
from hfserver.generation.text import TextCodec
from kserve.executor import run_in_new_thread
from kserve.protocol.rest.openai.errors import invalid_request
from kserve.protocol.rest.openai.types import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogProbs,
    CompletionRequest,
    UsageInfo,
)

# Characters beyond which tokenizing takes milliseconds, and is done on a thread.
_MAX_TEXT_ON_LOOP: Final = 8192


@dataclass(slots=True)
class _Prompt:
    """One prompt of a request.

    Attributes:
        ids: Its tokens.
        text: Itself, for `echo`; empty without it.
        logprobs: Those of its tokens, for `echo`; None without.
        n_cached: Tokens of it that were known.
    """

    ids: list[int]
    text: str = ""
    logprobs: Sequence[TokenLogprob | None] | None = None
    n_cached: int = 0


class Completions:
    """Answers requests for completions with an engine.

    Args:
        engine: Generates.
        codec: The tokenizer.
        defaults: What holds where a request does not say.
        compiler: Makes the compiler of grammars; called on a thread.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        codec: TextCodec,
        defaults: SamplingDefaults,
        compiler: Callable[[], GrammarCompiler],
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._defaults = defaults
        self._compiler = compiler

    async def create(
        self, request: CompletionRequest
    ) -> Completion | AsyncIterator[CompletionChunk]:
        """Answer a request: at once, or in chunks.

        Raises:
            OpenAIError, InvalidInput: The request asks for what cannot be had.
            TooManyRequests: Too many requests wait.
        """
        prompts = [await self._read(request, prompt) for prompt in request.prompts]
        params = await self._params(request)
        streams = self._submit(request, prompts, params)
        answer = _Answer(request, prompts, self._codec)
        events = _merged(streams)
        if request.stream:
            return answer.stream(events)
        async for index, event in events:
            answer.take(index, event)
        return answer.whole()

    async def _read(self, request: CompletionRequest, prompt: str | list[int]) -> _Prompt:
        if isinstance(prompt, str):
            text = prompt
            if len(prompt) > _MAX_TEXT_ON_LOOP:
                ids = await run_in_new_thread(
                    self._codec.encode, prompt, request.add_special_tokens
                )
            else:
                ids = self._codec.encode(prompt, request.add_special_tokens)
        else:
            self._codec.check(prompt, "prompt")
            ids, text = prompt, ""
        n_kept = request.truncate_prompt_tokens
        if n_kept is not None:
            if n_kept < 0:
                n_kept = max(1, self._engine.max_model_len - (request.max_tokens or 1))
            text = text if len(ids) <= n_kept else ""
            ids = ids[len(ids) - n_kept :] if len(ids) > n_kept else ids
        if request.echo:
            text = text or self._codec.decode(ids, request.skip_special_tokens)
        return _Prompt(ids, text if request.echo else "")

    async def _params(self, request: CompletionRequest) -> SamplingParams:
        # Compiling may take long.
        wants_form = request.response_format or request.structured_outputs
        grammar = await run_in_new_thread(self._grammar, request) if wants_form else None
        return sampling_params(
            request,
            self._codec,
            self._defaults,
            max_tokens=request.max_tokens,
            logprobs=request.logprobs,
            prompt_logprobs=request.logprobs if request.echo else None,
            constraint=None if grammar is None else grammar.constraint,
        )

    def _grammar(self, request: CompletionRequest) -> Grammar | None:
        return output_grammar(request, self._compiler())

    def _submit(
        self, request: CompletionRequest, prompts: Sequence[_Prompt], params: SamplingParams
    ) -> list[Events]:
        # The client's own id may be that of other requests too.
        name = uuid4().hex
        streams: list[Events] = []
        try:
            for index, prompt in enumerate(prompts):
                one = GenerationRequest(
                    prompt.ids, params, f"{name}-{index}", cache_salt=request.cache_salt or ""
                )
                streams.append(self._engine.submit(one))
        except BaseException as exc:
            for index in range(len(streams)):
                self._engine.cancel(f"{name}-{index}")
            if isinstance(exc, ContextLengthExceeded):
                raise invalid_request(str(exc), "prompt", "context_length_exceeded") from exc
            raise
        return streams


@dataclass(slots=True)
class _Choice:
    """One continuation as far as it is known."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    # Characters of the names of the tokens so far, for `text_offset`.
    n_characters: int = 0


class _Answer:
    """The response to one request, put together of events."""

    def __init__(
        self, request: CompletionRequest, prompts: Sequence[_Prompt], codec: TextCodec
    ) -> None:
        self._request = request
        self._prompts = prompts
        self._codec = codec
        self._choices = [_Choice() for _ in range(len(prompts) * request.n)]

    def take(self, prompt_index: int, event: Event) -> None:
        """Take note of an event of one of the prompts."""
        prompt = self._prompts[prompt_index]
        if isinstance(event, PromptEvent):
            prompt.n_cached, prompt.logprobs = event.n_cached_tokens, event.logprobs
            return
        choice = self._choice(prompt_index, event)
        choice.texts.append(event.text)
        choice.token_ids.extend(event.token_ids)
        choice.logprobs.extend(event.logprobs or ())
        if event.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = event.finish_reason, event.stop_reason

    def whole(self) -> Completion:
        """Give the response that has everything."""
        choices = []
        for index, choice in enumerate(self._choices):
            prompt = self._prompts[index // self._request.n]
            logprobs = [*(prompt.logprobs or ()), *choice.logprobs]
            choices.append(
                CompletionChoice(
                    index=index,
                    text=prompt.text + "".join(choice.texts),
                    logprobs=self._logprobs(choice, logprobs, prompt),
                    finish_reason=_finish(choice.finish_reason),
                    stop_reason=choice.stop_reason,
                    token_ids=choice.token_ids if self._request.return_token_ids else None,
                    prompt_token_ids=prompt.ids if self._request.return_token_ids else None,
                )
            )
        return Completion(model=self._request.model, choices=choices, usage=self._usage())

    async def stream(
        self, events: AsyncGenerator[tuple[int, Event]]
    ) -> AsyncIterator[CompletionChunk]:
        """Give the response in chunks; closing it closes the events."""
        options = self._request.stream_options
        wants_usage = options is not None and options.include_usage
        has_usage_so_far = options is not None and options.continuous_usage_stats
        head = CompletionChunk(model=self._request.model, choices=[])
        try:
            async for prompt_index, event in events:
                self.take(prompt_index, event)
                if isinstance(event, PromptEvent):
                    continue
                piece = self._piece(prompt_index, event)
                if piece is None:
                    continue
                chunk = _chunk_like(head, [piece])
                if wants_usage:
                    chunk.usage = self._usage() if has_usage_so_far else None
                yield chunk
        finally:
            await events.aclose()
        if wants_usage:
            chunk = _chunk_like(head, [])
            chunk.usage = self._usage()
            yield chunk

    def _piece(self, prompt_index: int, event: TokenEvent) -> CompletionChunkChoice | None:
        """Give what an event adds to its choice; None where that is nothing."""
        prompt = self._prompts[prompt_index]
        choice = self._choice(prompt_index, event)
        is_first = len(choice.texts) == 1
        text = (prompt.text if is_first else "") + event.text
        logprobs: list[TokenLogprob | None] = [*(event.logprobs or ())]
        if is_first:
            logprobs = [*(prompt.logprobs or ()), *logprobs]
        wants_ids = self._request.return_token_ids
        if not (text or logprobs or event.finish_reason or wants_ids):
            return None
        return CompletionChunkChoice(
            index=prompt_index * self._request.n + event.index,
            text=text,
            logprobs=self._logprobs(choice, logprobs, prompt),
            finish_reason=_finish(event.finish_reason),
            stop_reason=event.stop_reason,
            token_ids=list(event.token_ids) if wants_ids else None,
            prompt_token_ids=prompt.ids if wants_ids and is_first else None,
        )

    def _choice(self, prompt_index: int, event: TokenEvent) -> _Choice:
        return self._choices[prompt_index * self._request.n + event.index]

    def _logprobs(
        self, choice: _Choice, logprobs: Sequence[TokenLogprob | None], prompt: _Prompt
    ) -> CompletionLogProbs | None:
        if self._request.logprobs is None:
            return None
        result = CompletionLogProbs()
        for one in logprobs:
            # Nothing says how likely the first token of a prompt is.
            token_id = prompt.ids[0] if one is None else one.token_id
            name = self._codec.name(token_id)
            result.tokens.append(name)
            result.token_logprobs.append(None if one is None else one.logprob)
            result.top_logprobs.append(None if one is None else self._top(one, name))
            result.text_offset.append(choice.n_characters)
            choice.n_characters += len(name)
        return result

    def _top(self, one: TokenLogprob, name: str) -> dict[str, float]:
        top = {self._codec.name(token_id): logprob for token_id, logprob in one.top}
        # The chosen one is always among them. Source: OpenAI's reference of `logprobs`.
        top.setdefault(name, one.logprob)
        return top

    def _usage(self) -> UsageInfo:
        return UsageInfo.of(
            sum(len(prompt.ids) for prompt in self._prompts),
            sum(len(choice.token_ids) for choice in self._choices),
            sum(prompt.n_cached for prompt in self._prompts),
        )


def _chunk_like(head: CompletionChunk, choices: list[CompletionChunkChoice]) -> CompletionChunk:
    return CompletionChunk(id=head.id, created=head.created, model=head.model, choices=choices)


def _finish(reason: FinishReason | None) -> Literal["stop", "length"] | None:
    # Nobody is left to read of a request that was cancelled.
    return None if reason == "cancelled" else reason


async def _merged(streams: Sequence[Events]) -> AsyncGenerator[tuple[int, Event]]:
    """Give the events of streams as they come, with the number of each one's stream."""
    if len(streams) == 1:
        try:
            async for event in streams[0]:
                yield 0, event
        finally:
            await streams[0].aclose()
        return
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()

    async def pump(index: int, stream: Events) -> None:
        try:
            async for event in stream:
                queue.put_nowait((index, event))
        except Exception as exc:
            queue.put_nowait(exc)
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(*pair)) for pair in enumerate(streams)]
    n_left = len(tasks)
    try:
        while n_left:
            item = await queue.get()
            if item is None:
                n_left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
