"""Refusals of a full model: what the client reads, and that most of them cost next to nothing."""

import gc
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest
from prometheus_client import REGISTRY
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from kserve import Model, ModelServer, model_server
from kserve.config import ServerConfig
from kserve.endpoint import Endpoint, bind
from kserve.model_resources import ModelResources
from kserve.protocol.rest import app as rest_app
from kserve.protocol.rest.app import Application
from kserve.protocol.rest.exchange import Exchange
from kserve.protocol.rest.refusals import QuickRefusals
from kserve.testing import serving

WAIT_S = 15
NAME = "full"
TARGET = b"/v1/models/full:predict"
BODY = b'{"instances":[1]}'
FULL = (
    b'{"error":"1 requests for this model are in flight, which is as many as it takes '
    b'(--max_inflight_requests)"}'
)
HEADERS = ["content-length", "content-type", "date", "retry-after", "x-request-id"]

Answer = tuple[int, dict[str, str], bytes]


class Blocking(Model):
    """Blocks its thread until it is let go."""

    def __init__(self, name: str, answer: str = "late") -> None:
        super().__init__(name)
        self.answer = answer
        self.entered = threading.Event()
        self.released = threading.Event()

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self.entered.set()
        self.released.wait(WAIT_S)
        return {"predictions": [self.answer]}


class AskingBlocking(Blocking):
    """Says itself whether it can answer."""

    async def healthy(self) -> bool:
        return self.ready


class Connection:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream: BinaryIO = self.socket.makefile("rb")

    def send(self, *fields: bytes, body: bytes = BODY, target: bytes = TARGET) -> None:
        self.socket.sendall(_request(*fields, body=body, target=target))

    def read(self) -> Answer:
        status = int(self.stream.readline().split(b" ")[1])
        headers = {}
        while (line := self.stream.readline()) != b"\r\n":
            name, _, value = line.decode().strip().partition(": ")
            headers[name.lower()] = value
        return status, headers, self.stream.read(int(headers["content-length"]))

    def ask(self, *fields: bytes, body: bytes = BODY, target: bytes = TARGET) -> Answer:
        self.send(*fields, body=body, target=target)
        return self.read()

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


def _request(*fields: bytes, body: bytes = BODY, target: bytes = TARGET) -> bytes:
    length = b"Content-Length: %d" % len(body)
    lines = [b"POST %b HTTP/1.1" % target, b"Host: x", length, *fields, b"", body]
    return b"\r\n".join(lines)


def _counted(status: int) -> float:
    labels = {"model_name": NAME, "protocol": "v1", "status": str(status)}
    return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0


