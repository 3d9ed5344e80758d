"""A server that is not there, hangs, cuts, refuses; its connections, its health, our limits."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import openai
import orjson
import pytest
from prometheus_client import REGISTRY

from kserve.protocol.rest.openai import OpenAIProxyModel
from kserve.protocol.rest.openai.upstream.server import Addresses, Upstream
from kserve.testing import Response, request, serving

Serve = Callable[..., AbstractContextManager[int]]

WAIT_S = 15
COMPLETIONS = "/v1/completions"
COMPLETION = {"model": "served", "choices": [{"index": 0, "text": "a"}]}
ASKED = {"model": "served", "prompt": "a"}


def post(port: int, document: Any = ASKED) -> Response:
    return request(port, "POST", COMPLETIONS, orjson.dumps(document))


def error(response: Response) -> tuple[int, str, str | None, str]:
    assert list(response.json()) == ["error"]
    body = response.json()["error"]
    assert list(body) == ["message", "type", "param", "code"]
    assert response.headers["x-request-id"]
    return response.status, body["type"], body["code"], body["message"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def in_flight() -> float | None:
    return REGISTRY.get_sample_value("kserve_requests_in_flight", {"model_name": "served"})


def counted(status: int) -> float:
    labels = {"model_name": "served", "protocol": "openai", "status": str(status)}
    return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0


def wait_for(condition: Callable[[], bool]) -> bool:
    """Poll until a condition holds; False if it never does."""
    waiting = threading.Event()
    return any(condition() or waiting.wait(0.01) for _ in range(int(WAIT_S / 0.01)))


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("http://h:1", ("http://h:1", "http://h:1", "http://h:1/v1")),
        ("http://h:1/v1/", ("http://h:1", "http://h:1", "http://h:1/v1")),
        ("https://h/openai/v1", ("https://h", "https://h", "https://h/openai/v1")),
        ("http://h/openai", ("http://h", "http://h", "http://h/openai/v1")),
        ("http://h/a/b", ("http://h", "http://h/a/b", "http://h/a/b/v1")),
        ("http://u:p@[::1]:2", ("http://[::1]:2", "http://u:p@[::1]:2", "http://u:p@[::1]:2/v1")),
    ],
)
def test_addresses_follow_from_the_url(url: str, addresses: tuple[str, str, str]) -> None:
    assert Addresses.of(url) == addresses


@pytest.mark.parametrize(
    "url", ["", "h:1", "ftp://h", "http://", "http://h:port", "http://h?a=b", "http://h#a"]
)
def test_refuses_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected http://HOST:PORT or https://HOST.*, got '"):
        Addresses.of(url)


def test_a_server_that_is_not_there_is_a_503_to_be_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    with serving(OpenAIProxyModel("served", url, upstream_model="a")) as port:
        answer = post(port)
        ready = request(port, "GET", "/v2/health/ready")

    message = "the upstream server cannot be reached"
    assert error(answer) == (503, "server_error", "upstream_unavailable", message)
    assert "x-should-retry" not in answer.headers
    assert ready.status == 503
    assert f"Upstream {url} is not healthy: ConnectError" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_the_client_of_openai_tries_again_until_the_server_is_there(upstream: Any) -> None:
    class Late(httpx2.AsyncHTTPTransport):
        n_refused = 0

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.method == "POST" and self.n_refused < 3:
                self.n_refused += 1
                raise httpx2.ConnectError("refused", request=request)
            return await super().handle_async_request(request)

    async def script(asked: Any) -> None:
        await asked.reply(COMPLETION)

    upstream.scripts[COMPLETIONS] = script
    # Its connections end with each request, as nobody closes it on the loop that it runs on.
    transport = Late(limits=httpx2.Limits(max_keepalive_connections=0))
    client = httpx2.AsyncClient(transport=transport)
    with serving(OpenAIProxyModel("served", upstream.url, client)) as port:
        url = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=url, api_key="k", max_retries=1) as openai_client:
            completion = openai_client.completions.create(model="served", prompt="a")

    # Twice for each of the client's two.
    assert transport.n_refused == 3
    assert len(upstream.asked_of(COMPLETIONS)) == 1
    assert completion.choices[0].text == "a"


@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nabc"])
def test_a_request_that_was_sent_is_not_sent_again(
    upstream: Any, proxied: Serve, begins: bytes
) -> None:
    async def script(asked: Any) -> None:
        await asked.send(begins)
        asked.writer.close()

    upstream.scripts[COMPLETIONS] = script

    with proxied(upstream_model="a") as port:
        answer = post(port)

    message = "the upstream server broke off its answer"
    assert error(answer) == (502, "server_error", "bad_gateway", message)
    assert len(upstream.asked_of(COMPLETIONS)) == 1


@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nabc"])
def test_a_server_that_sends_nothing_is_a_504_that_is_not_tried_again(
    upstream: Any, proxied: Serve, begins: bytes
) -> None:
    async def script(asked: Any) -> None:
        await asked.send(begins)
        await asked.is_left()
        upstream.was_left.set()

    upstream.scripts[COMPLETIONS] = script

    with proxied(idle_timeout_s=0.1) as port:
        answer = post(port)
        assert upstream.was_left.wait(WAIT_S)

    message = "the upstream server sent nothing for too long"
    assert error(answer) == (504, "server_error", "upstream_timeout", message)
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_time_of_a_request_is_over_also_for_the_server(
    upstream: Any, proxied: Serve, is_streamed: bool
) -> None:
    async def script(asked: Any) -> None:
        if is_streamed:
            # A comment is no chunk.
            await asked.begin()
            await asked.chunk(b": wait\n\n")
        await asked.is_left()
        upstream.was_left.set()

    upstream.scripts[COMPLETIONS] = script

    with proxied(settings={"request_timeout_s": 0.2}) as port:
        answer = post(port, {**ASKED, "stream": is_streamed})
        assert upstream.was_left.wait(WAIT_S)

    assert error(answer)[::2] == (504, "timeout")
    assert answer.headers["x-should-retry"] == "false"
    assert in_flight() == 0


@pytest.mark.parametrize("progress", ["nothing", "body", "head", "event"])
def test_the_server_sees_that_the_client_has_gone(
    upstream: Any, proxied: Serve, progress: str
) -> None:
    is_asked = threading.Event()

    async def script(asked: Any) -> None:
        if progress == "body":
            await asked.send(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\n{")
        elif progress != "nothing":
            await asked.begin()
        if progress == "event":
            await asked.event({"choices": [], "model": "a"})
        is_asked.set()
        await asked.is_left()
        upstream.was_left.set()

    upstream.scripts[COMPLETIONS] = script
    # A stream had its 200 before.
    before = counted(499)
    with proxied() as port:
        body = orjson.dumps({**ASKED, "stream": progress in ("head", "event")})
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert is_asked.wait(WAIT_S)
            if progress == "event":
                client.settimeout(WAIT_S)
                assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")

        assert upstream.was_left.wait(WAIT_S)
        assert wait_for(lambda: counted(499) == before + 1)
        assert in_flight() == 0


def test_refuses_more_requests_than_a_model_takes_at_once(upstream: Any, proxied: Serve) -> None:
    is_asked = threading.Event()

    async def script(asked: Any) -> None:
        is_asked.set()
        await upstream.going_on()
        await asked.reply(COMPLETION)

    upstream.scripts[COMPLETIONS] = script
    answers: list[Response] = []
    with proxied(settings={"max_inflight_requests": 1}) as port:
        thread = threading.Thread(target=lambda: answers.append(post(port)))
        thread.start()
        assert is_asked.wait(WAIT_S)
        refused = post(port)
        upstream.may_go_on.set()
        thread.join(WAIT_S)

    assert error(refused)[:3] == (429, "rate_limit_error", "rate_limit_exceeded")
    assert answers[0].status == 200
    assert len(upstream.asked_of(COMPLETIONS)) == 1


def test_one_connection_serves_one_request_after_another(upstream: Any, proxied: Serve) -> None:
    async def script(asked: Any) -> None:
        if asked.json().get("stream"):
            await asked.begin()
            await asked.event(COMPLETION)
            await asked.chunk(b"data: [DONE]\n\n")
            await asked.end()
        elif asked.json().get("fails"):
            await asked.reply({"error": {"message": "no"}}, 400)
        else:
            await asked.reply(COMPLETION)

    upstream.scripts[COMPLETIONS] = script
    with proxied() as port:
        answers = [
            post(port, {**ASKED, **more}).status
            for more in ({}, {"stream": True}, {"fails": 1}, {"stream": True}, {})
        ]

    assert answers == [200, 200, 400, 200, 200]
    assert upstream.n_connections == 1


def test_what_one_client_s_answer_sets_goes_out_with_no_other_request(
    upstream: Any, proxied: Serve
) -> None:
    async def script(asked: Any) -> None:
        await asked.reply(COMPLETION, set_cookie="session=secret; Path=/")

    upstream.scripts[COMPLETIONS] = script
    with proxied() as port:
        post(port)
        post(port)

    assert ["cookie" in asked.headers for asked in upstream.asked_of(COMPLETIONS)] == [False, False]


def test_says_done_though_the_server_keeps_its_answer_open(upstream: Any, proxied: Serve) -> None:
    async def script(asked: Any) -> None:
        await asked.begin()
        await asked.chunk(b'data: {"choices": []}\n\ndata: [DONE]\n\n')
        await asked.is_left()
        upstream.was_left.set()

    upstream.scripts[COMPLETIONS] = script
    with proxied() as port:
        answer = post(port, {**ASKED, "stream": True})
        assert upstream.was_left.wait(WAIT_S)

    assert answer.body == b'data: {"choices":[]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("status", "options", "is_ready"),
    [
        (200, {}, True),
        (204, {}, True),
        (503, {}, False),
        # Not every server has vLLM's.
        (404, {}, True),
        (404, {"health_endpoint": "/own/{model_name}"}, False),
        (200, {"health_endpoint": "/own/{model_name}"}, True),
        (200, {"health_endpoint": "/own/{model_name}", "upstream_model": "theirs"}, True),
        (503, {"health_endpoint": None}, True),
    ],
)
def test_is_as_healthy_as_the_server_and_takes_requests_anyway(
    upstream: Any, proxied: Serve, status: int, options: dict[str, Any], is_ready: bool
) -> None:
    async def health(asked: Any) -> None:
        await asked.reply(b"", status)

    async def script(asked: Any) -> None:
        await asked.reply(COMPLETION)

    upstream.scripts |= dict.fromkeys(("/health", "/own/served", "/own/theirs"), health)
    upstream.scripts[COMPLETIONS] = script
    with proxied(**options) as port:
        ready = request(port, "GET", "/v2/health/ready")
        of_model = request(port, "GET", "/v1/models/served")
        n_probes = len(upstream.asked)
        answer = post(port)

    assert ready.status == (200 if is_ready else 503)
    assert (of_model.json()["ready"] if is_ready else of_model.status) == (is_ready or 503)
    assert answer.status == 200
    # No request waits for a probe.
    later = [asked.path for asked in upstream.asked[n_probes:]]
    assert [path for path in later if path != "/v1/models"] == [COMPLETIONS]


def test_says_once_that_the_server_is_not_healthy_and_once_that_it_is(
    upstream: Any, proxied: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    statuses = [200, 503, 503, 200, 200]
    caplog.set_level(logging.INFO)

    async def health(asked: Any) -> None:
        await asked.reply(b"", statuses.pop(0))

    upstream.scripts["/health"] = health
    with proxied() as port:
        answers = [request(port, "GET", "/v2/health/ready").status for _ in range(5)]

    assert answers == [200, 503, 503, 200, 200]
    lines = [record.getMessage() for record in caplog.records if "ealthy" in record.getMessage()]
    assert lines == [
        f"Upstream {upstream.url} is not healthy: it answers 503 to GET /health",
        f"Upstream {upstream.url} is healthy again",
    ]


def test_the_end_of_the_server_closes_its_connections(upstream: Any) -> None:
    is_closed = threading.Event()

    async def script(asked: Any) -> None:
        await asked.reply(COMPLETION)
        await asked.is_left()
        is_closed.set()

    upstream.scripts[COMPLETIONS] = script
    model = OpenAIProxyModel("served", upstream.url)
    with serving(model) as port:
        assert post(port).status == 200
    assert is_closed.wait(WAIT_S)

    # It may be served again, on another loop.
    with serving(model) as port:
        assert post(port).status == 200


def test_a_client_that_was_given_is_left_open(upstream: Any) -> None:
    async def script(asked: Any) -> None:
        await asked.reply(COMPLETION)

    async def ask() -> bool:
        async with httpx2.AsyncClient(headers={"x-own": "1"}) as client:
            server = Upstream(upstream.url, client)
            server.prepare()
            response = await server.post("completions", b"{}", {})
            await server.read(response)
            await server.aclose()
            return client.is_closed

    upstream.scripts[COMPLETIONS] = script

    assert asyncio.run(ask()) is False
    assert upstream.asked[0].headers["x-own"] == "1"
