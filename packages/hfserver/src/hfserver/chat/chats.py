"""OpenAI's chats: requests to what the engine takes, and its events to answers."""

import functools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from hfserver.chat.answer import AnswerSettings, ChatAnswer
from hfserver.chat.families import (
    Family,
    find_family,
    generic_family,
    own_family,
    read_family,
)
from hfserver.chat.formats import check_end, output_grammar, response_value
from hfserver.chat.grammar import AfterThoughts, Constraint, Grammar, GrammarCompiler
from hfserver.chat.options import ChatOptions
from hfserver.chat.parsing import AnswerReader, ignored_tokens, prefix_of
from hfserver.chat.template import ChatInput, ChatTemplate
from hfserver.chat.tools import ToolUse, calls_grammar, read_tool_use
from hfserver.generation.defaults import SamplingDefaults
from hfserver.generation.interface import (
    ContextLengthExceeded,
    Events,
    GenerationEngine,
    GenerationRequest,
    SamplingParams,
)
from hfserver.generation.params import sampling_params
from hfserver.generation.text import TextCodec
from kserve.errors import ModelLoadError
from kserve.executor import run_in_new_thread
from kserve.protocol.rest.openai.errors import OpenAIError, invalid_request
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    TokenizeRequest,
)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a request comes to.

    Attributes:
        prompt_ids: Its prompt.
        params: How the answers' tokens are chosen.
        settings: How answers are made of them.
    """

    prompt_ids: list[int]
    params: SamplingParams
    settings: AnswerSettings


class Chats:
    """Answers requests for chats with an engine.

    Args:
        engine: Generates.
        codec: The tokenizer, as generation knows it.
        tokenizer: Of transformers.
        defaults: What holds where a request does not say.
        compiler: Makes the compiler of grammars; called on a thread.
        options: What the command line says.

    Raises:
        ModelLoadError: A file that the command line names cannot be read.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        codec: TextCodec,
        tokenizer: Any,
        defaults: SamplingDefaults,
        compiler: Callable[[], GrammarCompiler],
        options: ChatOptions,
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._defaults = defaults
        self._compiler = compiler
        self.template = ChatTemplate(
            tokenizer,
            template=_read_template(options.chat_template),
            allow_control_tokens=options.allow_control_tokens,
            allow_request_template=options.trust_request_chat_template,
        )
        self._added_ids: dict[str, int] = tokenizer.get_added_vocab()
        self._special_tokens = list(tokenizer.all_special_tokens)
        self._family = _find_family(tokenizer, options, self.template.text, self._added_ids)
        self._generic = generic_family(self.template.text, self._added_ids)

    async def create(
        self, request: ChatCompletionRequest
    ) -> ChatCompletion | AsyncIterator[ChatCompletionChunk]:
        """Answer a request: at once, or in chunks.

        Raises:
            OpenAIError, InvalidInput: The request asks for what cannot be had.
            TooManyRequests: Too many requests wait.
        """
        # A template and a grammar may take long.
        prepared = await run_in_new_thread(self._prepare, request)
        events = self._submit(request, prepared)
        answer = ChatAnswer(request, prepared.prompt_ids, prepared.settings)
        if request.stream:
            return answer.stream(events)
        async for event in events:
            answer.take(event)
        return answer.whole()

    def encode(self, request: TokenizeRequest) -> list[int]:
        """Give the prompt that a chat becomes; blocks.

        Raises:
            OpenAIError: The template cannot render it.
        """
        chat = ChatInput(
            messages=request.messages or (),
            tools=request.tools or (),
            chat_template=request.chat_template,
            variables=request.chat_template_kwargs or {},
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            add_special_tokens=bool(request.add_special_tokens),
        )
        return self.template.encode(chat)

    def _prepare(self, request: ChatCompletionRequest) -> _Prepared:
        use = read_tool_use(
            request.tools, request.tool_choice, is_parallel=request.parallel_tool_calls
        )
        ids = self._cut(request, self.template.encode(chat_input(request, use)))
        family = self._family
        if family.call is None and use.callable and (use.is_required or _wants_form(request)):
            # Under a grammar calls are JSON, which not all families have: then as most others do.
            family = self._generic
        reader = self._reader(family, use, ids)
        constraint = self._constraint(request, use, family, reader)
        top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        params = sampling_params(
            request,
            self._codec,
            self._defaults,
            max_tokens=request.token_limit,
            logprobs=top_logprobs,
            skip_special_tokens=False if reader.reads_tags else None,
            constraint=constraint,
        )
        settings = AnswerSettings(
            reader=reader,
            clean=(
                ignored_tokens(family, reader.template, self._special_tokens)
                if request.skip_special_tokens
                else str
            ),
            token_name=self._codec.name,
            id_length=self._family.id_length,
            has_reasoning=family.reasoning is not None,
            beginning=_beginning(request),
        )
        return _Prepared(ids, params, settings)

    def _cut(self, request: ChatCompletionRequest, ids: list[int]) -> list[int]:
        n_kept = request.truncate_prompt_tokens
        if n_kept is None:
            return ids
        if n_kept < 0:
            n_kept = max(1, self._engine.max_model_len - (request.token_limit or 1))
        return ids[max(0, len(ids) - n_kept) :]

    def _reader(self, family: Family, use: ToolUse, prompt_ids: list[int]) -> AnswerReader:
        template = family.fields(tools=bool(use.callable))
        if template is None:
            return AnswerReader()
        prefix = prefix_of(template, prompt_ids, self._decode)
        return AnswerReader(template, prefix, use.callable, use.max_calls)

    def _constraint(
        self, request: ChatCompletionRequest, use: ToolUse, family: Family, reader: AnswerReader
    ) -> Callable[[], Constraint] | None:
        """Give what makes the constraint of an answer; None where there is none."""
        grammar = self._grammar(request, use, family)
        if grammar is None:
            return None
        check_end(request)
        thoughts = family.reasoning or {}
        opening, closing = thoughts.get("open"), thoughts.get("close")
        if not isinstance(closing, str):
            return grammar.constraint
        opening_id = None if reader.has_thought else self._added_ids.get(str(opening))

        def make() -> Constraint:
            return AfterThoughts(
                grammar.constraint(),
                decode=self._decode,
                closing=closing,
                opening_id=opening_id,
                eos_ids=self._compiler().eos_ids,
                is_thinking=reader.is_thinking,
            )

        return make

    def _grammar(
        self, request: ChatCompletionRequest, use: ToolUse, family: Family
    ) -> Grammar | None:
        wants_form = _wants_form(request)
        if use.is_required and wants_form:
            raise _two_forms(request)
        if use.is_required:
            return self._calls(use, family)
        answer = output_grammar(request, self._compiler()) if wants_form else None
        if answer is None or not use.callable:
            return answer
        if request.structured_outputs is not None:
            raise _two_forms(request)
        return self._calls(use, family, response_value(request))

    def _calls(self, use: ToolUse, family: Family, answer: str | None = None) -> Grammar:
        assert family.call is not None
        return calls_grammar(use, family.call, use.shown, self._compiler(), answer=answer)

    def _submit(self, request: ChatCompletionRequest, prepared: _Prepared) -> Events:
        try:
            return self._engine.submit(
                GenerationRequest(
                    prepared.prompt_ids,
                    prepared.params,
                    uuid4().hex,
                    cache_salt=request.cache_salt or "",
                )
            )
        except ContextLengthExceeded as exc:
            raise invalid_request(str(exc), "messages", "context_length_exceeded") from exc

    def _decode(self, token_ids: Any) -> str:
        return self._codec.decode(token_ids, skip_special_tokens=False)


