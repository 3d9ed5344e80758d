"""How a proxy learns what the server calls its model."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from kserve.protocol.rest.openai.upstream.models import UpstreamModel
from kserve.protocol.rest.openai.upstream.server import Upstream
from kserve.testing import request

Serve = Callable[..., AbstractContextManager[int]]

ADAPTER = {"id": "adapter", "parent": "base", "max_model_len": None}
BASE = {"id": "base", "parent": None, "max_model_len": 64}


def answering(body: Any, status: int = 200) -> Any:
    async def script(asked: Any) -> None:
        await asked.reply(body, status)

    return script


async def look(url: str, asked_as: str | None) -> tuple[str, int | None]:
    upstream = Upstream(url)
    model = UpstreamModel(upstream, "served", asked_as)
    name = await model.name("alias")
    await upstream.aclose()
    return name, model.max_model_len


@pytest.mark.parametrize(
    ("cards", "asked_as", "expected"),
    [
        ([BASE], None, ("base", 64)),
        ([BASE, ADAPTER], None, ("base", 64)),
        ([BASE, {"id": "served", "max_model_len": 32}], None, ("served", 32)),
        ([BASE, {"id": "other"}], None, ("alias", None)),
        ([BASE, ADAPTER], "adapter", ("adapter", None)),
        ([BASE], "missing", ("missing", None)),
        ([], None, ("alias", None)),
        ([1, {"id": ""}], None, ("alias", None)),
    ],
)
def test_is_the_one_of_its_name_or_the_only_one(
    upstream: Any, cards: list[Any], asked_as: str | None, expected: tuple[str, int | None]
) -> None:
    upstream.scripts["/v1/models"] = answering({"object": "list", "data": cards})

    assert asyncio.run(look(upstream.url, asked_as)) == expected


@pytest.mark.parametrize(
    "script", [answering({"detail": "Not Found"}, 404), answering(b"<html>"), answering([1])]
)
def test_a_server_without_a_list_has_the_name_that_was_given(upstream: Any, script: Any) -> None:
    upstream.scripts["/v1/models"] = script

    assert asyncio.run(look(upstream.url, None)) == ("alias", None)


async def ask_twice(upstream: Any, second: Any) -> tuple[str, str, int]:
    server = Upstream(upstream.url)
    model = UpstreamModel(server, "served", None)
    first = await model.name("served")
    upstream.scripts["/v1/models"] = second
    again = await model.name("served")
    await server.aclose()
    return first, again, len(upstream.asked_of("/v1/models"))


def test_asks_once(upstream: Any) -> None:
    upstream.scripts["/v1/models"] = answering({"data": [BASE]})

    asked = asyncio.run(ask_twice(upstream, answering({"data": [ADAPTER]})))

    assert asked == ("base", "base", 1)


async def ask_at_once(upstream: Any) -> list[str]:
    server = Upstream(upstream.url)
    model = UpstreamModel(server, "served", None)
    asking = [asyncio.create_task(model.name("served")) for _ in range(3)]
    while not upstream.asked_of("/v1/models"):  # noqa: ASYNC110 - another thread fills it
        await asyncio.sleep(0.005)
    asking[0].cancel()
    upstream.may_go_on.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    await server.aclose()
    return [str(answer) for answer in answers[1:]]


def test_the_first_requests_wait_for_the_name_though_one_that_asks_is_cancelled(
    upstream: Any,
) -> None:
    async def models(asked: Any) -> None:
        await upstream.going_on()
        await asked.reply({"data": [BASE]})

    upstream.scripts["/v1/models"] = models

    assert asyncio.run(ask_at_once(upstream)) == ["base", "base"]


def test_does_not_ask_again_at_once_where_the_server_cannot_say(upstream: Any) -> None:
    upstream.scripts["/v1/models"] = answering(b"", 503)

    asked = asyncio.run(ask_twice(upstream, answering({"data": [BASE]})))

    assert asked == ("served", "served", 1)


def test_asks_again_later(upstream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve.protocol.rest.openai.upstream.models._AGAIN_S", 0.0)
    upstream.scripts["/v1/models"] = answering(b"", 503)

    asked = asyncio.run(ask_twice(upstream, answering({"data": [BASE]})))

    assert asked == ("served", "base", 2)


def test_asks_again_where_the_server_does_not_know_the_name(
    upstream: Any, proxied: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kserve.protocol.rest.openai.upstream.models._AGAIN_S", 0.0)
    names = ["old", "new"]

    async def models(asked: Any) -> None:
        await asked.reply({"data": [{"id": names.pop(0)}]})

    async def complete(asked: Any) -> None:
        if asked.json()["model"] == "old":
            await asked.reply({"error": {"message": "no such model"}}, 404)
        else:
            await asked.reply({"choices": []})

    upstream.scripts |= {"/v1/models": models, "/v1/completions": complete}
    with proxied() as port:
        statuses = [
            request(port, "POST", "/v1/completions", b'{"prompt": "a"}').status for _ in range(3)
        ]

    assert statuses == [404, 200, 200]
