"""Calls out of what stands between the tags."""

from typing import Any

import pytest

from hfserver.chat.calls import Call, call_id, read_calls

NAMES = ("f", "g", "a.b")


@pytest.mark.parametrize(
    ("value", "calls"),
    [
        pytest.param({"name": "f", "arguments": {"x": 1}}, [Call("f", '{"x":1}')], id="dict"),
        pytest.param({"name": "f", "arguments": None}, [Call("f", "{}")], id="null"),
        pytest.param({"name": "f", "arguments": '{"x": 1}'}, [Call("f", '{"x":1}')], id="text"),
        pytest.param({"function": {"name": "f", "args": {}}}, [Call("f", "{}")], id="OpenAI's"),
        pytest.param(
            {"function": "f", "arguments": {"x": "ü"}}, [Call("f", '{"x":"ü"}')], id="function"
        ),
        pytest.param(
            '{"name": "f", "arguments": {"x": 99999999999999999999999}}',
            [Call("f", '{"x":99999999999999999999999}')],
            id="large",
        ),
        pytest.param([{"name": "f"}, {"name": "g"}], [Call("f", "{}"), Call("g", "{}")], id="list"),
        pytest.param(' {"name": "f"} {"name": "g"}', [Call("f", "{}"), Call("g", "{}")], id="JSON"),
        pytest.param('f{"x": {"y": []}}', [Call("f", '{"x":{"y":[]}}')], id="named"),
        pytest.param(
            "f(x='a', y=[1, None, True])", [Call("f", '{"x":"a","y":[1,null,true]}')], id="Python"
        ),
        pytest.param(
            "[f(), a.b(x={'y': -1.5})]",
            [Call("f", "{}"), Call("a.b", '{"x":{"y":-1.5}}')],
            id="list in Python",
        ),
    ],
)
def test_reads_calls(value: Any, calls: list[Call]) -> None:
    assert read_calls(value, NAMES) == calls


@pytest.mark.parametrize(
    "value",
    [
        *("", "[]", "{}", "f", "f(1)", "f(x=y)", "f(**x)", "f(x=open('a'))", "f(x={1})", "1 + 1"),
        *('{"name": "other"}', '{"name": 1}', '{"name": "f", "arguments": [1]}', "{" * 5000),
        *('{"name": "f", "arguments": "["}', '{"name": "f", "arguments": {"x": NaN}}', "[" * 5000),
        *('{"name": "f", "arguments": {"x": "\\ud800"}}', 'f{"x": 1} and so on', "f(x=1j)"),
        *(1, None, [1], {"arguments": {}}, '"f"', {"name": "f", "arguments": {"x": float("nan")}}),
    ],
)
def test_refuses_what_is_no_call(value: Any) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_calls(value, NAMES)


def test_ids_differ_and_have_the_length_that_is_wanted() -> None:
    assert call_id(None).startswith("call_")
    assert call_id(None) != call_id(None)
    assert len(call_id(9)) == 9
    assert call_id(9).isalnum()
