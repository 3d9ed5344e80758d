"""Answers out of the text that models of all families write, wherever it is cut."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfserver.chat.calls import Call
from hfserver.chat.families import Family, family_names, find_family, generic_family, own_family
from hfserver.chat.parsing import (
    Content,
    MessageParser,
    Part,
    PlainText,
    Reasoning,
    ignored_tokens,
    prefix_of,
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "exact": {"type": "boolean"},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
PARIS = Call("weather", '{"city":"Paris","days":2}')
NOW = Call("now", "{}")
QUOTE = Call("weather", '{"city":"<\\"}]> ; {"}')

# What tells a family, in its chat templates.
MARKERS = {
    "harmony": "<|channel|><|message|>",
    "gemma4": "<|tool_call><tool_call|><|channel>thought\n",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜></think><think>",
    "command": "<|START_ACTION|><|START_THINKING|>",
    "lfm2": "<|tool_call_start|>",
    "glm": "<tool_call><arg_key><think>",
    "qwen3_coder": "<tool_call><function=<think>",
    "mistral": "[TOOL_CALLS][THINK]",
    "granite": "<|tool_call|>",
    "llama3_json": '<|start_header_id|> "parameters": ',
    "hermes": "<tool_call><think>",
}


def family(name: str) -> Family:
    found = find_family(MARKERS[name])
    assert found.name == name
    return found


def merged(parts: Sequence[Part]) -> list[Part]:
    """Join neighbours of a kind."""
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, Content) and isinstance(last, Content):
            out[-1] = Content(last.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
            out[-1] = Reasoning(last.text + part.text)
        else:
            out.append(part)
    return out


def parse(
    family: Family,
    pieces: Sequence[str],
    *,
    prefix: str = "",
    is_cut_off: bool = False,
    tools: Any = TOOLS,
    **kwargs: Any,
) -> list[Part]:
    template = family.fields(tools=bool(tools))
    assert template is not None
    parser = MessageParser(template, prefix=prefix, tools=tools, **kwargs)
    parts = [part for piece in pieces for part in parser.feed(piece)]
    assert all(part.text for part in parts if not isinstance(part, Call))
    return merged(parts + parser.finish(is_cut_off=is_cut_off))


CASES = [
    pytest.param(
        "hermes", "Hello, <b>world</b> { [", [Content("Hello, <b>world</b> { [")], id="text"
    ),
    pytest.param("hermes", "  two\n\nlines \n", [Content("  two\n\nlines \n")], id="white space"),
    pytest.param(
        "hermes",
        "<think>\nHm, so.\n</think>\n\nYes.",
        [Reasoning("Hm, so."), Content("Yes.")],
        id="hermes thinks",
    ),
    pytest.param(
        "hermes",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
        [PARIS],
        id="hermes",
    ),
    pytest.param(
        "hermes",
        '<think>a</think>I look.\n\n<tool_call>{"name": "weather", "arguments": "{\\"city\\": '
        '\\"Paris\\", \\"days\\": 2}"}</tool_call>\n<tool_call>{"name": "now"}</tool_call>\n',
        [Reasoning("a"), Content("I look."), PARIS, NOW],
        id="hermes parallel",
    ),
    pytest.param(
        "hermes",
        '<tool_call>[{"name": "weather", "arguments": {"city": "Paris", "days": 2}}, '
        '{"name": "now", "parameters": {}}]</tool_call>',
        [PARIS, NOW],
        id="hermes list",
    ),
    pytest.param(
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "<\\"}]> ; {"}}</tool_call>',
        [QUOTE],
        id="hermes quotes",
    ),
    pytest.param(
        "hermes",
        'a <tool_call>{"name": "weather", "argum</tool_call> b <tool_call>{"name": "now"}'
        "</tool_call>",
        [Content('a <tool_call>{"name": "weather", "argum</tool_call> b'), NOW],
        id="hermes broken",
    ),
    pytest.param(
        "hermes",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call> x',
        [Content('<tool_call>{"name": "other", "arguments": {}}</tool_call> x')],
        id="hermes unknown",
    ),
    pytest.param(
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}',
        [PARIS],
        id="hermes without an end",
    ),
    pytest.param(
        "qwen3_coder",
        "<think>a</think>\n\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n"
        "</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n"
        "<function=now>\n</function>\n</tool_call>",
        [Reasoning("a"), PARIS, NOW],
        id="qwen3_coder",
    ),
    pytest.param(
        "qwen3_coder",
        "<tool_call><function=other></function></tool_call>ab<tool_call><function=now></function>"
        "</tool_call>",
        [Content("<tool_call><function=other></function></tool_call>ab"), NOW],
        id="qwen3_coder unknown",
    ),
    pytest.param(
        "glm",
        "I look.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n"
        "</tool_call>",
        [Content("I look."), PARIS, NOW],
        id="glm",
    ),
    pytest.param(
        "mistral",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris", "days": 2}}, '
        '{"name": "now", "arguments": {}}]',
        [PARIS, NOW],
        id="mistral list",
    ),
    pytest.param(
        "mistral",
        '[THINK]Hm.[/THINK]I look.[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 2}'
        "[TOOL_CALLS]now[CALL_ID]123456789[ARGS]{}",
        [Reasoning("Hm."), Content("I look."), PARIS, NOW],
        id="mistral named",
    ),
    pytest.param("mistral", "see [TOOL_CALLS] x", [Content("see [TOOL_CALLS] x")], id="no mistral"),
    pytest.param(
        "llama3_json",
        '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}',
        [PARIS],
        id="llama3",
    ),
    pytest.param(
        "llama3_json",
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris", "days": 2}}; '
        '{"type": "function", "name": "now", "parameters": {}}',
        [PARIS, NOW],
        id="llama3 parallel",
    ),
    pytest.param(
        "llama3_json",
        '[weather(city="Paris", days=2), now()]',
        [PARIS, NOW],
        id="llama3 python",
    ),
    pytest.param("llama3_json", '{"a": 1}', [Content('{"a": 1}')], id="llama3 JSON"),
    pytest.param(
        "llama3_json", 'Use {"name": "now"}', [Content('Use {"name": "now"}')], id="llama3 text"
    ),
    pytest.param(
        "lfm2",
        'I look.<|tool_call_start|>[weather(city="Paris", days=2), now()]<|tool_call_end|>Wait.',
        [Content("I look."), PARIS, NOW, Content("Wait.")],
        id="lfm2",
    ),
    pytest.param(
        "granite",
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]',
        [PARIS],
        id="granite",
    ),
    pytest.param(
        "granite",
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]'
        "<|/tool_call|>",
        [PARIS],
        id="phi4",
    ),
    pytest.param(
        "command",
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n"
        '{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Paris", "days": 2}}'
        "\n]<|END_ACTION|>",
        [Reasoning("Hm."), PARIS],
        id="command",
    ),
    pytest.param(
        "deepseek",
        "<think>Hm.</think>I look.<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Paris", "days": 2}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}"
        "<｜tool▁call▁end｜>",
        [Reasoning("Hm."), Content("I look."), PARIS, NOW],
        id="deepseek",
    ),
    pytest.param(
        "deepseek",
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>"
        "{}<｜tool▁call▁end｜>",
        [Content("<｜tool▁call▁begin｜>now<｜tool▁sep｜>{<｜tool▁call▁end｜>"), NOW],
        id="deepseek broken",
    ),
    pytest.param(
        "gemma4",
        '<|channel>thought\nHm.<channel|>I look.<|tool_call>call:weather{city:<|"|>Paris<|"|>,'
        "days:2}<tool_call|><|tool_call>call:now{}<tool_call|>",
        [Reasoning("Hm."), Content("I look."), PARIS, NOW],
        id="gemma4",
    ),
    pytest.param(
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        [Reasoning("Hm."), Content("Yes.")],
        id="harmony",
    ),
    pytest.param(
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"city": "Paris", "days": 2}',
        [Reasoning("Hm."), PARIS],
        id="harmony call",
    ),
    pytest.param("harmony", "Just text.", [Content("Just text.")], id="harmony without channels"),
]


@pytest.mark.parametrize(("name", "text", "parts"), CASES)
def test_reads_what_a_family_writes(name: str, text: str, parts: list[Part]) -> None:
    assert parse(family(name), [text]) == parts


@pytest.mark.parametrize(("name", "text", "parts"), CASES)
def test_reads_the_same_wherever_it_is_cut(name: str, text: str, parts: list[Part]) -> None:
    for place in range(len(text)):
        assert parse(family(name), [text[:place], text[place:]]) == parts
    assert parse(family(name), list(text)) == parts


@pytest.mark.parametrize("name", family_names())
def test_the_cases_hold_every_family(name: str) -> None:
    assert name in {str(case.values[0]) for case in CASES}
    assert family(name).name == name


@pytest.mark.parametrize(("name", "text", "parts"), CASES)
def test_loses_and_invents_nothing_wherever_it_is_cut_off(
    name: str, text: str, parts: list[Part]
) -> None:
    calls = [part for part in parts if isinstance(part, Call)]
    for end in range(len(text)):
        found = parse(family(name), [text[:end]], is_cut_off=True)

        assert [part for part in found if isinstance(part, Call)] == calls[
            : sum(isinstance(part, Call) for part in found)
        ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Par'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {}}'),
        ("qwen3_coder", "<tool_call><function=weather><parameter=city>Paris</parameter>"),
        ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}}'),
        ("llama3_json", '{"name": "weather", "parameters": {"ci'),
        ("harmony", '<|channel|>commentary to=functions.now<|message|>{"a": '),
        ("gemma4", '<|tool_call>call:weather{city:<|"|>Par'),
    ],
)
def test_a_call_that_is_cut_off_is_text(name: str, text: str) -> None:
    assert parse(
        family(name),
        ["I look. " * (name != "llama3_json" and name != "harmony"), text],
        is_cut_off=True,
    )[-1] in (Content("I look. " + text), Content(text))


@given(
    st.sampled_from([str(case.values[0]) for case in CASES]),
    st.lists(
        st.one_of(
            st.text(max_size=4),
            st.sampled_from(
                [
                    *(
                        "<think>",
                        "</think>",
                        "<tool_call>",
                        "</tool_call>",
                        "[TOOL_CALLS]",
                        "{",
                        "}",
                    ),
                    *('{"name": "now"}', "<function=now>", "</function>", "<|tool_call>call:now{"),
                    *(
                        "<tool_call|>",
                        "<arg_key>",
                        "[now()]",
                        "<｜tool▁call▁begin｜>now",
                        "\n",
                        " ",
                    ),
                ]
            ),
        ),
        max_size=12,
    ),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_reads_any_text_the_same_whole_and_by_character(
    name: str, pieces: list[str], is_cut_off: bool
) -> None:
    text = "".join(pieces)

    whole = parse(family(name), [text], is_cut_off=is_cut_off)

    assert parse(family(name), list(text), is_cut_off=is_cut_off) == whole
    assert parse(family(name), pieces, is_cut_off=is_cut_off) == whole


def test_thoughts_may_begin_in_the_prompt() -> None:
    parts = parse(family("hermes"), ["Hm.\n", "</think>", "\n\nYes."], prefix="<think>\n")

    assert parts == [Reasoning("Hm."), Content("Yes.")]


def test_thoughts_may_end_in_the_prompt() -> None:
    assert parse(family("hermes"), ["Yes."], prefix="<think>\n\n</think>\n\n") == [Content("Yes.")]


def test_thoughts_that_are_cut_off_are_thoughts() -> None:
    assert parse(family("hermes"), ["<think>Hm"], is_cut_off=True) == [Reasoning("Hm")]


def test_gives_no_more_calls_than_are_wanted() -> None:
    text = '<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "now"}</tool_call>'

    assert parse(family("hermes"), [text], max_calls=1) == [NOW]


def test_gives_text_as_soon_as_it_is_certain() -> None:
    template = family("hermes").fields(tools=True)
    assert template is not None
    parser = MessageParser(template, tools=TOOLS)

    assert parser.feed("Hello") == [Content("Hello")]
    assert parser.feed(" <tool") == []
    assert parser.feed("s> x") == [Content(" <tools> x")]
    assert parser.feed("<think>") == []
    assert parser.feed("Hm") == [Reasoning("Hm")]


def test_without_tools_their_tags_are_text() -> None:
    text = '<think>a</think><tool_call>{"name": "now"}</tool_call>'

    assert parse(family("hermes"), [text], tools=[]) == [
        Reasoning("a"),
        Content('<tool_call>{"name": "now"}</tool_call>'),
    ]


def test_a_model_without_thoughts_has_no_tags_for_them() -> None:
    assert generic_family("<|im_start|>").fields(tools=False) is None
    assert generic_family("", ["<think>"]).reasoning is not None


def test_plain_text_is_content() -> None:
    assert PlainText().feed("a") == [Content("a")]
    assert PlainText().feed("") == []
    assert PlainText().finish(is_cut_off=True) == []


def test_reads_by_a_checkpoints_own_template() -> None:
    own = own_family(
        {
            "start_anchor": "A:",
            "fields": {
                "thinking": {"open": "(", "close": ")"},
                "tool_calls": {"open": "!", "close": ".", "repeats": True, "content": "json"},
                "content": {"close": "#"},
            },
        },
        "tokenizer_config.json",
    )

    assert parse(own, ['(Hm)Yes!{"name": "now"}.#']) == [Reasoning("Hm"), Content("Yes"), NOW]


@pytest.mark.parametrize(
    ("prompt", "prefix"),
    [
        ("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>user\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>assistant\n", ""),
        ("no anchor at all", ""),
    ],
)
def test_finds_the_beginning_of_the_answer_in_the_prompt(prompt: str, prefix: str) -> None:
    template = family("hermes").fields(tools=False)
    assert template is not None

    assert prefix_of(
        template, [ord(each) for each in prompt], lambda ids: "".join(map(chr, ids))
    ) == (prefix)


def test_tokens_that_are_no_text_are_left_out() -> None:
    deepseek = family("deepseek")
    template = deepseek.fields(tools=True)
    clean = ignored_tokens(deepseek, template, ["<eos>", "<｜tool▁sep｜>"])

    assert clean("a<eos><｜tool▁calls▁begin｜><｜tool▁sep｜>") == "a<｜tool▁sep｜>"
    assert ignored_tokens(deepseek, None, ["<eos>"])("a<eos>") == "a<eos>"
