"""The fields that are ignored, and those that are refused."""

from typing import Any

import pytest

from kserve.protocol.rest.openai import OpenAIError, fields, reading
from kserve.protocol.rest.openai.paths import APIS

GOOD: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "a"},
    "chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "embeddings": {"input": "a"},
    "rerank": {"query": "a", "documents": ["b"]},
    "score": {"text_1": "a", "text_2": "b"},
    "classify": {"input": "a"},
    "pooling": {"input": "a"},
    "tokenize": {"prompt": "a"},
    "detokenize": {"tokens": [1]},
}

REFUSED = [(api, name) for api in APIS for name in fields.REFUSED[api]]
IGNORED = [(api, name) for api in APIS for name in fields.IGNORED[api]]


def read(api: str, **more: Any) -> Any:
    document = {"model": "m", **GOOD[api], **more}
    return reading.read_request(api, document, "m", "id")


def test_the_tables_are_of_all_apis() -> None:
    assert set(fields.REFUSED) == set(fields.IGNORED) == set(APIS) == set(reading.TYPES)


def test_no_field_is_in_two_places() -> None:
    for api in APIS:
        places = [*fields.IGNORED[api], *fields.REFUSED[api], *reading.TYPES[api].__struct_fields__]
        assert len(places) == len(set(places))


@pytest.mark.parametrize(("api", "name"), REFUSED)
def test_refuses_what_would_change_the_answer(api: str, name: str) -> None:
    with pytest.raises(OpenAIError) as caught:
        read(api, **{name: "something"})

    error = caught.value.response.error
    assert caught.value.http_status == 400
    assert (error.param, error.code) == (name, "unsupported_parameter")
    reason = fields.REFUSED[api][name].reason
    assert error.message == f"'{name}' cannot be 'something': {reason}"


@pytest.mark.parametrize(("api", "name"), REFUSED)
def test_takes_what_asks_for_nothing(api: str, name: str) -> None:
    for harmless in fields.REFUSED[api][name].harmless:
        assert read(api, **{name: harmless}).model == "m"


@pytest.mark.parametrize(("api", "name"), [*IGNORED, *((api, "not_invented_yet") for api in APIS)])
def test_ignores_what_changes_nothing(api: str, name: str) -> None:
    assert read(api, **{name: {"any": ["thing"]}}) == read(api)


def test_1_is_not_true() -> None:
    with pytest.raises(OpenAIError, match="'use_beam_search' cannot be 0"):
        read("completions", use_beam_search=0)


def test_a_suggested_field_is_one_of_the_type() -> None:
    for api, name in REFUSED:
        reason = fields.REFUSED[api][name].reason
        quoted = reason.split("'")[1::2]
        if "use '" in reason:
            assert set(quoted) <= set(reading.TYPES[api].__struct_fields__), (api, name)
