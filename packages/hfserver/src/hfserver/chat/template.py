"""Prompts out of chats: the template is applied and its text encoded in one call.

Whoever encodes a rendered text again gets the first token twice where the template writes it too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jinja2
import orjson

from hfserver.chat.messages import check_tools, read_messages
from kserve.listing import listing, shortened
from kserve.protocol.rest.openai import OpenAIError, invalid_request

# Breaks the control tokens of a user's text in two. Unicode has it for a program's own use: no text
# that is for others holds it. Where a template escapes it, the token stays broken; transformers'
# own marks, which stand around a token, are lost on a template that prints a list or a dict.
_BREAK: Final = "\ufdd0"

# What a request says about a template by fields of its own, and what is not its to say.
_RESERVED: Final = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "sanitize_control_tokens", "padding"),
        *("truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("return_assistant_tokens_mask",),
    }
)

# For templates that know no tools: the words of Hermes' prompt, which many small models have seen.
_TOOL_PROMPT: Final = (
    "You can call functions. Their signatures are between the <tools> tags:\n"
    "<tools>\n{tools}\n</tools>\n"
    "To call one, answer with its name and its arguments as a JSON object between <tool_call> "
    "tags:\n"
    '<tool_call>\n{{"name": "function-name", "arguments": {{"argument-name": "value"}}}}\n'
    "</tool_call>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatInput:
    """What a request says of its prompt; the fields are those of `ChatCompletionRequest`.

    Attributes:
        messages: Each a dict with a role and a content.
        tools: What the model may call; empty for nothing.
        documents: What the template shows as such.
        chat_template: In place of the model's own: the name of another one that it has, or Jinja.
        variables: Further variables of the template.
        add_generation_prompt: The prompt ends where the assistant begins.
        continue_final_message: The prompt ends amid the last message.
        add_special_tokens: Begin as the model's texts begin, beside what the template writes.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    documents: Sequence[Mapping[str, str]] | None = None
    chat_template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False


class ChatTemplate:
    """Makes prompts with a tokenizer's template; may be used on several threads.

    Args:
        tokenizer: Of transformers.
        template: In place of the tokenizer's own.
        allow_control_tokens: Control tokens in the text of a request are control tokens. Otherwise
            they are encoded as any other text, so that nobody ends a message from inside it.
        allow_request_template: A request may bring a template. Its author can then keep a thread
            busy for as long as he likes.

    Attributes:
        text: The template's text, or that of all templates; empty where the model has none.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        allow_control_tokens: bool = False,
        allow_request_template: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._templates = _by_name(template or tokenizer.chat_template)
        self._allow_control_tokens = allow_control_tokens
        self._allow_request_template = allow_request_template
        # A token of one character, or of white space, is text to a template too.
        controls = [token for token in tokenizer.get_added_vocab() if len(token.strip()) > 1]
        controls.sort(key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self.text = "\n".join(self._templates.values())

    def encode(self, chat: ChatInput) -> list[int]:
        """Give the tokens of a prompt.

        Raises:
            OpenAIError: The template cannot render it, or the request may not say what it says.
        """
        template = self._template(chat)
        _check_variables(chat.variables)
        check_tools(chat.tools)
        messages = read_messages(chat.messages, template)
        if chat.continue_final_message:
            _check_final(messages)
        tools = [dict(tool) for tool in chat.tools] or None
        if tools and not re.search(r"\btools\b", template):
            messages, tools = _with_tool_prompt(messages, tools), None
        try:
            text = self._tokenizer.apply_chat_template(
                self._neutral(messages),
                tools=self._neutral(tools),
                documents=self._neutral(chat.documents),
                chat_template=template,
                add_generation_prompt=chat.add_generation_prompt,
                continue_final_message=chat.continue_final_message,
                tokenize=False,
                **self._neutral(chat.variables),
            )
        except jinja2.TemplateError as exc:
            raise _refusal(str(exc) or type(exc).__name__) from exc
        except Exception as exc:
            # Templates index and add what they take to be there.
            raise _refusal(f"{type(exc).__name__}: {exc}") from exc
        start = self._first_tokens() if chat.add_special_tokens else []
        return start + self._encode(text)

    def _template(self, chat: ChatInput) -> str:
        """Give the template that a request is rendered with."""
        wanted = chat.chat_template
        if wanted is not None:
            if wanted in self._templates:
                return self._templates[wanted]
            if not self._allow_request_template:
                raise invalid_request(
                    "'chat_template': this server takes no templates from requests "
                    "(--trust_request_chat_template)",
                    "chat_template",
                    "unsupported_parameter",
                )
            return wanted
        name = "tool_use" if chat.tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise invalid_request(
                "this model has no chat template: expected a prompt for completions, or a server "
                "with --chat_template",
                "messages",
                "no_chat_template",
            )
        return self._templates[name]

    def _neutral(self, value: Any) -> Any:
        """Break the control tokens in all texts of a value."""
        if self._allow_control_tokens:
            return value
        if isinstance(value, str):
            return self._broken(value.replace(_BREAK, ""))
        if isinstance(value, Mapping):
            return {self._neutral(key): self._neutral(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._neutral(each) for each in value]
        return value

    def _broken(self, text: str) -> str:
        # A part of a token may be another one.
        while self._controls.search(text):
            text = self._controls.sub(lambda match: f"{match[0][0]}{_BREAK}{match[0][1:]}", text)
        return text

    def _encode(self, text: str) -> list[int]:
        first, *others = [text] if self._allow_control_tokens else text.split(_BREAK)
        ids = self._encode_text(first)
        for piece in others:
            ids += self._encode_inside(piece)
        return ids

    def _encode_inside(self, text: str) -> list[int]:
        """Encode a text that stands amid another one.

        SentencePiece puts a space before the first word: it goes to a line end that is cut off.
        """
        line_end = self._encode_text("\n")
        ids = self._encode_text(f"\n{text}")
        if ids[: len(line_end)] == line_end:
            return ids[len(line_end) :]
        return self._encode_text(text)

    def _encode_text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _first_tokens(self) -> list[int]:
        """Give the tokens that the model's texts begin with."""
        whole = list(self._tokenizer.encode("a"))
        return whole[: whole.index(self._encode_text("a")[0])]


def _by_name(template: str | Mapping[str, str] | None) -> Mapping[str, str]:
    if isinstance(template, Mapping):
        return template
    return {"default": template} if template else {}


def _check_variables(variables: Mapping[str, Any]) -> None:
    reserved = sorted(_RESERVED & variables.keys())
    if reserved:
        raise invalid_request(
            f"'chat_template_kwargs': expected variables of the template alone, got "
            f"{listing(reserved)}",
            "chat_template_kwargs",
        )


def _check_final(messages: Sequence[Mapping[str, Any]]) -> None:
    final = messages[-1]
    if final["role"] != "assistant" or not final["content"]:
        got = f"{final['role']!r}" if final["role"] != "assistant" else "no content"
        raise invalid_request(
            "'continue_final_message': expected the last message to be the assistant's, with a "
            f"content, got {got}",
            "continue_final_message",
        )


def _with_tool_prompt(messages: list[Any], tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Tell a model of its tools in the first message, where its template has no place for them."""
    text = _TOOL_PROMPT.format(tools="\n".join(orjson.dumps(tool).decode() for tool in tools))
    if messages[0]["role"] == "system":
        content = f"{messages[0]['content']}\n\n{text}"
        return [{**messages[0], "content": content}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _refusal(reason: str) -> OpenAIError:
    return invalid_request(
        f"the chat template cannot render these messages: {shortened(reason)}",
        "messages",
        "invalid_messages",
    )
