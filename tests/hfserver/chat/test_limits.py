"""Limits of a request for text, each with a 400 that says what was expected and what came."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.hfserver.chat.test_chats import USER, WEATHER, make_model, save

from hfserver.chat.grammar import MAX_GRAMMAR_CHARS
from hfserver.chat.messages import MAX_MESSAGES, MAX_TOOLS
from hfserver.generation.params import MAX_BIASES, MAX_STOPS
from kserve.testing import Response, request, serving

pytestmark = pytest.mark.timeout(120)

BASE: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "a", "max_tokens": 1},
    "chat/completions": {"messages": USER, "max_tokens": 1},
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serving([make_model(save(tmp_path_factory.mktemp("limits")))]) as port:
        yield port


def ask(port: int, api: str, **more: Any) -> Response:
    return request(port, "POST", f"/v1/{api}", {"model": "toy", **BASE[api], **more})


def schema(n_characters: int) -> dict[str, Any]:
    """Give a schema of about so many characters in JSON."""
    return {"type": "object", "description": "x" * n_characters}


def tools(count: int) -> list[Any]:
    return [
        {"type": "function", "function": {**WEATHER["function"], "name": f"f{index}"}}
        for index in range(count)
    ]


def form(n_characters: int) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(n_characters)}}


def large_tool(n_characters: int) -> list[Any]:
    return [
        {"type": "function", "function": {"name": "f", "parameters": schema(n_characters)}},
    ]


# Of each field the value at the limit and beyond it, what the error names, and what it says.
BOTH: dict[str, tuple[Any, Any, str | None, str]] = {
    # That of --max_num_seqs here.
    "n": (32, 33, None, "n: expected 1 to 32, got 33"),
    "stop": (["@"] * MAX_STOPS, ["@"] * (MAX_STOPS + 1), "stop", "at most 64, got 65"),
    "logit_bias": (
        {str(token): 0 for token in range(800)},
        {str(token): 0 for token in range(MAX_BIASES + 1)},
        "logit_bias",
        "at most 1024, got 1025",
    ),
    "response_format": (
        form(MAX_GRAMMAR_CHARS - 200),
        form(MAX_GRAMMAR_CHARS),
        "response_format.json_schema.schema",
        f"{MAX_GRAMMAR_CHARS}",
    ),
    "structured_outputs": (
        {"choice": ["a" * 1000]},
        {"choice": ["a" * MAX_GRAMMAR_CHARS]},
        "structured_outputs.choice",
        f"{MAX_GRAMMAR_CHARS}",
    ),
}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("api", BASE)
def test_what_both_have(api: str, name: str, port: int) -> None:
    most, more, param, message = BOTH[name]

    answer, refusal = ask(port, api, **{name: most}), ask(port, api, **{name: more})

    assert answer.status == 200, answer.body
    error = refusal.json()["error"]
    assert (refusal.status, error["param"]) == (400, param)
    assert message in error["message"]


def test_messages_of_a_chat(port: int) -> None:
    refusal = ask(port, "chat/completions", messages=USER * (MAX_MESSAGES + 1))

    error = refusal.json()["error"]
    assert (refusal.status, error["param"]) == (400, "messages")
    assert error["message"] == "'messages': expected at most 4096, got 4097"


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_tools_of_a_chat(choice: str, port: int) -> None:
    def many(count: int) -> Response:
        # The prompt would have more than the context holds.
        more = {"tools": tools(count), "tool_choice": choice, "truncate_prompt_tokens": 100}
        return ask(port, "chat/completions", **more)

    answer, refusal = many(MAX_TOOLS), many(MAX_TOOLS + 1)

    assert answer.status == 200, answer.body
    error = refusal.json()["error"]
    assert (refusal.status, error["param"]) == (400, "tools")
    assert error["message"] == "'tools': expected at most 128, got 129"


def test_the_schema_of_a_tool(port: int) -> None:
    refusal = ask(
        port,
        "chat/completions",
        tools=large_tool(MAX_GRAMMAR_CHARS),
        tool_choice="required",
        truncate_prompt_tokens=100,
    )

    error = refusal.json()["error"]
    assert (refusal.status, error["param"]) == (400, "tools[0].function.parameters")
    assert str(MAX_GRAMMAR_CHARS) in error["message"]
