"""A model that answers chats by continuing the prompt that a template makes of them."""

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from kserve.executor import ModelThreads, is_async_callable, run_user_code
from kserve.protocol.rest.openai import sse
from kserve.protocol.rest.openai.openai_model import (
    ChatPrompt,
    Context,
    OpenAIGenerativeModel,
)
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
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogProbs,
    CompletionRequest,
    ErrorResponse,
    GenerationRequest,
)

__all__ = ["OpenAIChatAdapterModel"]

# Fields that mean the same in both requests.
_SHARED: Final = (
    *(name for name in GenerationRequest.__struct_fields__),
    *("response_format", "echo"),
)


class OpenAIChatAdapterModel(OpenAIGenerativeModel):
    """Answers a chat as a completion; a subclass implements that, and `apply_chat_template`.

    Tools reach the template and nothing else: what the model writes is the text of the answer.
    """

    def apply_chat_template(self, request: ChatCompletionRequest) -> ChatPrompt:
        """Make a prompt of the messages; may be async, and plain it runs on a thread.

        Raises:
            NotImplementedError: Always; a subclass overrides it.
        """
        raise NotImplementedError(f"model {self.name} does not implement apply_chat_template")

    async def create_chat_completion(
        self,
        request: ChatCompletionRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> ChatCompletion | ErrorResponse | AsyncIterator[ChatCompletionChunk | str]:
        """Answer in a chat.

        Raises:
            Exception: Whatever the template or the completion raises.
        """
        prompt = await self._prompt(request, context or {})
        completion_request = self.chat_completion_params_to_completion_params(
            request, prompt.prompt
        )
        result = await self.create_completion(completion_request, raw_request, context)
        if isinstance(result, ErrorResponse):
            return result
        if isinstance(result, Completion):
            return self.completion_to_chat_completion(result, prompt.response_role)
        return _chat_chunks(self, result, prompt.response_role)

    async def _prompt(self, request: ChatCompletionRequest, context: Context) -> ChatPrompt:
        threads: ModelThreads | None = context.get("threads")
        if threads is None or is_async_callable(self.apply_chat_template):
            prompt: ChatPrompt = await run_user_code(self.apply_chat_template, request)
            return prompt
        return await threads.run(self.apply_chat_template, request)

    @classmethod
    def chat_completion_params_to_completion_params(
        cls, request: ChatCompletionRequest, prompt: str | list[int]
    ) -> CompletionRequest:
        """Give the request for the continuation of a chat's prompt."""
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        fields = {name: getattr(request, name) for name in _SHARED}
        return CompletionRequest(
            **fields,
            prompt=prompt,
            max_tokens=request.token_limit,
            logprobs=logprobs,
            # The template has written them.
            add_special_tokens=request.add_special_tokens,
        )

    @classmethod
    def completion_to_chat_completion(cls, completion: Completion, role: str) -> ChatCompletion:
        """Give the answer in a chat for a completion."""
        return ChatCompletion(
            id=completion.id,
            choices=[cls.to_chat_completion_choice(choice, role) for choice in completion.choices],
            created=completion.created,
            model=completion.model,
            system_fingerprint=completion.system_fingerprint,
            usage=completion.usage,
        )

    @classmethod
    def completion_to_chat_completion_chunk(
        cls, completion: CompletionChunk, role: str | None
    ) -> ChatCompletionChunk:
        """Give the chunk of an answer for one of a completion; the role is of the first alone."""
        return ChatCompletionChunk(
            id=completion.id,
            choices=[
                cls.to_chat_completion_chunk_choice(choice, role) for choice in completion.choices
            ],
            created=completion.created,
            model=completion.model,
            system_fingerprint=completion.system_fingerprint,
            usage=completion.usage,
        )

    @classmethod
    def to_chat_completion_choice(
        cls, completion_choice: CompletionChoice, role: str
    ) -> ChatCompletionChoice:
        """Give one of the answers for a continuation."""
        return ChatCompletionChoice(
            index=completion_choice.index,
            finish_reason=completion_choice.finish_reason,
            stop_reason=completion_choice.stop_reason,
            logprobs=_chat_logprobs(cls, completion_choice.logprobs),
            message=ChatMessage(content=completion_choice.text, role=role),
            token_ids=completion_choice.token_ids,
        )

    @classmethod
    def to_chat_completion_chunk_choice(
        cls, completion_choice: CompletionChunkChoice, role: str | None
    ) -> ChunkChoice:
        """Give the next piece of an answer for that of a continuation."""
        return ChunkChoice(
            index=completion_choice.index,
            finish_reason=completion_choice.finish_reason,
            stop_reason=completion_choice.stop_reason,
            logprobs=_chat_logprobs(cls, completion_choice.logprobs),
            delta=ChoiceDelta(content=completion_choice.text, role=role),
            token_ids=completion_choice.token_ids,
        )

    @classmethod
    def to_choice_logprobs(cls, logprobs: CompletionLogProbs) -> ChatCompletionLogProbs:
        """Give the log probabilities of an answer's tokens for those of a continuation."""
        tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
        content = [
            ChatCompletionLogProbsContent(
                token=token,
                # The first token of a prompt has none.
                logprob=-9999.0 if logprob is None else logprob,
                bytes=list(token.encode()),
                top_logprobs=[
                    ChatCompletionLogProb(token=text, logprob=value, bytes=list(text.encode()))
                    for text, value in (top or {}).items()
                ],
            )
            for token, logprob, top in zip(
                logprobs.tokens, logprobs.token_logprobs, tops, strict=True
            )
        ]
        return ChatCompletionLogProbs(content=content)


def _chat_logprobs(
    model: type[OpenAIChatAdapterModel], logprobs: CompletionLogProbs | None
) -> ChatCompletionLogProbs | None:
    return None if logprobs is None else model.to_choice_logprobs(logprobs)


async def _chat_chunks(
    model: OpenAIChatAdapterModel, chunks: AsyncIterator[CompletionChunk | str], role: str
) -> AsyncIterator[ChatCompletionChunk | str]:
    """Give the chunks of an answer for those of a completion."""
    begun: set[int] = set()
    try:
        async for chunk in chunks:
            for event in _events(chunk) if isinstance(chunk, str) else (chunk,):
                if isinstance(event, str):
                    yield event
                    continue
                answer = model.completion_to_chat_completion_chunk(event, role)
                for choice in answer.choices:
                    if choice.index in begun:
                        choice.delta.role = None
                begun.update(choice.index for choice in answer.choices)
                yield answer
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


def _events(text: str) -> list[CompletionChunk | str]:
    """Read the server-sent events of a text; what is no chunk, such as an error, stays a text."""
    events: list[CompletionChunk | str] = []
    for event in text.split("\n\n"):
        data = event.removeprefix("data:").strip()
        if not data or data == sse.DONE:
            continue
        try:
            events.append(CompletionChunk.model_validate_json(data))
        except msgspec.DecodeError:
            events.append(f"{event}\n\n")
    return events