@pytest.fixture
def n_whole_way(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Give a list that grows with every request that the application gets."""
    calls: list[None] = []

    class Counted(Exchange):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            calls.append(None)
            super().__init__(*args, **keywords)

    monkeypatch.setattr(rest_app, "Exchange", Counted)
    return calls


class Full:
    """A server with one model that takes one request at a time, and has it."""

    def __init__(self, port: int, server: ModelServer, model: Blocking, first: Connection) -> None:
        self.port = port
        self.server = server
        self.model = model
        self.first = first
        self.client = Connection(port)


@pytest.fixture
def model() -> Blocking:
    return Blocking(NAME)


@pytest.fixture
def full(model: Blocking) -> Iterator[Full]:
    config = ServerConfig(host="127.0.0.1", http_port=0, enable_grpc=False, max_inflight_requests=1)
    server = ModelServer(config=config)
    with serving(model, server) as port:
        first = Connection(port)
        first.send()
        assert model.entered.wait(WAIT_S)
        full = Full(port, server, model, first)
        yield full
        model.released.set()
        first.close()
        full.client.close()


def test_the_second_refusal_is_like_the_first_and_asks_no_application(
    full: Full, n_whole_way: list[None]
) -> None:
    before = _counted(429)

    answers = [full.client.ask(b"x-request-id: id-%d" % number) for number in range(3)]

    assert [(status, sorted(headers), body) for status, headers, body in answers] == [
        (429, HEADERS, FULL)
    ] * 3
    assert [headers["x-request-id"] for _, headers, _ in answers] == ["id-0", "id-1", "id-2"]
    assert {headers["retry-after"] for _, headers, _ in answers} == {"1"}
    assert {headers["content-type"] for _, headers, _ in answers} == {"application/json"}
    assert _counted(429) == before + 3
    assert len(n_whole_way) == 1


def test_an_id_is_made_for_a_client_without_one(full: Full) -> None:
    full.client.ask()

    ids = {full.client.ask()[1]["x-request-id"] for _ in range(3)}

    assert {len(made) for made in ids} == {36}
    assert len(ids) == 3


def test_every_refusal_leaves_its_line_in_the_log(
    full: Full, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kserve.trace")

    for number in range(2):
        full.client.ask(b"x-request-id: id-%d" % number)
    # The first one is logged after it is sent, but before anything else of its connection.
    full.client.ask()

    fields = [vars(record)["fields"] for record in caplog.records if record.msg == "request"]
    assert [{key: line[key] for key in line if key != "duration_ms"} for line in fields[:2]] == [
        {"request_id": f"id-{number}", "model": NAME, "protocol": "v1", "status": 429}
        for number in range(2)
    ]
    assert all(0 <= line["duration_ms"] < 10_000 for line in fields)


def test_there_is_an_answer_again_once_there_is_room(full: Full) -> None:
    refused = [full.client.ask()[0] for _ in range(2)]
    full.model.released.set()
    full.first.read()

    status, _, body = full.client.ask()

    assert refused == [429, 429]
    assert (status, body) == (200, b'{"predictions":["late"]}')


def test_refusals_in_one_packet_are_answered_in_order(full: Full) -> None:
    full.client.ask()

    full.client.socket.sendall(
        b"".join(_request(b"x-request-id: id-%d" % number) for number in range(5))
    )
    answers = [full.client.read() for _ in range(5)]

    assert [(status, headers["x-request-id"]) for status, headers, _ in answers] == [
        (429, f"id-{number}") for number in range(5)
    ]


def test_a_refusal_never_overtakes_the_answer_before_it(full: Full) -> None:
    full.client.ask()

    # The one in work came over this connection.
    full.first.send(b"x-request-id: behind")
    full.first.socket.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    # Answered once the server has read what came before.
    full.client.ask()
    full.model.released.set()
    answers = [full.first.read() for _ in range(3)]

    assert [(status, body) for status, _, body in answers] == [
        (200, b'{"predictions":["late"]}'),
        (200, b'{"predictions":["late"]}'),
        (200, b'{"status":"alive"}'),
    ]


def test_a_small_body_that_comes_late_is_dropped_and_the_connection_stays(full: Full) -> None:
    full.client.ask()

    sent = _request(body=b" " * 100_000)
    full.client.socket.sendall(sent[:200])
    refused = full.client.read()
    full.client.socket.sendall(sent[200:])
    full.model.released.set()
    full.first.read()
    status, _, body = full.client.ask()

    assert (refused[0], "connection" in refused[1]) == (429, False)
    assert (status, body) == (200, b'{"predictions":["late"]}')


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(_request(body=b" " * 20_000_000), id="large body"),
        pytest.param(
            b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % TARGET
            + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 300,
            id="chunked body",
        ),
        pytest.param(_request(b"Connection: close", body=b" " * 5_000_000), id="client's last"),
        pytest.param(_request().replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0"),
    ],
)
def test_a_client_that_is_to_be_closed_on_reads_its_refusal_first(full: Full, sent: bytes) -> None:
    full.client.ask()

    full.client.socket.sendall(sent)
    status, headers, body = full.client.read()
    rest = full.client.stream.read()

    assert (status, headers["connection"], body, rest) == (429, "close", FULL, b"")


def test_a_client_that_expects_a_100_gets_the_refusal_in_its_place(full: Full) -> None:
    full.client.ask()

    full.client.socket.sendall(_request(b"Expect: 100-continue").removesuffix(BODY))
    status, _, body = full.client.read()

    assert (status, body) == (429, FULL)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % TARGET, 405, id="another method"),
        pytest.param(_request(target=b"/v1/models/none:predict"), 404, id="another model"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, id="another route"),
    ],
)
def test_other_requests_are_looked_at(full: Full, sent: bytes, status: int) -> None:
    full.client.ask()

    full.client.socket.sendall(sent)

    assert full.client.read()[0] == status


def test_a_model_that_takes_the_place_of_a_full_one_is_asked(full: Full) -> None:
    full.client.ask()
    new = Blocking(NAME, "new")
    new.ready = True
    new.released.set()

    full.server.registered_models.update(new)
    status, _, body = full.client.ask()

    assert (status, body) == (200, b'{"predictions":["new"]}')


def test_a_full_model_that_is_gone_is_not_found(full: Full) -> None:
    full.client.ask()

    full.server.registered_models.remove(NAME)
    status, _, _ = full.client.ask()

    assert status == 404


def test_a_full_model_that_is_not_ready_any_more_says_so(full: Full) -> None:
    full.client.ask()

    full.model.ready = False
    status, _, _ = full.client.ask()

    assert status == 503


class TestAsking:
    """A model that overrides `healthy` is asked before each request."""

    @pytest.fixture
    def model(self) -> Blocking:
        return AskingBlocking(NAME)

    def test_a_model_that_knows_itself_whether_it_is_ready_is_asked(
        self, full: Full, n_whole_way: list[None]
    ) -> None:
        statuses = [full.client.ask()[0] for _ in range(3)]

        assert (statuses, len(n_whole_way)) == ([429] * 3, 3)


class Marking(BaseHTTPMiddleware):
    """Adds a header."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-marked"] = "yes"
        return response


class TestMiddleware:
    """Middleware of the user's sees every request."""

    @pytest.fixture
    def model(self, monkeypatch: pytest.MonkeyPatch) -> Blocking:
        monkeypatch.setattr(model_server, "_app", None)
        app = model_server.app
        assert isinstance(app, Application)
        app.add_middleware(Marking)
        return Blocking(NAME)

    def test_a_middleware_marks_every_refusal(self, full: Full) -> None:
        answers = [full.client.ask() for _ in range(3)]

        assert [(status, headers["x-marked"]) for status, headers, _ in answers] == [
            (429, "yes")
        ] * 3


def _full_endpoint() -> Endpoint:
    model = Blocking(NAME)
    resources = ModelResources(model, NAME, ServerConfig(max_inflight_requests=1))
    resources.admission.enter()
    return bind(model, NAME, resources)


def test_targets_are_bounded_in_number_and_length() -> None:
    endpoint = _full_endpoint()
    refusals = QuickRefusals()

    for number in range(1025):
        refusals.add(b"/%d" % number, endpoint, "v1", lambda endpoint: True)
    refusals.add(b"/" * 1025, endpoint, "v1", lambda endpoint: True)

    found = [refusals.find(target) is not None for target in (b"/0", b"/1", b"/1024", b"/" * 1025)]
    assert found == [False, True, True, False]


def test_an_endpoint_that_nothing_else_refers_to_is_let_go() -> None:
    endpoint = _full_endpoint()
    refusals = QuickRefusals()
    refusals.add(b"/", endpoint, "v1", lambda endpoint: True)
    before = refusals.find(b"/") is not None

    del endpoint
    gc.collect()
    after = refusals.find(b"/")

    assert (before, after, refusals.by_target) == (True, None, {})
