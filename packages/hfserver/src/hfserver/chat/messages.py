"""Messages of a request as chat templates read them: texts, and arguments of calls as dicts."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from kserve.listing import shortened
from kserve.protocol.rest.openai import OpenAIError, invalid_request

Message = dict[str, Any]

# What a part of a content is read from, by its type.
_PART_TEXTS: Final = {"text": "text", "refusal": "refusal", "input_text": "text"}

# Newer and older names of roles that templates have.
_SAME_ROLES: Final = {"developer": "system", "function": "tool"}

_END_OF_THOUGHTS: Final = "</think>"

# More than any context holds; a template's loop over them is not free.
MAX_MESSAGES: Final = 4096

# OpenAI's own.
MAX_TOOLS: Final = 128


def read_messages(messages: Sequence[Mapping[str, Any]], template: str = "") -> list[Message]:
    """Give messages as templates read them.

    Parts of a content are joined with line ends, what is null is left out, and the arguments of
    calls are dicts. `developer` is `system`, and `function` is `tool`, unless the template has
    those roles itself. Thoughts in an earlier answer are its `reasoning_content`, if the template
    knows thoughts: between tags in a text they would be text.

    Args:
        messages: Those of the request.
        template: The text of the template.

    Raises:
        OpenAIError: A part is no text, the arguments of a call are no JSON object, or there are
            too many messages.
    """
    if len(messages) > MAX_MESSAGES:
        raise invalid_request(
            f"'messages': expected at most {MAX_MESSAGES}, got {len(messages)}", "messages"
        )
    return [
        _read_message(f"messages[{index}]", message, template)
        for index, message in enumerate(messages)
    ]


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Check that there are not too many tools, and no two of a name.

    Raises:
        OpenAIError: There are.
    """
    if len(tools) > MAX_TOOLS:
        raise invalid_request(f"'tools': expected at most {MAX_TOOLS}, got {len(tools)}", "tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name in names:
            param = f"tools[{index}].function.name"
            raise invalid_request(
                f"'{param}': expected a name of its own, got {shortened(repr(name))} again", param
            )
        names.add(name)


def _read_message(param: str, message: Mapping[str, Any], template: str) -> Message:
    read = {key: value for key, value in message.items() if value is not None}
    role = read["role"]
    if role in _SAME_ROLES and role not in template:
        read["role"] = _SAME_ROLES[role]
    content = read.get("content", "")
    read["content"] = content if isinstance(content, str) else _join(f"{param}.content", content)
    if role == "assistant" and _END_OF_THOUGHTS in template:
        _split_thoughts(read)
    if read.get("tool_calls"):
        read["tool_calls"] = [
            _read_call(f"{param}.tool_calls[{index}]", call)
            for index, call in enumerate(read["tool_calls"])
        ]
    else:
        # An empty list is a call to templates that ask whether the key is there.
        read.pop("tool_calls", None)
    return read


def _split_thoughts(message: Message) -> None:
    thoughts, tag, rest = message["content"].partition(_END_OF_THOUGHTS)
    if tag and "reasoning_content" not in message:
        message["reasoning_content"] = thoughts.strip().removeprefix("<think>").strip()
        message["content"] = rest.lstrip()


def _join(param: str, parts: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(_text(f"{param}[{index}]", part) for index, part in enumerate(parts))


def _text(param: str, part: Mapping[str, Any]) -> str:
    kind = part["type"]
    if kind not in _PART_TEXTS:
        raise invalid_request(
            f"'{param}': expected a part of type 'text', as this model reads nothing else, got "
            f"{shortened(repr(kind))}",
            param,
            "unsupported_content",
        )
    text = part.get(_PART_TEXTS[kind])
    if not isinstance(text, str):
        raise invalid_request(
            f"'{param}.{_PART_TEXTS[kind]}': expected a string, got {shortened(repr(text))}", param
        )
    return text


def _read_call(param: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid_request(
            f"'{param}': expected an object with a 'function' that has a 'name', got "
            f"{shortened(repr(call))}",
            param,
        )
    arguments = _arguments(f"{param}.function.arguments", function.get("arguments"))
    # Clients have them in any order; models have seen the name first.
    ordered = {"name": function["name"], **function, "arguments": arguments}
    return {"type": "function", **call, "function": ordered}


def _arguments(param: str, arguments: Any) -> dict[str, Any]:
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str):
        raise _no_object(param, arguments)
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError as exc:
        raise _no_object(param, arguments) from exc
    if not isinstance(value, dict):
        raise _no_object(param, arguments)
    return value


def _no_object(param: str, arguments: Any) -> OpenAIError:
    return invalid_request(
        f"'{param}': expected the text of a JSON object, got {shortened(repr(arguments))}", param
    )
