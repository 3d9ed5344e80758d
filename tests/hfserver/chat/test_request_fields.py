"""Each field of OpenAI's and vLLM's requests does what the table says: done, ignored or refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params as completions_params
from openai.types.chat import completion_create_params as chat_params
from tests.hfserver.chat.request_fields import APIS, CHATS, COMPLETIONS, FIELDS, OPENAI, VLLM, rows
from tests.hfserver.chat.request_fields import Field as RequestField
from tests.hfserver.chat.test_chats import make_model, save
from tests.hfserver.chat.tiny_chat import CHATML

from kserve.protocol.rest.openai import fields
from kserve.protocol.rest.openai.types import ChatCompletionRequest, CompletionRequest
from kserve.testing import Response, request, serving

pytestmark = pytest.mark.timeout(120)

PAGE = Path(__file__).parents[3] / "docs" / "openai.md"
HEAD = "| field | `completions` | `chat/completions` | |\n|---|---|---|---|\n"
BASE: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "a", "max_tokens": 4, "temperature": 0},
    CHATS: {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "temperature": 0},
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    templates = {"default": CHATML, "other": CHATML}
    directory = save(tmp_path_factory.mktemp("fields"), template=templates)
    with serving([make_model(directory)]) as port:
        yield port


def send(port: int, field: RequestField, value: Any) -> Response:
    body = {"model": "toy", **BASE[field.api], **field.beside, field.name: value}
    return request(port, "POST", f"/v1/{field.api}", body)


def of(status: str) -> list[Any]:
    found = [field for field in FIELDS if field.status == status]
    return [pytest.param(field, id=f"{field.api}-{field.name}") for field in found]


@pytest.mark.parametrize("field", of("done"))
def test_a_field_that_is_done_is_taken_and_checked(field: RequestField, port: int) -> None:
    answer, refusal = send(port, field, field.good), send(port, field, field.bad)

    assert answer.status == 200, answer.body
    assert refusal.status == 400, refusal.body
    assert str(refusal.json()["error"]["param"]).startswith(field.name)


@pytest.mark.parametrize("field", of("ignored"))
def test_a_field_that_is_ignored_changes_nothing(field: RequestField, port: int) -> None:
    without, answer = (send(port, field, value) for value in (None, field.good))

    assert answer.status == 200, answer.body
    assert answer.json()["choices"] == without.json()["choices"]


@pytest.mark.parametrize("field", of("refused"))
def test_a_field_that_is_refused_says_so(field: RequestField, port: int) -> None:
    refusal, answer = send(port, field, field.bad), send(port, field, field.good)

    error = refusal.json()["error"]
    assert (refusal.status, error["param"]) == (400, field.name)
    assert error["code"] == "unsupported_parameter"
    assert field.name in error["message"]
    assert answer.status == 200, answer.body


def test_a_field_that_nobody_knows_is_ignored(port: int) -> None:
    for api in APIS:
        field = RequestField("not_invented_yet", api, "ignored", "")
        assert send(port, field, {"a": [1]}).status == 200


@pytest.mark.parametrize(
    ("api", "params", "type_"),
    [
        (COMPLETIONS, completions_params.CompletionCreateParamsBase, CompletionRequest),
        (CHATS, chat_params.CompletionCreateParamsBase, ChatCompletionRequest),
    ],
)
def test_the_table_has_every_field(api: str, params: Any, type_: Any) -> None:
    named = {field.name for field in FIELDS if field.api == api}

    # Of the client's own requests, of our types, and of the tables of the core.
    assert set(get_type_hints(params)) <= named
    assert set(type_.__struct_fields__) <= named
    assert {*fields.REFUSED[api], *fields.IGNORED[api]} <= named
    assert len([field for field in FIELDS if field.api == api]) == len(named)


def test_the_page_has_the_table() -> None:
    tables = [each.partition("\n\n")[0] for each in PAGE.read_text().split(HEAD)[1:]]

    assert [table.splitlines() for table in tables] == [rows(OPENAI), rows(VLLM)]