def chat_input(request: ChatCompletionRequest, use: ToolUse) -> ChatInput:
    """Give what a request says of its prompt."""
    return ChatInput(
        messages=request.messages,
        tools=use.shown,
        documents=request.documents,
        chat_template=request.chat_template,
        variables=_variables(request),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        add_special_tokens=request.add_special_tokens,
    )


def lazy_compiler(make: Callable[[], GrammarCompiler]) -> Callable[[], GrammarCompiler]:
    """Give what makes a compiler when it is first wanted: for a large vocabulary that takes 1 s."""
    return functools.cache(make)


def _variables(request: ChatCompletionRequest) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    if request.reasoning_effort is not None:
        variables["reasoning_effort"] = request.reasoning_effort
        if request.reasoning_effort == "none":
            # What templates of models that may think or not call it.
            variables["enable_thinking"] = False
    return {**variables, **(request.chat_template_kwargs or {})}


def _beginning(request: ChatCompletionRequest) -> str:
    if not (request.echo and request.continue_final_message):
        return ""
    content = request.messages[-1].get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or ())


def _wants_form(request: ChatCompletionRequest) -> bool:
    kind = (request.response_format or {}).get("type", "text")
    return request.structured_outputs is not None or kind != "text"


def _two_forms(request: ChatCompletionRequest) -> OpenAIError:
    param = "response_format" if request.structured_outputs is None else "structured_outputs"
    return invalid_request(
        f"'{param}': expected 'tool_choice' to be none, or auto with 'response_format': an answer "
        "cannot be calls and of another form",
        param,
    )


def _read_template(template: str | None) -> str | None:
    """Give the template that `--chat_template` names, or is.

    Raises:
        ModelLoadError: It cannot be read.
    """
    if template is None or "{{" in template or "{%" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelLoadError(f"--chat_template {template}: {exc}") from exc


def _find_family(
    tokenizer: Any, options: ChatOptions, template: str, added_tokens: Mapping[str, int]
) -> Family:
    if options.response_template is not None:
        return read_family(options.response_template)
    own = getattr(tokenizer, "response_template", None)
    if own is not None:
        return own_family(own, "the tokenizer's response_template")
    return find_family(template, added_tokens)
