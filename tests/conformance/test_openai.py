"""OpenAI's routes: every server that has them, by its clients and by plain requests."""

import asyncio
import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import orjson
import pytest

from kserve.protocol.rest.openai import fields
from kserve.protocol.rest.openai.paths import APIS, OpenAIPaths

if TYPE_CHECKING:
    from tests.conformance.servers import OpenAI, RunningServer

    from kserve.testing import Response

PATHS = OpenAIPaths().by_path


def row(server: "RunningServer") -> "OpenAI":
    entry = server.entry.openai
    assert entry is not None
    return entry


def ask(server: "RunningServer", api: str, **more: Any) -> "Response":
    body = {"model": server.entry.model_name, **row(server).requests[api], **more}
    return server.request("POST", f"/v1/{api}", body)


def has(answer: Any, expected: Any, tolerance: float) -> bool:
    """Say whether an answer has all that is expected; more fields of objects are fine."""
    if isinstance(expected, dict):
        return set(expected) <= set(answer) and all(
            has(answer[key], value, tolerance) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return len(answer) == len(expected) and all(
            has(got, value, tolerance) for got, value in zip(answer, expected, strict=True)
        )
    if isinstance(expected, float | int) and not isinstance(expected, bool):
        return bool(answer == pytest.approx(expected, rel=tolerance, abs=tolerance))
    return bool(answer == expected)


def error(response: "Response") -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert list(response.json()) == ["error"]
    result: dict[str, Any] = response.json()["error"]
    assert list(result) == ["message", "type", "param", "code"]
    assert result["message"]
    return result


def test_answers_each_api_on_all_of_its_paths(openai_server: "RunningServer") -> None:
    entry = row(openai_server)
    assert set(entry.requests) == set(entry.answers)
    for path, api in PATHS.items():
        if api not in entry.requests:
            continue
        body = {"model": openai_server.entry.model_name, **entry.requests[api]}
        response = openai_server.request("POST", path, {**body, "return_documents": True})

        assert response.status == 200, (path, response.body)
        assert response.headers["content-type"] == "application/json"
        assert has(response.json(), entry.answers[api], entry.tolerance), (path, response.body)
        assert response.json().get("model") in (None, openai_server.entry.model_name)


def test_says_which_apis_it_does_not_have(openai_server: "RunningServer") -> None:
    messages = [{"role": "user", "content": "a"}]
    texts = dict.fromkeys(("prompt", "input", "query", "text_1", "text_2"), "a")
    good: dict[str, Any] = {**texts, "messages": messages, "documents": ["a"], "tokens": [1]}
    for api in set(APIS) - set(row(openai_server).requests):
        body = {"model": openai_server.entry.model_name, **good}
        for name in fields.REFUSED[api]:
            body.pop(name, None)
        if api == "tokenize":
            del body["messages"]
        if api == "score":
            del body["documents"]

        response = openai_server.request("POST", f"/v1/{api}", body)

        assert (response.status, error(response)["code"]) == (400, "unsupported_api"), api


def test_vectors_have_the_same_bits_as_numbers_and_as_base64(
    openai_server: "RunningServer",
) -> None:
    if "embeddings" not in row(openai_server).requests:
        pytest.skip("no embeddings")

    numbers = ask(openai_server, "embeddings").json()["data"]
    texts = ask(openai_server, "embeddings", encoding_format="base64").json()["data"]

    for as_numbers, as_text in zip(numbers, texts, strict=True):
        expected = np.array(as_numbers["embedding"], "<f4").tobytes()
        assert base64.b64decode(as_text["embedding"], validate=True) == expected


def test_takes_texts_as_token_ids(openai_server: "RunningServer") -> None:
    tokens, tolerance = row(openai_server).tokens, row(openai_server).tolerance
    if tokens is None:
        pytest.skip("no token ids in the table")
    expected = ask(openai_server, "embeddings").json()["data"][0]["embedding"]

    for value in (tokens, [tokens], [tokens, tokens]):
        data = ask(openai_server, "embeddings", input=value).json()["data"]
        assert has([item["embedding"] for item in data], [expected] * len(data), tolerance)


def test_cuts_vectors_to_the_length_one(openai_server: "RunningServer") -> None:
    n_dimensions = row(openai_server).n_dimensions
    if n_dimensions is None:
        pytest.skip("vectors cannot be cut")

    data = ask(openai_server, "embeddings", dimensions=n_dimensions).json()["data"]
    too_many = ask(openai_server, "embeddings", dimensions=1_000_000)

    for item in data:
        assert len(item["embedding"]) == n_dimensions
        assert np.linalg.norm(item["embedding"]) == pytest.approx(1, abs=1e-5)
    assert (too_many.status, error(too_many)["param"]) == (400, "dimensions")


def test_the_client_reads_every_answer(openai_server: "RunningServer") -> None:
    entry, model = row(openai_server), openai_server.entry.model_name
    url = f"http://127.0.0.1:{openai_server.port}/openai/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        calls: dict[str, Callable[..., Any]] = {
            "embeddings": client.embeddings.create,
            "completions": client.completions.create,
            "chat/completions": client.chat.completions.create,
        }
        for api in calls.keys() & entry.requests.keys():
            answer = calls[api](model=model, **entry.requests[api]).model_dump()
            assert has(answer, entry.answers[api], max(entry.tolerance, 1e-7)), api
        assert [each.id for each in client.models.list()] == [model]
        assert client.models.retrieve(model).id == model
        with pytest.raises(openai.NotFoundError) as caught:
            client.embeddings.create(model="InvalidModel", input="a")
        assert caught.value.code == "model_not_found"


