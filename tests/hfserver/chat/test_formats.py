"""What a request wants its text to be like."""

from typing import Any

import pytest
from tests.hfserver.chat.tiny_chat import make_chat_tokenizer

from hfserver.chat.formats import output_grammar
from hfserver.chat.grammar import GrammarCompiler
from kserve.protocol.rest.openai import OpenAIError
from kserve.protocol.rest.openai.types import ChatCompletionRequest, CompletionRequest


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(make_chat_tokenizer(), eos_ids=[3])


def grammar(compiler: GrammarCompiler, **fields: Any) -> Any:
    return output_grammar(CompletionRequest.model_validate({"prompt": "a", **fields}), compiler)


def named(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


@pytest.mark.parametrize(
    "fields",
    [{}, {"response_format": {"type": "text"}}, {"ignore_eos": True, "min_tokens": 2}],
)
def test_any_text_will_do(fields: Any, compiler: GrammarCompiler) -> None:
    assert grammar(compiler, **fields) is None


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        pytest.param({"response_format": {"type": "json_object"}}, "{", id="json_object"),
        pytest.param({"response_format": named({"type": "array"})}, "[", id="json_schema"),
        pytest.param({"response_format": named(None)}, "{", id="no schema"),
        pytest.param({"structured_outputs": {"json": {"type": "array"}}}, "[", id="json"),
        pytest.param({"structured_outputs": {"json": '{"type": "array"}'}}, "[", id="text"),
        pytest.param({"structured_outputs": {"json_object": True}}, "{", id="object"),
        pytest.param({"structured_outputs": {"regex": "x[0-9]"}}, "x", id="regex"),
        pytest.param({"structured_outputs": {"choice": ["x", "y"]}}, "x", id="choice"),
        pytest.param({"structured_outputs": {"grammar": 'start: "x" | "y"'}}, "x", id="grammar"),
    ],
)
def test_compiles_what_is_wanted(fields: Any, first: str, compiler: GrammarCompiler) -> None:
    found = grammar(compiler, **fields)

    allowed = found.constraint().mask()
    tokenizer = make_chat_tokenizer()
    assert allowed[tokenizer.convert_tokens_to_ids(first)]
    assert not allowed[tokenizer.convert_tokens_to_ids("z")]
    assert not allowed[3]


def test_is_the_same_in_a_chat(compiler: GrammarCompiler) -> None:
    request = ChatCompletionRequest(messages=[], response_format={"type": "json_object"})

    assert output_grammar(request, compiler) is not None


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "got 'xml'"),
        ({"response_format": {}}, "response_format.type", "got None"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "expected an object with a 'schema', got None",
        ),
        (
            {"response_format": named({"not": {}})},
            "response_format.json_schema.schema",
            'Unimplemented keys: ["not"]',
        ),
        (
            {"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}},
            "structured_outputs.json",
            'Unimplemented keys: ["uniqueItems"]',
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "invalid regex"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs",
            "expected one of json, regex, choice, grammar, json_object, got regex, choice",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "got none"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "expected none beside 'response_format', got both",
        ),
        (
            {"structured_outputs": {"regex": "a"}, "ignore_eos": True},
            "ignore_eos",
            "ends where that does, got True",
        ),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, "min_tokens", "got 2"),
    ],
)
def test_says_what_is_wrong(fields: Any, param: str, text: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(OpenAIError) as caught:
        grammar(compiler, **fields)

    error = caught.value.response.error
    assert (caught.value.http_status, error.param) == (400, param)
    assert text in error.message
