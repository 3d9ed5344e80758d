"""Answers in a chat, whole or in chunks, put together of what the engine says.

The chunks of an answer, joined, are the whole answer. Of each choice the role comes first, and the
reason of its end last; a call comes as its name, and then its arguments.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hfserver.chat.calls import Call, call_id
from hfserver.chat.parsing import AnswerReader, Content, MessageParser, Part, PlainText, Reasoning
from hfserver.generation.interface import Event, Events, PromptEvent, TokenEvent, TokenLogprob
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChoice,
    ChatCompletionChunk,
    ChatCompletionLogProb,
    ChatCompletionLogProbs,
    ChatCompletionLogProbsContent,
    ChatCompletionRequest,
    ChatMessage,
    ChoiceDelta,
    ChunkChoice,
    CompletionTokensDetails,
    DeltaFunctionCall,
    DeltaToolCall,
    FunctionCall,
    ToolCall,
    UsageInfo,
)
from kserve.protocol.rest.openai.types.responses import FinishReason

_ROLE: Final = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """How the answers of a request are made.

    Attributes:
        reader: Parts a text.
        clean: Takes tokens out of a text that are no part of an answer.
        token_name: Gives the text of a token, for log probabilities.
        id_length: How long the ids of calls are; None for any length.
        has_reasoning: The model thinks: thoughts are counted.
        beginning: What an answer begins with, for `echo`.
    """

    reader: AnswerReader = AnswerReader()
    clean: Callable[[str], str] = str
    token_name: Callable[[int], str] = str
    id_length: int | None = None
    has_reasoning: bool = False
    beginning: str = ""


@dataclass(slots=True)
class _Choice:
    """One of the answers as far as it is known."""

    parser: MessageParser | PlainText
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[ChatCompletionLogProbsContent] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    n_reasoning_tokens: int = 0


class ChatAnswer:
    """The response to one request; for the event loop.

    Args:
        request: The request.
        prompt_ids: Its prompt.
        settings: How its answers are made.
    """

    def __init__(
        self, request: ChatCompletionRequest, prompt_ids: Sequence[int], settings: AnswerSettings
    ) -> None:
        self._request = request
        self._prompt_ids = list(prompt_ids)
        self._settings = settings
        self._choices = [_Choice(settings.reader.parser()) for _ in range(request.n)]
        self._n_cached = 0

    def take(self, event: Event) -> list[ChunkChoice]:
        """Take note of an event, and give what it adds to the choices."""
        if isinstance(event, PromptEvent):
            self._n_cached = event.n_cached_tokens
            return [piece for index in range(self._request.n) for piece in self._begin(index)]
        choice = self._choices[event.index]
        choice.token_ids.extend(event.token_ids)
        parts = choice.parser.feed(self._settings.clean(event.text))
        if event.finish_reason is not None:
            parts += choice.parser.finish(is_cut_off=event.finish_reason == "length")
        if choice.parser.is_reasoning or any(isinstance(part, Reasoning) for part in parts):
            choice.n_reasoning_tokens += len(event.token_ids)
        deltas = [delta for part in parts for delta in self._deltas(choice, part)]
        logprobs = self._logprobs(event)
        choice.logprobs.extend(logprobs)
        pieces = [ChunkChoice(index=event.index, delta=delta) for delta in deltas]
        if not pieces and (logprobs or (event.token_ids and self._request.return_token_ids)):
            pieces = [ChunkChoice(index=event.index, delta=ChoiceDelta())]
        if pieces:
            pieces[0].logprobs = ChatCompletionLogProbs(content=logprobs) if logprobs else None
            pieces[0].token_ids = self._shown(event.token_ids)
        if event.finish_reason is not None:
            pieces.append(self._end(choice, event))
        return pieces

    def whole(self) -> ChatCompletion:
        """Give the response that has everything."""
        choices = [
            ChatCompletionChoice(
                index=index,
                message=_message(choice),
                logprobs=(
                    ChatCompletionLogProbs(content=choice.logprobs)
                    if self._request.logprobs
                    else None
                ),
                finish_reason=choice.finish_reason,
                stop_reason=choice.stop_reason,
                token_ids=self._shown(choice.token_ids),
            )
            for index, choice in enumerate(self._choices)
        ]
        return ChatCompletion(
            model=self._request.model,
            choices=choices,
            usage=self._usage(),
            prompt_token_ids=self._shown(self._prompt_ids),
        )

    async def stream(self, events: Events) -> AsyncIterator[ChatCompletionChunk]:
        """Give the response in chunks, of one choice each; closing it closes the events."""
        options = self._request.stream_options
        wants_usage = options is not None and options.include_usage
        has_usage_so_far = options is not None and options.continuous_usage_stats
        head = ChatCompletionChunk(model=self._request.model, choices=[])
        is_first = True
        try:
            async for event in events:
                for piece in self.take(event):
                    chunk = _chunk_like(head, [piece])
                    if wants_usage:
                        chunk.usage = self._usage() if has_usage_so_far else None
                    if is_first:
                        chunk.prompt_token_ids = self._shown(self._prompt_ids)
                        is_first = False
                    yield chunk
        finally:
            await events.aclose()
        if wants_usage:
            chunk = _chunk_like(head, [])
            chunk.usage = self._usage()
            yield chunk

    def _begin(self, index: int) -> list[ChunkChoice]:
        pieces = [ChunkChoice(index=index, delta=ChoiceDelta(role=_ROLE, content=""))]
        beginning = self._settings.beginning
        if beginning:
            self._choices[index].content.append(beginning)
            pieces.append(ChunkChoice(index=index, delta=ChoiceDelta(content=beginning)))
        return pieces

    def _deltas(self, choice: _Choice, part: Part) -> list[ChoiceDelta]:
        """Take note of a part, and give what the client gets of it."""
        if isinstance(part, Content):
            choice.content.append(part.text)
            return [ChoiceDelta(content=part.text)]
        if isinstance(part, Call):
            return self._call_deltas(choice, part)
        if not self._request.include_reasoning:
            return []
        choice.reasoning.append(part.text)
        return [ChoiceDelta(reasoning_content=part.text)]

    def _call_deltas(self, choice: _Choice, call: Call) -> list[ChoiceDelta]:
        index = len(choice.calls)
        name = FunctionCall(name=call.name, arguments=call.arguments)
        made = ToolCall(id=call_id(self._settings.id_length), function=name)
        choice.calls.append(made)
        head = DeltaToolCall(
            index=index,
            id=made.id,
            type=made.type,
            function=DeltaFunctionCall(name=call.name, arguments=""),
        )
        rest = DeltaToolCall(index=index, function=DeltaFunctionCall(arguments=call.arguments))
        return [ChoiceDelta(tool_calls=[head]), ChoiceDelta(tool_calls=[rest])]

    def _end(self, choice: _Choice, event: TokenEvent) -> ChunkChoice:
        # Nobody is left to read of a request that was cancelled.
        reason: FinishReason | None = None
        if event.finish_reason in ("stop", "length"):
            reason = (
                "tool_calls"
                if choice.calls and event.finish_reason == "stop"
                else (event.finish_reason)
            )
        choice.finish_reason, choice.stop_reason = reason, event.stop_reason
        return ChunkChoice(
            index=event.index,
            delta=ChoiceDelta(),
            finish_reason=reason,
            stop_reason=event.stop_reason,
        )

    def _logprobs(self, event: TokenEvent) -> list[ChatCompletionLogProbsContent]:
        if not self._request.logprobs:
            return []
        return [self._logprob(each) for each in event.logprobs or ()]

    def _logprob(self, logprob: TokenLogprob) -> ChatCompletionLogProbsContent:
        name = self._settings.token_name(logprob.token_id)
        tops = [(self._settings.token_name(token_id), value) for token_id, value in logprob.top]
        return ChatCompletionLogProbsContent(
            token=name,
            logprob=logprob.logprob,
            bytes=list(name.encode()),
            top_logprobs=[
                ChatCompletionLogProb(token=text, logprob=value, bytes=list(text.encode()))
                for text, value in tops
            ],
        )

    def _shown(self, token_ids: Sequence[int]) -> list[int] | None:
        return list(token_ids) if self._request.return_token_ids else None

    def _usage(self) -> UsageInfo:
        usage = UsageInfo.of(
            len(self._prompt_ids),
            sum(len(choice.token_ids) for choice in self._choices),
            self._n_cached,
        )
        if self._settings.has_reasoning:
            n_tokens = sum(choice.n_reasoning_tokens for choice in self._choices)
            usage.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=n_tokens)
        return usage


def _message(choice: _Choice) -> ChatMessage:
    content, reasoning = "".join(choice.content), "".join(choice.reasoning)
    return ChatMessage(
        role=_ROLE,
        content=None if not content and choice.calls else content,
        reasoning_content=reasoning or None,
        tool_calls=choice.calls or None,
    )


def _chunk_like(head: ChatCompletionChunk, choices: list[ChunkChoice]) -> ChatCompletionChunk:
    return ChatCompletionChunk(id=head.id, created=head.created, model=head.model, choices=choices)