def test_the_async_client_gets_many_answers_at_once(openai_server: "RunningServer") -> None:
    entry, model = row(openai_server), openai_server.entry.model_name
    if "embeddings" not in entry.requests:
        pytest.skip("no embeddings")

    async def embed() -> list[Any]:
        url = f"http://127.0.0.1:{openai_server.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            create = client.embeddings.create
            return await asyncio.gather(
                *(create(model=model, **entry.requests["embeddings"]) for _ in range(16))
            )

    for answer in asyncio.run(embed()):
        expected = entry.answers["embeddings"]
        assert has(answer.model_dump(), expected, max(entry.tolerance, 1e-7))


def chunks_of(response: "Response") -> list[Any]:
    """Give the chunks of a stream, all of whose bytes are as they must be."""
    *events, done, end = response.body.decode().split("\n\n")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (done, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    return [orjson.loads(event.removeprefix("data: ")) for event in events]


def test_streams_events_to_the_letter(openai_server: "RunningServer") -> None:
    for api, text in row(openai_server).texts.items():
        chunks = chunks_of(ask(openai_server, api, stream=True))

        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        assert not any("usage" in chunk for chunk in chunks)
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        for index in {choice["index"] for choice in choices}:
            own = [choice for choice in choices if choice["index"] == index]
            pieces = [each.get("text") or each.get("delta", {}).get("content") for each in own]
            assert index or "".join(filter(None, pieces)) == text
            reasons = [choice["finish_reason"] for choice in own]
            assert reasons[-1] is not None and not any(reasons[:-1])
            if api == "chat/completions":
                roles = [choice["delta"].get("role") for choice in own]
                assert roles == ["assistant", *[None] * (len(roles) - 1)]


def test_a_stream_has_its_usage_in_a_chunk_of_its_own(openai_server: "RunningServer") -> None:
    for api in row(openai_server).texts:
        whole = ask(openai_server, api).json()["usage"]
        options = {"include_usage": True}
        *chunks, last = chunks_of(ask(openai_server, api, stream=True, stream_options=options))

        assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
        assert last["choices"] == []
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert [last["usage"][name] for name in names] == [whole[name] for name in names]


def test_refuses_more_than_its_context_with_a_status(openai_server: "RunningServer") -> None:
    for api in row(openai_server).texts:
        for is_streamed in (False, True):
            response = ask(openai_server, api, stream=is_streamed, max_tokens=1_000_000)

            assert response.status == 400
            assert error(response)["code"] == "context_length_exceeded"


def test_refuses_suffix_and_best_of(openai_server: "RunningServer") -> None:
    if "completions" not in row(openai_server).requests:
        pytest.skip("no completions")
    for name, value in {"suffix": "x", "best_of": 2}.items():
        response = ask(openai_server, "completions", **{name: value})

        assert response.status == 400
        assert error(response)["code"] == "unsupported_parameter"
        assert error(response)["param"] == name
    assert ask(openai_server, "completions", suffix="", best_of=1).status == 200


def test_lists_its_model_for_both_protocols(openai_server: "RunningServer") -> None:
    name = openai_server.entry.model_name

    alone = openai_server.request("GET", "/openai/v1/models").json()
    shared = openai_server.request("GET", "/v1/models").json()

    assert (alone["object"], [each["id"] for each in alone["data"]]) == ("list", [name])
    assert alone["data"][0].items() >= {"object": "model", "owned_by": ""}.items()
    assert isinstance(alone["data"][0]["created"], int)
    assert shared == {"models": [name], **alone}
    card = openai_server.request("GET", f"/v1/models/{name}").json()
    assert card == {"name": name, "ready": True, **alone["data"][0]}
    assert openai_server.request("GET", f"/openai/v1/models/{name}").json() == alone["data"][0]


def test_refuses_a_model_that_is_not_there(openai_server: "RunningServer") -> None:
    for api in row(openai_server).requests:
        response = ask(openai_server, api, model="InvalidModel")

        assert response.status == 404
        assert error(response) == {
            "message": "Model with name InvalidModel does not exist.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    for path in ("/v1/models/InvalidModel", "/openai/v1/models/InvalidModel"):
        assert error(openai_server.request("GET", path))["code"] == "model_not_found"


def test_a_request_without_a_model_is_for_the_only_one(openai_server: "RunningServer") -> None:
    for api in row(openai_server).requests:
        assert ask(openai_server, api, model=None).status == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff", "invalid_json"),
        (b'{"input": NaN}', "invalid_json"),
        (b"[]", "invalid_type"),
        (b'{"model": 5}', "invalid_type"),
        (b"{}", "missing_required_parameter"),
    ],
)
def test_refuses_bodies_that_are_no_request(
    openai_server: "RunningServer", body: bytes, code: str
) -> None:
    for api in row(openai_server).requests:
        response = openai_server.request("POST", f"/v1/{api}", body)

        assert (response.status, error(response)["code"]) == (400, code)


