"""Calls out of what a model wrote between its tags: JSON in any of its shapes, or Python."""

import ast
import re
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass

# orjson reads no value that stands amid a text, and no number beyond 64 bits.
from json import JSONDecodeError, JSONDecoder, dumps  # noqa: TID251
from typing import Any, Final


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DECODER: Final = JSONDecoder(parse_constant=_refuse)

_BETWEEN: Final = re.compile(r"[\s;,]*")

# Mistral's since its eleventh tokenizer: the name, then the arguments.
_NAMED: Final = re.compile(
    r"(?:\[TOOL_CALLS\])?\s*(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)"
)

_NAMES: Final = ("name", "tool_name", "function_name")
_ARGUMENTS: Final = ("arguments", "parameters", "args")


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function.

    Attributes:
        name: The function.
        arguments: The text of a JSON object.
    """

    name: str
    arguments: str


def read_calls(value: Any, functions: Collection[str]) -> list[Call]:
    """Read calls.

    Args:
        value: A text, or what a response template made of one: a dict or a list of dicts.
        functions: The names that there are.

    Raises:
        ValueError: It holds none, or anything else.
    """
    values = _values(value) if isinstance(value, str) else [value]
    calls = [
        _call(each) for part in values for each in (part if isinstance(part, list) else [part])
    ]
    if not calls:
        raise ValueError("there is no call")
    for call in calls:
        if call.name not in functions:
            raise ValueError(f"there is no function {call.name!r}")
    return calls


def call_id(length: int | None) -> str:
    """Give an id for a call, of a length if the model's template asks for that."""
    text = uuid.uuid4().hex
    return f"call_{text[:24]}" if length is None else text[:length]


def _call(value: Any) -> Call:
    """Read one call.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, dict):
        raise ValueError("a call is an object")
    function = value.get("function")
    if isinstance(function, dict):
        value = function
    name = next((value[key] for key in (*_NAMES, "function") if key in value), None)
    arguments: Any = next((value[key] for key in _ARGUMENTS if key in value), {})
    if isinstance(arguments, str):
        arguments = _DECODER.decode(arguments or "{}")
    if not isinstance(name, str) or not isinstance(arguments or {}, dict):
        raise ValueError("a call has a name, and an object of arguments")
    return Call(name, _text(arguments or {}))


def _text(arguments: dict[str, Any]) -> str:
    try:
        text = dumps(arguments, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        # What JSON has escaped may be half a character.
        text.encode()
    except TypeError as exc:
        raise ValueError("the arguments cannot be written as JSON") from exc
    return text


def _values(text: str) -> list[Any]:
    """Read a text that is JSON, named JSON or Python.

    Raises:
        ValueError: It is none of them.
    """
    text = text.strip()
    if text.startswith("["):
        try:
            return list(_json_values(text))
        except JSONDecodeError:
            return _python_calls(text)
    if text.startswith("{"):
        return list(_json_values(text))
    if _NAMED.match(text):
        return list(_named_values(text))
    return _python_calls(f"[{text}]")


def _json_values(text: str) -> Iterator[Any]:
    place = 0
    while place < len(text):
        value, place = _DECODER.raw_decode(text, place)
        yield value
        place = _end(_BETWEEN, text, place)


def _named_values(text: str) -> Iterator[dict[str, Any]]:
    place = 0
    while place < len(text):
        match = _NAMED.match(text, place)
        if match is None:
            raise ValueError("expected the name of a function")
        arguments, place = _DECODER.raw_decode(text, match.end())
        yield {"name": match["name"], "arguments": arguments}
        place = _end(_BETWEEN, text, place)


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    assert match is not None
    return match.end()


def _python_calls(text: str) -> list[Any]:
    """Read `[f(a=1), g()]`; nothing of it is run.

    Raises:
        ValueError: It is something else.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as exc:
        raise ValueError("expected calls as Python writes them") from exc
    if not isinstance(tree, ast.List):
        raise ValueError("expected a list of calls")
    return [_python_call(each) for each in tree.elts]


def _python_call(node: ast.expr) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("expected a call with arguments by their names")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("expected arguments by their names")
        # Raises ValueError for what is no literal.
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return {"name": ast.unparse(node.func), "arguments": arguments}
