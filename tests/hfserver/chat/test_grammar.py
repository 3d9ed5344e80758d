"""Tokens that a grammar allows: random ones of them always make what it describes."""

import gc
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest
import torch
from llguidance import LLMatcher
from numpy.typing import NDArray
from tests.hfserver.chat.tiny_chat import make_chat_tokenizer

from hfserver.chat import grammar as grammar_module
from hfserver.chat.grammar import (
    MAX_GRAMMAR_CHARS,
    AfterThoughts,
    Constraint,
    Grammar,
    GrammarCompiler,
)
from kserve.errors import InvalidInput
from kserve.protocol.rest.openai import OpenAIError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"lat": {"type": "number"}, "far": {"type": ["boolean", "null"]}},
            "required": ["lat", "far"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_chat_tokenizer()


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> GrammarCompiler:
    # A model has more logits than its tokenizer has tokens.
    return GrammarCompiler(tokenizer, n_vocabulary=len(tokenizer) + 28, eos_ids=[3, 1])


def generate(constraint: Constraint, tokenizer: Any, seed: int, n_tokens: int = 400) -> str:
    """Sample from random logits until the end."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for _ in range(n_tokens):
        logits = torch.randn(len(tokenizer) + 28, generator=generator)
        # A number of any length is JSON: let most end.
        logits[[tokenizer.convert_tokens_to_ids(each) for each in ',"}]']] += 3
        constraint.apply(logits)
        token_id = int(torch.multinomial(logits.softmax(0), 1, generator=generator))
        constraint.accept(token_id)
        if token_id in (1, 3):
            return str(tokenizer.decode(ids))
        ids.append(token_id)
    raise AssertionError(f"no end: {tokenizer.decode(ids)}")


@pytest.mark.parametrize("seed", range(20))
def test_makes_what_a_schema_describes(seed: int, compiler: Any, tokenizer: Any) -> None:
    text = generate(compiler.json_schema(SCHEMA, "s").constraint(), tokenizer, seed)

    value = orjson.loads(text)
    jsonschema.validate(value, SCHEMA)
    assert text == text.strip()
    assert not re.search(r"[{,:\[]\s", re.sub(r'"(\\.|[^"\\])*"', '""', text))


@pytest.mark.parametrize("seed", range(20))
def test_makes_what_an_expression_describes(seed: int, compiler: Any, tokenizer: Any) -> None:
    pattern = r"(cat|dog)-[0-9]{2,4}(\.[a-z]{1,3})?"

    text = generate(compiler.regex(pattern, "r").constraint(), tokenizer, seed)

    assert re.fullmatch(pattern, text)


def test_makes_each_of_some_texts(compiler: Any, tokenizer: Any) -> None:
    texts = ["yes", 'no "really"', "päx\n", "<think>"]
    grammar = compiler.choice(texts, "c")

    assert {generate(grammar.constraint(), tokenizer, seed) for seed in range(60)} == set(texts)


@pytest.mark.parametrize(
    "grammar",
    [
        pytest.param('start: num ("+" num)*\nnum: /[0-9]{1,2}/', id="Lark"),
        pytest.param('root ::= num ("+" num)*\nnum ::= [0-9] [0-9]?', id="GBNF"),
    ],
)
def test_makes_what_a_grammar_describes(grammar: str, compiler: Any, tokenizer: Any) -> None:
    for seed in range(5):
        text = generate(compiler.lark(grammar, "g").constraint(), tokenizer, seed)

        assert re.fullmatch(r"\d{1,2}(\+\d{1,2})*", text)


def test_white_space_is_allowed_where_it_is_wanted(compiler: Any, tokenizer: Any) -> None:
    schema = {"type": "array", "items": False, "maxItems": 0}
    space = tokenizer.encode(" ", add_special_tokens=False)[0]

    def allows_space(*, is_compact: bool) -> bool:
        constraint = compiler.json_schema(schema, "s", is_compact=is_compact).constraint()
        constraint.accept(tokenizer.convert_tokens_to_ids("["))
        return bool(constraint.mask()[space])

    assert not allows_space(is_compact=True)
    assert allows_space(is_compact=False)


def test_ends_only_where_the_grammar_does(compiler: Any, tokenizer: Any) -> None:
    constraint = compiler.regex("aa?", "r").constraint()
    a = tokenizer.convert_tokens_to_ids("a")

    before = constraint.mask()
    constraint.accept(a)
    amid = constraint.mask()
    constraint.accept(a)
    after = constraint.mask()

    assert not before[[1, 3]].any()
    assert amid[[1, 3, a]].all()
    assert np.flatnonzero(after).tolist() == [1, 3]


def test_masks_logits_beyond_the_tokens(compiler: Any, tokenizer: Any) -> None:
    logits = torch.zeros(len(tokenizer) + 100)

    compiler.regex("ab", "r").constraint().apply(logits)

    assert set(logits.tolist()) == {0.0, -torch.inf}
    assert torch.isinf(logits[len(tokenizer) :]).all()


def test_sequences_of_one_grammar_do_not_meet(compiler: Any, tokenizer: Any) -> None:
    grammar = compiler.regex("ab", "r")
    first, second = grammar.constraint(), grammar.constraint()
    a = tokenizer.convert_tokens_to_ids("a")

    first.accept(a)

    assert first.mask()[tokenizer.convert_tokens_to_ids("b")]
    assert not second.mask()[tokenizer.convert_tokens_to_ids("b")]


def test_a_token_that_is_not_allowed_is_an_error_of_the_request(compiler: Any) -> None:
    constraint = compiler.regex("ab", "r").constraint()

    with pytest.raises(InvalidInput, match="the grammar cannot be followed"):
        constraint.accept(40)
    with pytest.raises(InvalidInput, match="the grammar cannot be followed"):
        constraint.mask()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda c: c.json_schema({"not": {}}, "p"), '["not"]', id="not"),
        pytest.param(
            lambda c: c.json_schema({"type": "array", "uniqueItems": True}, "p"),
            '["uniqueItems"]',
            id="uniqueItems",
        ),
        pytest.param(lambda c: c.json_schema({"type": "x"}, "p"), "Invalid type: x", id="type"),
        pytest.param(lambda c: c.json_schema({"$ref": "#/x"}, "p"), "'/x' does not", id="$ref"),
        pytest.param(
            lambda c: c.json_schema({"$ref": "http://x.test/y"}, "p"), "http://x.test/y", id="host"
        ),
        pytest.param(lambda c: c.json_schema(False, "p"), "expected a JSON schema", id="false"),
        pytest.param(lambda c: c.json_schema([], "p"), "expected a JSON schema, got []", id="list"),
        pytest.param(lambda c: c.json_schema("{", "p"), "expected a JSON schema", id="no JSON"),
        pytest.param(lambda c: c.json_schema("[1]", "p"), "expected a JSON schema", id="text"),
        pytest.param(
            lambda c: c.json_schema({"minimum": 2, "maximum": 1, "type": "integer"}, "p"),
            "Unsatisfiable schema",
            id="nothing",
        ),
        pytest.param(lambda c: c.regex("(", "p"), "invalid regex", id="regex"),
        pytest.param(lambda c: c.regex("(?=a)b", "p"), "look-around", id="look-around"),
        pytest.param(lambda c: c.choice([], "p"), "at least one text, got none", id="choice"),
        pytest.param(lambda c: c.lark("start: x", "p"), "unknown name", id="Lark"),
        pytest.param(lambda c: c.lark("root ::= (", "p"), "'p': ", id="GBNF"),
        pytest.param(
            lambda c: c.regex("a" * (MAX_GRAMMAR_CHARS + 1), "p"),
            f"at most {MAX_GRAMMAR_CHARS} characters, got {MAX_GRAMMAR_CHARS + 1}",
            id="size",
        ),
        pytest.param(
            lambda c: c.json_schema({"const": "a" * MAX_GRAMMAR_CHARS}, "p"), "at most", id="schema"
        ),
        pytest.param(
            lambda c: c.json_schema('"' + "a" * MAX_GRAMMAR_CHARS + '"', "p"), "at most", id="long"
        ),
    ],
)
def test_says_what_cannot_be_kept(
    make: Callable[[GrammarCompiler], Grammar], text: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(OpenAIError) as caught:
        make(compiler)

    error = caught.value.response.error
    assert (caught.value.http_status, error.param) == (400, "p")
    assert text in error.message
    assert "\n" not in error.message


def test_true_is_a_schema_of_anything(compiler: Any, tokenizer: Any) -> None:
    assert compiler.json_schema(True, "p").constraint().mask().sum() > 5


def test_compiles_a_grammar_once_and_keeps_the_latest(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "_MAX_COMPILED", 2)
    compiler = GrammarCompiler(tokenizer, eos_ids=[3])

    first = compiler.regex("a", "p")
    compiler.regex("b", "p")
    assert compiler.regex("a", "p") is first
    compiler.regex("c", "p")

    assert compiler.regex("a", "p") is first
    assert len(compiler._compiled) == 2


def test_a_sequence_outlives_its_grammar(compiler: Any, tokenizer: Any) -> None:
    constraint = GrammarCompiler(tokenizer, eos_ids=[3]).regex("ab", "p").constraint()
    gc.collect()

    assert generate(constraint, tokenizer, 0) == "ab"


def test_needs_a_fast_tokenizer() -> None:
    with pytest.raises(InvalidInput, match="fast tokenizer"):
        GrammarCompiler(object(), eos_ids=[1])


@pytest.mark.parametrize("text", ["", "a", "<think>", "a<think>\n</think>b", 'ü"\\<|im_start|>'])
def test_writes_texts_with_tags_as_tokens(text: str, compiler: Any, tokenizer: Any) -> None:
    compiled = compiler.compile(f'start: {compiler.literal(text)} "."', "p")

    assert generate(compiled.constraint(), tokenizer, 1) == f"{text}."
    if "<think>" in text:
        assert "<[802]>" in compiler.literal(text)


class TestAfterThoughts:
    def make(self, compiler: Any, tokenizer: Any, **kwargs: Any) -> AfterThoughts:
        return AfterThoughts(
            compiler.regex("ab", "r").constraint(),
            decode=tokenizer.decode,
            closing="</think>",
            eos_ids=compiler.eos_ids,
            **{"opening_id": None, "is_thinking": False, **kwargs},
        )

    def test_thoughts_that_the_prompt_begins_are_free(self, compiler: Any, tokenizer: Any) -> None:
        constraint = self.make(compiler, tokenizer, is_thinking=True)

        first = constraint.mask()
        for token_id in tokenizer.encode("x y</think>", add_special_tokens=False):
            constraint.accept(token_id)

        assert not first[[1, 3]].any()
        assert first.sum() == len(first) - 2
        assert generate(constraint, tokenizer, 0) == "ab"

    def test_the_model_may_begin_thoughts(self, compiler: Any, tokenizer: Any) -> None:
        constraint = self.make(compiler, tokenizer, opening_id=802)

        first = constraint.mask()
        constraint.accept(802)
        amid = constraint.mask()
        constraint.accept(803)
        after = constraint.mask()

        assert first[802] and not first[40]
        assert amid.sum() == len(amid) - 2
        assert not after[802] and not after[40]

    def test_the_model_may_begin_none(self, compiler: Any, tokenizer: Any) -> None:
        constraint = self.make(compiler, tokenizer, opening_id=802)
        a = tokenizer.convert_tokens_to_ids("a")

        constraint.accept(a)
        after: NDArray[np.bool_] = constraint.mask()

        assert not after[802]
        assert generate(constraint, tokenizer, 0) == "b"

    def test_a_closing_tag_may_be_of_several_tokens(self, compiler: Any, tokenizer: Any) -> None:
        constraint = self.make(compiler, tokenizer, is_thinking=True)

        for char in "so</think>":
            constraint.accept(tokenizer.encode(char, add_special_tokens=False)[0])

        assert generate(constraint, tokenizer, 0) == "ab"


def test_matchers_write_nothing_to_the_log(
    compiler: Any, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidInput):
        compiler.regex("ab", "r").constraint().accept(40)

    assert capfd.readouterr() == ("", "")


def test_random_walks_of_the_bare_library_agree(compiler: Any, tokenizer: Any) -> None:
    matcher = LLMatcher(compiler._tokenizer, LLMatcher.grammar_from_regex("[ab]{3}"), log_level=0)
    constraint = compiler.regex("[ab]{3}", "r").constraint()
    draw = random.Random(0)
    while not matcher.is_stopped():
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits).tolist()

        assert np.flatnonzero(constraint.mask()).tolist() == allowed

        token_id = draw.choice(allowed)
        assert matcher.consume_token(token_id)
        constraint.accept(token_id)
