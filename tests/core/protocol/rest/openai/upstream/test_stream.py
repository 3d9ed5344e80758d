"""Streams that end well, break off, or hold something else than events."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import openai
import orjson
import pytest
from prometheus_client import REGISTRY

from kserve.protocol.rest.openai.upstream.server import Upstream
from kserve.protocol.rest.openai.upstream.stream import Passed, UpstreamStream
from kserve.testing import request

Serve = Callable[..., AbstractContextManager[int]]

COMPLETIONS = "/v1/completions"
ASKED = {"model": "served", "prompt": "a", "stream": True}
HEAD = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
EVENT = b'data: {"model":"served","choices":[{"text":"a"}]}\n\n'
DONE = b"data: [DONE]\n\n"
CUT = b'data: {"error":{"message":"the upstream server broke off its answer","type":"server_error",'
CUT += b'"param":null,"code":"bad_gateway"}}\n\n'


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def failed(message: str, kind: str = "server_error", code: str = "bad_gateway") -> bytes:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return b"data: %b\n\n" % orjson.dumps({"error": error})


def counted(status: int) -> float:
    labels = {"model_name": "served", "protocol": "openai", "status": str(status)}
    return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0


CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
CLOSED = b"connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "received", "outcome"),
    [
        pytest.param(CHUNKED + chunked(EVENT + DONE) + b"0\r\n\r\n", EVENT + DONE, 200, id="whole"),
        pytest.param(
            CHUNKED + b"".join(chunked(EVENT[i : i + 1]) for i in range(len(EVENT))) + b"0\r\n\r\n",
            EVENT + DONE,
            200,
            id="byte by byte, without DONE",
        ),
        pytest.param(
            CHUNKED + chunked(EVENT[:-2]) + b"0\r\n\r\n", EVENT + DONE, 200, id="no empty line"
        ),
        pytest.param(CHUNKED + b"0\r\n\r\n", DONE, 200, id="empty"),
        pytest.param(CLOSED + EVENT + DONE, EVENT + DONE, 200, id="until the connection ends"),
        pytest.param(CLOSED + EVENT, EVENT + CUT + DONE, 502, id="cut, or without DONE"),
        pytest.param(CHUNKED + chunked(EVENT), EVENT + CUT + DONE, 502, id="cut"),
        pytest.param(
            CHUNKED + chunked(EVENT + b"data: <html>\n\n") + b"0\r\n\r\n",
            EVENT + failed("the upstream server answers with no JSON object") + DONE,
            502,
            id="no JSON",
        ),
        pytest.param(
            CHUNKED
            + chunked(EVENT + b'data: {"error":{"message":"m","type":"t","code":400}}\n\n' + DONE)
            + b"0\r\n\r\n",
            EVENT + failed("m", "t") + DONE,
            502,
            id="an error of vLLM's",
        ),
        pytest.param(
            CHUNKED
            + chunked(EVENT + b'data: {"object":"error","message":"m","type":"t","code":400}\n\n')
            + b"0\r\n\r\n",
            EVENT + failed("m", "t") + DONE,
            502,
            id="an error of SGLang's",
        ),
        pytest.param(
            CHUNKED + chunked(EVENT) + chunked(b"data: " + b"x" * (17 << 20)),
            EVENT + failed("the upstream server sends an event of more than 16777216 bytes") + DONE,
            502,
            id="an event without an end",
        ),
        pytest.param(
            CHUNKED
            + chunked(b'data: {"choices":[{"text":"say \\"error\\": \\n\\n"}]}\r\n\r\n' + DONE)
            + b"0\r\n\r\n",
            b'data: {"choices":[{"text":"say \\"error\\": \\n\\n"}]}\n\n' + DONE,
            200,
            id="a text like an event",
        ),
        pytest.param(
            CHUNKED + chunked(b'data: {"choices":\ndata: []}\n\n' + DONE) + b"0\r\n\r\n",
            b'data: {"choices":[]}\n\n' + DONE,
            200,
            id="an event of two lines",
        ),
    ],
)
def test_passes_on_what_came_and_says_how_it_ended(
    upstream: Any, proxied: Serve, sent: bytes, received: bytes, outcome: int
) -> None:
    async def script(asked: Any) -> None:
        await asked.send(HEAD + sent)
        asked.writer.close()

    upstream.scripts[COMPLETIONS] = script
    before = counted(outcome)

    with proxied() as port:
        answer = request(port, "POST", COMPLETIONS, orjson.dumps(ASKED))

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.body == received
    assert counted(outcome) == before + 1


def test_what_fails_before_the_first_chunk_is_a_status(upstream: Any, proxied: Serve) -> None:
    async def script(asked: Any) -> None:
        await asked.begin()
        await asked.event({"error": {"message": "m", "type": "t", "code": "c"}})
        await asked.end()

    upstream.scripts[COMPLETIONS] = script

    with proxied() as port:
        answer = request(port, "POST", COMPLETIONS, orjson.dumps(ASKED))

    assert answer.status == 502
    assert answer.json() == {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}


def test_the_client_of_openai_raises_what_breaks_off_a_stream(
    upstream: Any, proxied: Serve
) -> None:
    async def script(asked: Any) -> None:
        await asked.begin()
        await asked.chunk(EVENT)
        await upstream.going_on()
        asked.cut()

    upstream.scripts[COMPLETIONS] = script
    texts: list[str] = []

    with (
        proxied() as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client,
    ):
        stream = client.completions.create(model="served", prompt="a", stream=True)
        with pytest.raises(openai.APIError, match="broke off its answer"):
            for chunk in stream:
                texts.append(chunk.choices[0].text)
                upstream.may_go_on.set()

    assert texts == ["a"]


def test_an_answer_that_does_not_stream_stays_one(upstream: Any, proxied: Serve) -> None:
    async def script(asked: Any) -> None:
        await asked.reply({"model": "theirs", "choices": []})

    upstream.scripts[COMPLETIONS] = script

    with proxied() as port:
        answer = request(port, "POST", COMPLETIONS, orjson.dumps(ASKED))

    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"model": "served", "choices": []}


async def stream_of(upstream: Any, pass_on: Any) -> tuple[httpx2.Response, UpstreamStream]:
    server = Upstream(upstream.url)
    response = await server.post("completions", b"{}", {})
    return response, UpstreamStream(response, pass_on, None, server.note)


async def begin(asked: Any) -> None:
    await asked.begin()
    await asked.chunk(EVENT)
    await asked.is_left()


def test_a_stream_that_nobody_reads_on_is_closed_at_once(upstream: Any) -> None:
    async def pass_on(events: Any) -> Passed:
        return Passed(list(events))

    async def read_one() -> bool:
        response, stream = await stream_of(upstream, pass_on)
        await anext(stream)
        await stream.aclose()
        return response.is_closed

    upstream.scripts[COMPLETIONS] = begin

    assert asyncio.run(read_one())


def test_a_stream_whose_events_cannot_be_passed_on_is_closed_at_once(upstream: Any) -> None:
    async def pass_on(events: Any) -> Passed:
        raise RuntimeError("no")

    async def read_one() -> bool:
        response, stream = await stream_of(upstream, pass_on)
        with pytest.raises(RuntimeError, match="no"):
            await anext(stream)
        return response.is_closed

    upstream.scripts[COMPLETIONS] = begin

    assert asyncio.run(read_one())
