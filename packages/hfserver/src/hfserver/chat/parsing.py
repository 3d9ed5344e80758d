"""Answers out of the text that a model writes: content, thoughts and calls, as they come.

Wherever the text is cut into pieces, what comes out is the same in the end. A call is given when it
is complete: one that is cut off, or that is none, is content.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import load_response_template

from hfserver.chat.calls import Call, read_calls
from hfserver.chat.families import CONTENT_FIELD, REASONING_FIELDS, TOOL_FIELD, Family

# What response templates raise over a text that does not fit them.
_MISFITS: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError)

# Tokens at the end of a prompt in which the beginning of the answer is looked for.
_TAIL_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class Content:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model thinks before it."""

    text: str


Part = Content | Reasoning | Call


class PlainText:
    """Takes all text for the answer; see `MessageParser`."""

    is_reasoning: Final = False

    def feed(self, text: str) -> list[Part]:
        """Give what a piece of text is."""
        return [Content(text)] if text else []

    def finish(self, *, is_cut_off: bool) -> list[Part]:
        """Give what is left: nothing."""
        return []


class MessageParser:
    """Reads one answer.

    Args:
        template: transformers' response template.
        prefix: What the prompt has of the answer already, such as the beginning of thoughts.
        tools: What the request offers; arguments that a family writes as text get their types.
        max_calls: Calls that are given at most; further ones are dropped. None for any number.
    """

    def __init__(
        self,
        template: Mapping[str, Any],
        *,
        prefix: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        max_calls: int | None = None,
    ) -> None:
        self._template = load_response_template(dict(template))
        self._tools = [dict(tool) for tool in tools]
        self._functions = {tool["function"]["name"] for tool in tools}
        self._max_calls = max_calls
        self._n_calls = 0
        self._writer = _Writer()
        # What was read and is in no part yet.
        self._pending = ""
        self._field: str | None = None
        self._n_ahead = 0
        self._takes_calls = True
        self._parser = ResponseParser(self._template, prefix, tools=self._tools)
        for event in self._parser.initial_events:
            opens = event["type"] == "region_open"
            self._field = event["field"] if opens or event["type"] == "region_chunk" else None
        if self._field in REASONING_FIELDS:
            self._writer.border()

    @property
    def is_reasoning(self) -> bool:
        """Whether the text ends amid thoughts."""
        return self._field in REASONING_FIELDS

    def feed(self, text: str) -> list[Part]:
        """Give what a piece of text is."""
        self._feed(text)
        return self._writer.take()

    def _feed(self, text: str) -> None:
        for char in text:
            self._pending += char
            # Whether a pattern ends is known one character later.
            self._n_ahead = int(self._is_pattern(self._field))
            self._run(self._parser.feed, char)

    def finish(self, *, is_cut_off: bool) -> list[Part]:
        """Give what is left.

        Args:
            is_cut_off: The model had more to write.
        """
        self._n_ahead = 0
        # A call whose beginning is only now known to be one has nothing in it.
        self._takes_calls = not is_cut_off or self._field == TOOL_FIELD
        if is_cut_off and self._is_amid_call():
            self._reject()
        else:
            self._run(self._finalize)
        if self._writer.is_empty:
            # The template has no place for what the model wrote.
            self._writer.content(self._pending)
        self._writer.finish()
        return self._writer.take()

    def _is_pattern(self, field: str | None) -> bool:
        return field == TOOL_FIELD and self._template.fields[field].close_literals is None

    def _is_amid_call(self) -> bool:
        if self._field != TOOL_FIELD:
            return False
        closing = self._template.fields[TOOL_FIELD].close_re
        return closing is not None and closing.search(self._pending) is None

    def _finalize(self) -> list[dict[str, Any]]:
        _, events = self._parser.finalize()
        return list(events)

    def _run(self, step: Callable[..., list[dict[str, Any]]], *text: str) -> None:
        try:
            events = step(*text)
        except _MISFITS:
            self._reject()
            return
        for event in events:
            self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        field = event["field"]
        if event["type"] == "region_open":
            self._field = field
            if field != TOOL_FIELD and field != self._template.implicit:
                self._pending = ""
                self._writer.border()
        elif event["type"] == "region_chunk":
            self._take_chunk(field, event["text"])
        else:
            self._field = None
            if field == TOOL_FIELD:
                self._take_calls(event["value"])
            elif field != self._template.implicit:
                self._pending = ""
                self._writer.border()

    def _take_chunk(self, field: str, text: str) -> None:
        if field == TOOL_FIELD:
            return
        self._pending = self._pending[len(text) :]
        if field == CONTENT_FIELD:
            self._writer.content(text)
        elif field in REASONING_FIELDS:
            self._writer.reasoning(text)

    def _take_calls(self, value: Any) -> None:
        functions = self._functions if self._takes_calls else ()
        try:
            calls = read_calls(value, functions)
        except ValueError:
            text, self._pending = self._cut(self._pending)
            self._writer.content(text)
            return
        self._pending = ""
        self._writer.border()
        for call in calls:
            self._n_calls += 1
            if self._max_calls is None or self._n_calls <= self._max_calls:
                self._writer.call(call)

    def _reject(self) -> None:
        """Take what a region holds for content, and go on behind it."""
        text, rest = self._cut(self._pending)
        self._writer.content(text)
        self._pending, self._field = "", None
        self._parser = ResponseParser(self._template, "", tools=self._tools)
        self._n_ahead = 0
        self._feed(rest)

    def _cut(self, text: str) -> tuple[str, str]:
        """Part what was read into the region of a call, and what follows it."""
        n = len(text) - self._n_ahead
        return text[:n], text[n:]


