"""Which functions may be called, and grammars that have them called."""

import re
from typing import Any

import jsonschema
import orjson
import pytest
import torch
from tests.hfserver.chat.test_parsing import MARKERS
from tests.hfserver.chat.tiny_chat import make_chat_tokenizer

from hfserver.chat.calls import Call
from hfserver.chat.families import CallFormat, Family, find_family, generic_family
from hfserver.chat.grammar import Constraint, GrammarCompiler
from hfserver.chat.parsing import MessageParser
from hfserver.chat.tools import ToolUse, calls_grammar, read_tool_use
from kserve.protocol.rest.openai import OpenAIError

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Paris", "Rome"]}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_chat_tokenizer()


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, eos_ids=[3])


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("tools", "choice", "is_parallel", "use"),
    [
        pytest.param(None, None, True, ToolUse(), id="no tools"),
        pytest.param(TOOLS, "none", True, ToolUse(), id="none"),
        pytest.param(TOOLS, None, True, ToolUse(TOOLS, TOOLS), id="left out"),
        pytest.param(TOOLS, "auto", False, ToolUse(TOOLS, TOOLS, False, 1), id="auto"),
        pytest.param(TOOLS, "required", True, ToolUse(TOOLS, TOOLS, True), id="required"),
        pytest.param(TOOLS, named("now"), True, ToolUse(TOOLS, [NOW], True, 1), id="named"),
        pytest.param(TOOLS, allowed("auto", "now"), True, ToolUse(TOOLS, [NOW]), id="allowed"),
        pytest.param(
            TOOLS, allowed("required", "now"), False, ToolUse(TOOLS, [NOW], True, 1), id="one of"
        ),
    ],
)
def test_reads_the_choice(tools: Any, choice: Any, is_parallel: bool, use: ToolUse) -> None:
    assert read_tool_use(tools, choice, is_parallel=is_parallel) == use


@pytest.mark.parametrize(
    ("choice", "param", "text"),
    [
        (named("x"), "tool_choice", "the name of one of the tools, weather, now, got 'x'"),
        (allowed("auto", "x"), "tool_choice.allowed_tools.tools", "got 'x'"),
        (allowed("auto"), "tool_choice", "expected none, auto, required"),
        (allowed("some", "now"), "tool_choice", "expected none, auto, required"),
        ({"type": "custom"}, "tool_choice", "got {'type': 'custom'}"),
        ({"type": "function"}, "tool_choice", "got None"),
    ],
)
def test_refuses_a_choice_of_what_there_is_not(choice: Any, param: str, text: str) -> None:
    with pytest.raises(OpenAIError) as caught:
        read_tool_use(TOOLS, choice, is_parallel=True)

    assert caught.value.response.error.param == param
    assert text in caught.value.response.error.message


def call_format(family: Family) -> CallFormat:
    call = family.call or generic_family().call
    assert call is not None
    return call


def generate(constraint: Constraint, tokenizer: Any, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for _ in range(600):
        logits = torch.randn(len(tokenizer), generator=generator)
        logits[3] += 2
        constraint.apply(logits)
        token_id = int(torch.multinomial(logits.softmax(0), 1, generator=generator))
        constraint.accept(token_id)
        if token_id == 3:
            return str(tokenizer.decode(ids))
        ids.append(token_id)
    raise AssertionError(tokenizer.decode(ids))


def calls_of(text: str, family: Family) -> list[Call]:
    """Read a text as the server does under a grammar."""
    reader = family if family.call is not None else generic_family()
    template = reader.fields(tools=True)
    assert template is not None
    parser = MessageParser(template, tools=TOOLS)
    parts = parser.feed(text) + parser.finish(is_cut_off=False)
    assert all(isinstance(part, Call) for part in parts), (text, parts)
    return [part for part in parts if isinstance(part, Call)]


@pytest.mark.parametrize("name", MARKERS)
@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_has_to_call_calls(
    name: str, seed: int, compiler: GrammarCompiler, tokenizer: Any
) -> None:
    family = find_family(MARKERS[name])
    use = ToolUse(TOOLS, TOOLS, True)
    grammar = calls_grammar(use, call_format(family), TOOLS, compiler)

    calls = calls_of(generate(grammar.constraint(), tokenizer, seed), family)

    assert 1 <= len(calls) <= 16
    for call in calls:
        arguments = orjson.loads(call.arguments)
        if call.name == "weather":
            jsonschema.validate(arguments, PARAMETERS)
        else:
            assert (call.name, arguments) == ("now", {})


@pytest.mark.parametrize("name", MARKERS)
def test_a_model_calls_one_function_once_where_it_is_to(
    name: str, compiler: GrammarCompiler, tokenizer: Any
) -> None:
    family = find_family(MARKERS[name])
    grammar = calls_grammar(ToolUse(TOOLS, [NOW], True, 1), call_format(family), TOOLS, compiler)

    for seed in range(5):
        text = generate(grammar.constraint(), tokenizer, seed)
        assert calls_of(text, family) == [Call("now", "{}")]


def test_calls_are_written_as_the_family_does(compiler: GrammarCompiler, tokenizer: Any) -> None:
    call = call_format(generic_family())
    grammar = calls_grammar(ToolUse(TOOLS, [NOW], True, 1), call, TOOLS, compiler)

    text = generate(grammar.constraint(), tokenizer, 0)

    assert text == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    # The tags are the tokens that the model knows.
    assert re.search(r"<\[\d+\]>", compiler.literal(call.begin))


def test_says_which_tool_has_what_cannot_be_kept(compiler: GrammarCompiler) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    tools = [NOW, bad]

    with pytest.raises(OpenAIError) as caught:
        calls_grammar(ToolUse(tools, tools, True), call_format(generic_family()), tools, compiler)

    error = caught.value.response.error
    assert error.param == "tools[1].function.parameters"
    assert '["not"]' in error.message


def test_names_of_functions_are_any_text(compiler: GrammarCompiler, tokenizer: Any) -> None:
    odd = {"type": "function", "function": {"name": 'a"b\\ü <think>', "parameters": None}}
    call = call_format(generic_family())
    grammar = calls_grammar(ToolUse([odd], [odd], True, 1), call, [odd], compiler)
    template = generic_family().fields(tools=True)
    assert template is not None
    parser = MessageParser(template, tools=[odd])

    text = generate(grammar.constraint(), tokenizer, 0)

    assert parser.feed(text) == [Call('a"b\\ü <think>', "{}")]
