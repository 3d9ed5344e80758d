"""Which functions a request offers, and whether the model has to call one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from hfserver.chat.families import CallFormat
from hfserver.chat.grammar import Grammar, GrammarCompiler, json_value
from kserve.listing import listing, shortened
from kserve.protocol.rest.openai import OpenAIError, invalid_request

Tool = Mapping[str, Any]

# More calls than that in one answer, and a small model that has to call would never end.
_MAX_CALLS: Final = 16

_NO_ARGUMENTS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools.

    Attributes:
        shown: What the template shows to the model.
        callable: What it may call.
        is_required: It has to call one.
        max_calls: Calls in an answer, at most; None for any number.
    """

    shown: Sequence[Tool] = ()
    callable: Sequence[Tool] = ()
    is_required: bool = False
    max_calls: int | None = None


def read_tool_use(tools: Sequence[Tool] | None, choice: Any, *, is_parallel: bool) -> ToolUse:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises:
        OpenAIError: The choice names no tool, or one that there is not.
    """
    if not tools or choice == "none":
        return ToolUse()
    max_calls = None if is_parallel else 1
    if choice is None or choice in ("auto", "required"):
        return ToolUse(tools, tools, choice == "required", max_calls)
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return ToolUse(tools, [_named(tools, choice, "tool_choice")], True, 1)
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        names, mode = allowed.get("tools"), allowed.get("mode", "auto")
        if isinstance(names, list) and names and mode in ("auto", "required"):
            kept = [_named(tools, each, "tool_choice.allowed_tools.tools") for each in names]
            return ToolUse(tools, kept, mode == "required", max_calls)
    raise invalid_request(
        "'tool_choice': expected none, auto, required, a function or allowed_tools, got "
        f"{shortened(repr(choice))}",
        "tool_choice",
    )


def calls_grammar(
    use: ToolUse,
    call: CallFormat,
    tools: Sequence[Tool],
    compiler: GrammarCompiler,
    *,
    answer: str | None = None,
) -> Grammar:
    """Compile the grammar of calls of functions, each with arguments that fit its schema.

    Args:
        use: What may be called.
        call: How a call is written.
        tools: All tools of the request: what is wrong with one is said with its place.
        compiler: Compiles it.
        answer: What may come in the place of calls, as a part of a rule in Lark; None for nothing.

    Raises:
        OpenAIError: The schema of a function has what cannot be kept.
    """
    bodies = []
    for tool in use.callable:
        param = f"tools[{list(tools).index(tool)}].function.parameters"
        # By itself first, so that the error says which one it is.
        schema = tool["function"].get("parameters") or _NO_ARGUMENTS
        compiler.json_schema(schema, param)
        bodies.append(_body(tool["function"]["name"], schema, param, call, compiler))
    rules = "\n".join(f"body_{index}: {body}" for index, body in enumerate(bodies))
    item = " | ".join(f"body_{index}" for index in range(len(bodies)))
    begin, end = compiler.literal(call.begin), compiler.literal(call.end)
    between = compiler.literal(call.between)
    n_more = min(use.max_calls or _MAX_CALLS, _MAX_CALLS) - 1
    if call.is_list:
        more = f"({between} item){{0,{n_more}}}" if n_more else ""
        start = f"{begin} item {more} {end}"
    else:
        more = f"({between} {begin} item {end}){{0,{n_more}}}" if n_more else ""
        start = f"{begin} item {end} {more}"
    if answer is not None:
        start += f" | {answer}"
    return compiler.compile(f"start: {start}\nitem: {item}\n{rules}", "tools")


def _body(name: str, schema: Any, param: str, call: CallFormat, compiler: GrammarCompiler) -> str:
    # With the spaces that models have seen; references in the schema are to its own root.
    head = f'{{"{call.name}": {orjson.dumps(name).decode()}, "{call.arguments}": '
    return f'{compiler.literal(head)} {json_value(schema, param)} "}}"'


def _named(tools: Sequence[Tool], choice: Any, param: str) -> Tool:
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    found = next((tool for tool in tools if tool["function"]["name"] == name), None)
    if found is None:
        raise _unknown(tools, name, param)
    return found


def _unknown(tools: Sequence[Tool], name: Any, param: str) -> OpenAIError:
    names = listing([tool["function"]["name"] for tool in tools])
    return invalid_request(
        f"'{param}': expected the name of one of the tools, {names}, got {shortened(repr(name))}",
        param,
    )
