"""Messages as templates read them."""

from typing import Any

import pytest

from hfserver.chat.messages import MAX_MESSAGES, MAX_TOOLS, check_tools, read_messages
from kserve.protocol.rest.openai import OpenAIError


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}


def test_joins_the_parts_of_a_content() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert read_messages([{"role": "user", "content": parts}]) == [
        {"role": "user", "content": "a\nb"}
    ]


def test_reads_a_refusal_as_text() -> None:
    parts = [{"type": "refusal", "refusal": "no"}]

    assert read_messages([{"role": "assistant", "content": parts}])[0]["content"] == "no"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        pytest.param('{"x": [1]}', {"x": [1]}, id="text"),
        pytest.param({"x": 1}, {"x": 1}, id="dict"),
        pytest.param("", {}, id="empty"),
        pytest.param(None, {}, id="none"),
    ],
)
def test_reads_the_arguments_of_calls(given: Any, read: Any) -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": [call(given)]}]

    assert read_messages(messages) == [
        {"role": "assistant", "content": "", "tool_calls": [call(read)]}
    ]


def test_names_of_functions_come_first() -> None:
    given = {"function": {"arguments": "{}", "name": "f"}}

    (message,) = read_messages([{"role": "assistant", "tool_calls": [given]}])

    assert list(message["tool_calls"][0]["function"]) == ["name", "arguments"]


def test_leaves_out_what_is_null_or_an_empty_list_of_calls() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "a",
        "tool_calls": [],
        "name": None,
    }

    assert read_messages([message]) == [{"role": "assistant", "content": "a"}]


def test_takes_the_thoughts_out_of_an_earlier_answer() -> None:
    message = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}

    assert read_messages([message], "{% if '</think>' in content %}") == [
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    ]
    assert read_messages([message]) == [message]


@pytest.mark.parametrize(
    ("roles", "role"), [("", "system"), ("{% if message.role == 'developer' %}", "developer")]
)
def test_calls_a_developer_what_the_template_knows(roles: str, role: str) -> None:
    messages = [{"role": "developer", "content": "a"}]

    assert read_messages(messages, roles)[0]["role"] == role


@pytest.mark.parametrize(
    ("message", "param", "text"),
    [
        pytest.param(
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content[0]",
            "expected a part of type 'text', as this model reads nothing else, got 'image_url'",
            id="image",
        ),
        pytest.param(
            {"role": "assistant", "content": [{"type": "refusal"}]},
            "messages[0].content[0]",
            "'messages[0].content[0].refusal': expected a string, got None",
            id="no refusal",
        ),
        pytest.param(
            {"role": "assistant", "tool_calls": [call("{")]},
            "messages[0].tool_calls[0].function.arguments",
            "expected the text of a JSON object, got '{'",
            id="no JSON",
        ),
        pytest.param(
            {"role": "assistant", "tool_calls": [call("[1]")]},
            "messages[0].tool_calls[0].function.arguments",
            "expected the text of a JSON object",
            id="no object",
        ),
        pytest.param(
            {"role": "assistant", "tool_calls": [call(1)]},
            "messages[0].tool_calls[0].function.arguments",
            "expected the text of a JSON object, got 1",
            id="a number",
        ),
        pytest.param(
            {"role": "assistant", "tool_calls": [{"function": {}}]},
            "messages[0].tool_calls[0]",
            "expected an object with a 'function' that has a 'name'",
            id="no name",
        ),
    ],
)
def test_says_which_part_is_wrong(message: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(OpenAIError) as caught:
        read_messages([message])

    error = caught.value.response.error
    assert (caught.value.http_status, error.param) == (400, param)
    assert text in error.message


def test_refuses_more_messages_than_any_model_reads() -> None:
    with pytest.raises(OpenAIError, match=f"at most {MAX_MESSAGES}, got {MAX_MESSAGES + 1}"):
        read_messages([{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1))


def test_refuses_too_many_tools_and_two_of_a_name() -> None:
    tool = {"type": "function", "function": {"name": "f"}}

    with pytest.raises(OpenAIError, match="a name of its own, got 'f' again"):
        check_tools([tool, tool])
    with pytest.raises(OpenAIError, match=f"at most {MAX_TOOLS}, got {MAX_TOOLS + 1}"):
        check_tools([tool] * (MAX_TOOLS + 1))
