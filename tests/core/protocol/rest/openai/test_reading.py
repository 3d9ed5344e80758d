"""Requests out of bodies: what is read, and what is said of what is wrong."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve.protocol.rest.openai import OpenAIError, reading
from kserve.protocol.rest.openai.paths import APIS
from kserve.protocol.rest.openai.types import EmbeddingRequest, StreamOptions

USER = {"role": "user", "content": "a"}


def read(api: str, document: dict[str, Any]) -> Any:
    body = orjson.dumps({"model": "m", **document})
    return reading.read_request(api, reading.read_document(body), "m", "id")


def test_reads_every_field_of_a_completion() -> None:
    request = read(
        "completions",
        {
            "prompt": [[1, 2]],
            "max_tokens": 3,
            "n": 2,
            "temperature": 1,
            "top_p": 0.5,
            "stop": "x",
            "seed": 5,
            "logit_bias": {"7": -100},
            "stream": True,
            "logprobs": 2,
            "stream_options": {"include_usage": True},
            "user": "u",
            "echo": True,
            "top_k": 4,
            "structured_outputs": {"regex": "a+"},
            "best_of": 2,
            "suffix": "",
        },
    )

    assert request.prompts == [[1, 2]]
    assert (request.max_tokens, request.n, request.temperature, request.top_p) == (3, 2, 1.0, 0.5)
    assert (request.stop_texts, request.seed, request.logit_bias) == (["x"], 5, {"7": -100.0})
    assert request.stream_options == StreamOptions(include_usage=True)
    assert request.structured_outputs.regex == "a+"
    assert (request.user, request.echo, request.top_k, request.logprobs) == ("u", True, 4, 2)
    assert (request.model, request.request_id) == ("m", "id")


def test_null_is_what_is_left_out() -> None:
    request = read(
        "completions", {"prompt": "a", "max_tokens": None, "n": None, "suffix": None, "stop": None}
    )

    assert request == read("completions", {"prompt": "a"})
    assert (request.max_tokens, request.n, request.stop_texts) == (16, 1, [])


def test_a_chat_keeps_its_messages_and_tools_as_they_came() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

    request = read(
        "chat/completions",
        {"messages": messages, "tools": tools, "tool_choice": "required", "max_tokens": 5},
    )

    assert (request.messages, request.tools) == (messages, tools)
    assert request.token_limit == 5
    longer = read("chat/completions", {"messages": messages, "max_completion_tokens": 9})
    assert longer.token_limit == 9


def test_normalizes_the_forms_of_texts() -> None:
    assert read("embeddings", {"input": "a"}).inputs == ["a"]
    assert read("embeddings", {"input": ["a", "b"]}).inputs == ["a", "b"]
    assert read("embeddings", {"input": [1, 2]}).inputs == [[1, 2]]
    assert read("embeddings", {"input": [[1], [2]]}).inputs == [[1], [2]]
    assert read("rerank", {"query": "q", "documents": ["a", {"text": "b"}]}).texts == ["a", "b"]
    assert read("score", {"text_1": "a", "text_2": ["b", "c"]}).pairs == [("a", "b"), ("a", "c")]
    assert read("score", {"queries": ["a", "b"], "documents": ["c", "d"]}).pairs == [
        ("a", "c"),
        ("b", "d"),
    ]


def test_the_client_s_request_id_stays() -> None:
    assert read("embeddings", {"input": "a", "request_id": "mine"}).request_id == "mine"


TEXTS = "a text, a list of texts, a list of token ids, or a list of such lists"
MISSING, TYPE, VALUE = "missing_required_parameter", "invalid_type", "invalid_value"
UNSUPPORTED = "unsupported_parameter"

WRONG = [
    ("completions", {}, "prompt", MISSING, "missing required parameter 'prompt'"),
    (
        "completions",
        {"prompt": 5},
        "prompt",
        TYPE,
        "'prompt': expected a string or an array, got 5",
    ),
    ("completions", {"prompt": []}, "prompt", VALUE, f"'prompt': expected {TEXTS}, got []"),
    (
        "completions",
        {"prompt": "a", "temperature": "hot"},
        "temperature",
        TYPE,
        "'temperature': expected a number, got 'hot'",
    ),
    (
        "completions",
        {"prompt": "a", "temperature": -1},
        "temperature",
        VALUE,
        "'temperature': expected a number >= 0.0, got -1",
    ),
    ("completions", {"prompt": "a", "n": 0}, "n", VALUE, "'n': expected an integer >= 1, got 0"),
    ("completions", {"prompt": "a", "n": True}, "n", TYPE, "'n': expected an integer, got True"),
    (
        "completions",
        {"prompt": "a", "best_of": 3},
        "best_of",
        UNSUPPORTED,
        "'best_of': expected 1, as 'n' is, got 3",
    ),
    (
        "completions",
        {"prompt": "a", "suffix": "b"},
        "suffix",
        UNSUPPORTED,
        "'suffix' is not supported: a text is only ever continued",
    ),
    (
        "completions",
        {"prompt": "a", "stream_options": {}},
        "stream_options",
        VALUE,
        "'stream_options' is only for a stream: expected 'stream' to be true, got false",
    ),
    (
        "completions",
        {"prompt": "a", "stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        TYPE,
        "'stream_options.include_usage': expected a boolean, got 1",
    ),
    (
        "completions",
        {"prompt": "a", "logit_bias": {"a": 1}},
        "logit_bias",
        VALUE,
        "'logit_bias': expected token ids as keys, got 'a'",
    ),
    (
        "completions",
        {"prompt": "a", "logit_bias": {"1": 101}},
        "logit_bias[...]",
        VALUE,
        "'logit_bias[...]': expected a number <= 100.0, got {'1': 101}",
    ),
    ("chat/completions", {}, "messages", MISSING, "missing required parameter 'messages'"),
    (
        "chat/completions",
        {"messages": []},
        "messages",
        VALUE,
        "'messages': expected at least one message, got []",
    ),
    (
        "chat/completions",
        {"messages": [USER, 5]},
        "messages[1]",
        TYPE,
        "'messages[1]': expected an object, got 5",
    ),
    (
        "chat/completions",
        {"messages": [{"content": "a"}]},
        "messages[0].role",
        MISSING,
        "missing required parameter 'messages[0].role'",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "robot", "content": "a"}]},
        "messages[0].role",
        VALUE,
        "'messages[0].role': expected one of system, developer, user, assistant, tool, function, "
        "got 'robot'",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user"}]},
        "messages[0].content",
        MISSING,
        "missing required parameter 'messages[0].content'",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": 5}]},
        "messages[0].content",
        TYPE,
        "'messages[0].content': expected a string or a list of parts, got 5",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": ["a"]}]},
        "messages[0].content[0]",
        TYPE,
        "'messages[0].content[0]': expected an object with a 'type', got 'a'",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        TYPE,
        "'messages[0].content[0].text': expected a string, got None",
    ),
    (
        "chat/completions",
        {"messages": [USER], "top_logprobs": 1},
        "top_logprobs",
        VALUE,
        "'top_logprobs' needs 'logprobs': expected it to be true, got false",
    ),
    (
        "chat/completions",
        {"messages": [USER], "continue_final_message": True},
        "continue_final_message",
        VALUE,
        "'continue_final_message' and 'add_generation_prompt' cannot both be true",
    ),
    (
        "chat/completions",
        {"messages": [USER], "tools": [{"type": "retrieval"}]},
        "tools[0].type",
        VALUE,
        "'tools[0].type': expected 'function', got 'retrieval'",
    ),
    (
        "chat/completions",
        {"messages": [USER], "tools": [{"type": "function"}]},
        "tools[0].function",
        TYPE,
        "'tools[0].function': expected an object, got None",
    ),
    (
        "chat/completions",
        {"messages": [USER], "tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        TYPE,
        "'tools[0].function.name': expected a string, got None",
    ),
    (
        "chat/completions",
        {
            "messages": [USER],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": []}}],
        },
        "tools[0].function.parameters",
        TYPE,
        "'tools[0].function.parameters': expected an object, got []",
    ),
    (
        "chat/completions",
        {"messages": [USER], "tool_choice": "always"},
        "tool_choice",
        VALUE,
        "'tool_choice': expected none, auto, required or an object, got 'always'",
    ),
    (
        "chat/completions",
        {"messages": [USER], "tool_choice": "required"},
        "tool_choice",
        VALUE,
        "'tool_choice' needs 'tools': expected at least one, got none",
    ),
    ("embeddings", {}, "input", MISSING, "missing required parameter 'input'"),
    ("embeddings", {"input": []}, "input", VALUE, f"'input': expected {TEXTS}, got []"),
    ("embeddings", {"input": ["a", 1]}, "input", TYPE, f"'input': expected {TEXTS}, got ['a', 1]"),
    ("embeddings", {"input": [1.5]}, "input", TYPE, f"'input': expected {TEXTS}, got [1.5]"),
    ("embeddings", {"input": [-1]}, "input", VALUE, "'input': expected token ids from 0, got -1"),
    (
        "embeddings",
        {"input": [[1], []]},
        "input[1]",
        VALUE,
        "'input[1]': expected at least one token id, got []",
    ),
    (
        "embeddings",
        {"input": [[1], ["a"]]},
        "input[1]",
        TYPE,
        "'input[1]': expected token ids, got ['a']",
    ),
    (
        "embeddings",
        {"input": "a", "encoding_format": "int8"},
        "encoding_format",
        VALUE,
        "'encoding_format': expected one of float, base64, got 'int8'",
    ),
    (
        "embeddings",
        {"input": "a", "dimensions": 0},
        "dimensions",
        VALUE,
        "'dimensions': expected an integer >= 1, got 0",
    ),
    (
        "embeddings",
        {"input": "a", "truncation": "middle"},
        "truncation",
        VALUE,
        "'truncation': expected one of none, left, right, got 'middle'",
    ),
    ("rerank", {"documents": ["a"]}, "query", MISSING, "missing required parameter 'query'"),
    (
        "rerank",
        {"query": "q", "documents": []},
        "documents",
        VALUE,
        "'documents': expected at least one document, got []",
    ),
    (
        "rerank",
        {"query": "q", "documents": [{"title": "a"}]},
        "documents[0]",
        TYPE,
        "'documents[0]': expected a text, or an object with a 'text', got {'title': 'a'}",
    ),
    ("score", {"text_1": "a"}, "text_2", MISSING, "missing required parameter 'text_2'"),
    (
        "score",
        {"text_1": "a", "queries": "a", "text_2": "b"},
        "queries",
        VALUE,
        "'text_1' and 'queries' are the same: expected one of them, got both",
    ),
    (
        "score",
        {"text_1": ["a", "b"], "text_2": ["c"]},
        "text_1",
        VALUE,
        "'text_1': expected one text or as many as 'text_2' has, 1, got 2",
    ),
    (
        "score",
        {"text_1": "a", "text_2": []},
        "text_2",
        VALUE,
        "'text_2': expected at least one text, got []",
    ),
    ("tokenize", {}, "prompt", MISSING, "expected either 'prompt' or 'messages', got neither"),
    (
        "tokenize",
        {"prompt": "a", "messages": [USER]},
        "prompt",
        VALUE,
        "expected either 'prompt' or 'messages', got both",
    ),
    (
        "tokenize",
        {"messages": [{}]},
        "messages[0].role",
        MISSING,
        "missing required parameter 'messages[0].role'",
    ),
    (
        "detokenize",
        {"tokens": [1, -1]},
        "tokens[1]",
        VALUE,
        "'tokens[1]': expected an integer >= 0, got -1",
    ),
]


@pytest.mark.parametrize(("api", "document", "param", "code", "message"), WRONG)
def test_says_what_was_expected_and_what_came(
    api: str, document: dict[str, Any], param: str, code: str, message: str
) -> None:
    with pytest.raises(OpenAIError) as caught:
        read(api, document)

    error = caught.value.response.error
    assert (error.param, error.code, error.message) == (param, code, message)
    assert (caught.value.http_status, error.type) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"[1]", "invalid_type", "expected the body to be a JSON object, got an array"),
        (b"null", "invalid_type", "expected the body to be a JSON object, got null"),
        (b"1", "invalid_type", "expected the body to be a JSON object, got a number"),
        (b"true", "invalid_type", "expected the body to be a JSON object, got a boolean"),
    ],
)
def test_takes_only_an_object(body: bytes, code: str, message: str) -> None:
    with pytest.raises(OpenAIError) as caught:
        reading.read_document(body)

    error = caught.value.response.error
    assert (error.code, error.message) == (code, message)


def test_the_model_is_a_string_or_the_only_one() -> None:
    assert reading.read_model({}, "only") == "only"
    assert reading.read_model({"model": "m"}, "only") == "m"
    with pytest.raises(OpenAIError, match="'model': expected a string, got 5"):
        reading.read_model({"model": 5}, "only")


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(OpenAIError) as caught:
        read("embeddings", {"input": ["a" * 10_000, 1]})

    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(
    sorted({name for kind in reading.TYPES.values() for name in kind.__struct_fields__})
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.sampled_from(APIS), st.dictionaries(names, json_values, max_size=8))
def test_any_object_is_a_request_or_refused(api: str, document: dict[str, Any]) -> None:
    try:
        given_document = reading.read_document(orjson.dumps(document))
        request = reading.read_request(api, given_document, "m", "id")
    except OpenAIError as exc:
        assert exc.http_status == 400
    else:
        assert type(request) is reading.TYPES[api]
        assert request.model == "m"


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    try:
        assert isinstance(reading.read_document(body), dict)
    except OpenAIError as exc:
        assert exc.http_status == 400


def test_makes_types_of_ours() -> None:
    assert isinstance(read("embeddings", {"input": "a"}), EmbeddingRequest)