def test_ignores_and_refuses_fields_as_the_tables_say(openai_server: "RunningServer") -> None:
    for api in row(openai_server).requests:
        assert ask(openai_server, api, user="u", not_invented_yet={"a": [1]}).status == 200
        for name in fields.IGNORED[api]:
            assert ask(openai_server, api, **{name: {"a": "b"}}).status == 200, name
        for name in fields.REFUSED[api]:
            assert ask(openai_server, api, **{name: None}).status == 200, name
            refused = ask(openai_server, api, **{name: "something"})
            assert refused.status == 400, name
            assert error(refused)["code"] == "unsupported_parameter"
            assert error(refused)["param"] == name


def test_takes_only_post(openai_server: "RunningServer") -> None:
    for path in PATHS:
        response = openai_server.request("GET", path)

        assert (response.status, response.headers["allow"]) == (405, "POST")
        assert error(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/json; charset=utf-8", "text/plain"],
)
def test_reads_json_whatever_it_is_called(
    openai_server: "RunningServer", content_type: str | None
) -> None:
    for api, body in row(openai_server).requests.items():
        headers = {} if content_type is None else {"content-type": content_type}
        response = openai_server.request("POST", f"/v1/{api}", body, headers)

        assert response.status == 200


def test_gives_the_request_id_back_and_logs_one_line(openai_server: "RunningServer") -> None:
    for number, (api, body) in enumerate(row(openai_server).requests.items()):
        given = f"openai-{number}"
        response = openai_server.request("POST", f"/v1/{api}", body, {"x-request-id": given})

        assert response.headers["x-request-id"] == given
        openai_server.process.wait_for(f"request_id={given}")
        lines = [line for line in openai_server.process.stderr.splitlines() if given in line]
        assert len(lines) == 1
        assert f"model={openai_server.entry.model_name}" in lines[0]
        assert "protocol=openai status=200" in lines[0]


def test_counts_its_answers(openai_server: "RunningServer") -> None:
    def count() -> float:
        labels = f'model_name="{openai_server.entry.model_name}",protocol="openai",status="400"'
        text = openai_server.request("GET", "/metrics").body.decode()
        lines = [line for line in text.splitlines() if labels in line]
        return float(lines[0].rpartition(" ")[2]) if lines else 0

    api = next(iter(row(openai_server).requests))
    before = count()
    ask(openai_server, api, **{next(iter(row(openai_server).requests[api])): 1.5})

    assert count() == before + 1


# The core refuses it before any model sees it: the servers that load no weights say enough.
@pytest.mark.parametrize("name", ["letters", "proxy"])
def test_refuses_a_body_that_is_too_large(
    name: str, running_server: Callable[..., "RunningServer"]
) -> None:
    small = running_server(name, "--max_request_bytes", "2000")
    for api in row(small).requests:
        response = small.request("POST", f"/v1/{api}", b" " * 3000)

        assert response.status == 413
        assert error(response)["code"] == "request_too_large"


def test_other_servers_have_none_of_the_routes(other_server: "RunningServer") -> None:
    for path in PATHS:
        response = other_server.request("POST", path, b"{}")

        assert (response.status, response.json()) == (404, {"detail": "Not Found"})
    for path in ("/openai/v1/models", f"/openai/v1/models/{other_server.entry.model_name}"):
        response = other_server.request("GET", path)

        assert (response.status, response.json()) == (404, {"detail": "Not Found"})