class _Writer:
    """Collects parts, without the white space around thoughts and calls.

    That at the end of a text is held back until it is known what follows.
    """

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._kind: type[Content] | type[Reasoning] = Content
        self._held = ""
        # White space that comes now is at a border.
        self._is_bordered = False
        self._has_borders = False
        self.is_empty = True

    def content(self, text: str) -> None:
        self._write(Content, text)

    def reasoning(self, text: str) -> None:
        self._write(Reasoning, text)

    def call(self, call: Call) -> None:
        self.is_empty = False
        self._parts.append(call)

    def border(self) -> None:
        """Begin or end thoughts or a call."""
        self._held = ""
        self._is_bordered = self._has_borders = True

    def finish(self) -> None:
        if self._held and self._kind is Content and not self._is_bordered:
            self._parts.append(Content(self._held))
        self._held = ""

    def take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _write(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        if kind is not self._kind:
            self._held = ""
        self._kind = kind
        if self._is_bordered:
            text = text.lstrip()
        if not text:
            return
        text = self._held + text
        bare = text.rstrip()
        self._held = text[len(bare) :]
        if not bare:
            return
        self._is_bordered = False
        self.is_empty = False
        last = self._parts[-1] if self._parts else None
        if isinstance(last, kind):
            self._parts[-1] = kind(last.text + bare)
        else:
            self._parts.append(kind(bare))


@dataclass(frozen=True, slots=True)
class AnswerReader:
    """Makes the parsers of a request's answers.

    Args:
        template: transformers' response template; None where all text is the answer.
        prefix: What the prompt has of the answer already.
        tools: What the request offers.
        max_calls: Calls in an answer, at most.
    """

    template: Mapping[str, Any] | None = None
    prefix: str = ""
    tools: Sequence[Mapping[str, Any]] = ()
    max_calls: int | None = None

    @property
    def reads_tags(self) -> bool:
        """Whether special tokens are to be in the text, since some of them tell its parts."""
        return self.template is not None

    @property
    def is_thinking(self) -> bool:
        """Whether the prompt ends amid thoughts."""
        return self._fields_of_prefix()[-1:] == ["open"]

    @property
    def has_thought(self) -> bool:
        """Whether the prompt has the thoughts already, be they empty."""
        return self._fields_of_prefix()[-1:] == ["close"]

    def parser(self) -> MessageParser | PlainText:
        """Make the parser of one answer."""
        if self.template is None:
            return PlainText()
        return MessageParser(
            self.template, prefix=self.prefix, tools=self.tools, max_calls=self.max_calls
        )

    def _fields_of_prefix(self) -> list[str]:
        if self.template is None:
            return []
        events = ResponseParser(dict(self.template), self.prefix).initial_events
        return [
            event["type"].removeprefix("region_")
            for event in events
            if event["field"] in REASONING_FIELDS and event["type"] != "region_chunk"
        ]


def prefix_of(
    template: Mapping[str, Any], prompt_ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> str:
    """Give what a prompt has of the answer already.

    Args:
        template: transformers' response template.
        prompt_ids: The prompt.
        decode: Decodes tokens, special ones too.
    """
    loaded = load_response_template(dict(template))
    tail = decode(prompt_ids[-_TAIL_TOKENS:])
    if loaded.start_anchor_re.search(tail) is None:
        return ""
    return str(loaded.truncate_past_last_anchor(tail))


def ignored_tokens(
    family: Family, template: Mapping[str, Any] | None, special_tokens: Collection[str]
) -> Callable[[str], str]:
    """Give what takes tokens out of a text that are no part of an answer.

    Args:
        family: Names some.
        template: The response template in use, whose own tokens stay; None leaves all text as is.
        special_tokens: Those of the tokenizer.
    """
    if template is None:
        return lambda text: text
    shown = str(dict(template)).replace("\\", "")
    names = {token for token in special_tokens if token not in shown} | set(family.ignored)
    if not names:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return lambda text: pattern.sub("", text)
