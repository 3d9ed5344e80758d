"""Routing, methods, metrics, and what user code adds around the server's own routes."""

import gzip
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.responses import Response as StarletteResponse
from starlette.types import Receive, Scope, Send

from kserve import Model, ModelRepository, PredictorConfig, model_server
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.app import Application, RestApp
from kserve.testing import Response, request, serving

WAIT_S = 15


class Echo(Model):
    """Answers with its instances."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


class Blocking(Model):
    """Answers once it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.released = threading.Event()

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self.entered.set()
        assert self.released.wait(WAIT_S)
        return {"predictions": ["late"]}


class Streaming(Model):
    """Gives two chunks."""

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        yield from ("a", "b")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(Echo("app-echo")) as port:
        yield port


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Application:
    """Give the application of the process, as new."""
    monkeypatch.setattr(model_server, "_app", None)
    app = model_server.app
    assert isinstance(app, Application)
    return app


def _predict(port: int, name: str = "app-echo") -> Response:
    return request(port, "POST", f"/v1/models/{name}:predict", {"instances": [[1, 2]]})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/", b'{"status":"alive"}', id="root"),
        pytest.param("/v1/models", b'{"models":["app-echo"]}', id="V1 list"),
        pytest.param("/v1/models/app-echo", b'{"name":"app-echo","ready":true}', id="V1 ready"),
        pytest.param("/v2/health/live", b'{"live":true}', id="V2 live"),
        pytest.param("/v2/models", b'{"models":["app-echo"]}', id="V2 list"),
        pytest.param(
            "/v2/models/app-echo/ready", b'{"name":"app-echo","ready":true}', id="V2 ready"
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["", "/", "//", "?a=b", "/?a=b"])
def test_a_get_route_takes_a_trailing_slash_and_a_query(
    port: int, path: str, body: bytes, suffix: str
) -> None:
    response = request(port, "GET", path + suffix)

    assert (response.status, response.body) == (200, body)


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v2", "/v2/health/ready", "/metrics"])
def test_head_has_the_headers_of_get_and_no_body(port: int, path: str) -> None:
    response = request(port, "HEAD", path)

    assert (response.status, response.body) == (200, b"")
    assert int(response.headers["content-length"]) > 0


@pytest.mark.parametrize(
    "path", ["/v1/models/app-echo:predict/", "/v1/models/app-echo:predict?a=b"]
)
def test_an_infer_route_takes_a_trailing_slash_and_a_query(port: int, path: str) -> None:
    response = request(port, "POST", path, {"instances": [1]})

    assert (response.status, response.body) == (200, b'{"predictions":[1]}')


@pytest.mark.parametrize(
    "path",
    [
        *("/nope", "/v1", "/v2/nope", "/v2/health", "/v3/models", "/metrics/x", "/docs"),
        *("/openapi.json", "/v2/repository/models", "//v1/models"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_route_is_not_found(port: int, path: str, method: str) -> None:
    response = request(port, method, path)

    assert (response.status, response.headers["content-type"], response.body) == (
        404,
        "application/json",
        b'{"detail":"Not Found"}',
    )


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("GET", "/v1/models/app-echo:predict", {"POST"}, id="V1 predict"),
        pytest.param("PUT", "/v1/models/app-echo:explain", {"POST"}, id="V1 explain"),
        pytest.param("GET", "/v2/models/app-echo/infer", {"POST"}, id="V2 infer"),
        pytest.param("GET", "/v2/models/nope/infer", {"POST"}, id="V2 infer, unknown model"),
        pytest.param("POST", "/v1/models", {"GET", "HEAD"}, id="V1 list"),
        pytest.param("DELETE", "/", {"GET", "HEAD"}, id="root"),
        pytest.param("POST", "/v2/health/ready", {"GET", "HEAD"}, id="V2 ready"),
    ],
)
def test_a_wrong_method_is_named_with_the_right_ones(
    port: int, method: str, path: str, allowed: set[str]
) -> None:
    response = request(port, method, path)

    assert (response.status, response.body) == (405, b'{"detail":"Method Not Allowed"}')
    assert set(response.headers["allow"].split(", ")) == allowed


def test_a_head_of_an_infer_route_is_refused_without_a_body(port: int) -> None:
    response = request(port, "HEAD", "/v2/models/app-echo/infer")

    assert (response.status, response.headers["allow"], response.body) == (405, "POST", b"")


def _samples(port: int, model_name: str) -> dict[tuple[str, str, str], float]:
    text = request(port, "GET", "/metrics").body.decode()
    return {
        (sample.name, sample.labels["protocol"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("model_name") == model_name and "status" in sample.labels
        if not sample.name.endswith("_created")
    }


def test_requests_are_counted_by_model_protocol_and_status() -> None:
    with serving(Echo("app-counted")) as port:
        _predict(port, "app-counted")
        request(port, "POST", "/v1/models/app-counted:predict", b"{")
        request(port, "POST", "/v2/models/app-counted/infer", {})
        counted = _samples(port, "app-counted")

    assert counted == {
        ("kserve_requests_total", "v1", "200"): 1,
        ("kserve_requests_total", "v1", "400"): 1,
        ("kserve_requests_total", "v2", "400"): 1,
    }


def test_names_of_models_that_are_not_there_never_become_labels(port: int) -> None:
    before = _samples(port, "").get(("kserve_requests_total", "v1", "404"), 0)

    request(port, "POST", "/v1/models/hostile-1:predict")
    request(port, "GET", "/v1/models/hostile-2")
    request(port, "POST", "/v2/models/hostile-3/infer")
    request(port, "GET", "/hostile-4")

    text = request(port, "GET", "/metrics").body
    assert b"hostile" not in text
    assert _samples(port, "")[("kserve_requests_total", "v1", "404")] == before + 2


def test_the_histograms_have_the_originals_names_and_label(port: int) -> None:
    _predict(port)

    text = request(port, "GET", "/metrics").body.decode()

    counts = {
        family.name: [
            sample.labels
            for sample in family.samples
            if sample.name.endswith("_count") and sample.labels["model_name"] in ("app-echo", "")
        ]
        for family in text_string_to_metric_families(text)
        if family.name.startswith("request_") and not family.name.endswith("_created")
    }
    assert counts == {
        f"request_{handler}_seconds": [{"model_name": "app-echo"}]
        for handler in ("preprocess", "predict", "postprocess", "explain")
    }


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        pytest.param("", "text/plain", b"", id="Prometheus"),
        pytest.param(
            "application/openmetrics-text; version=1.0.0",
            "application/openmetrics-text",
            b"# EOF\n",
            id="OpenMetrics",
        ),
    ],
)
def test_metrics_come_in_the_form_that_is_asked_for(
    port: int, accept: str, content_type: str, end: bytes
) -> None:
    response = request(port, "GET", "/metrics", headers={"accept": accept})

    assert response.status == 200
    assert response.headers["content-type"].startswith(content_type)
    assert response.body.endswith(end)


def test_metrics_are_written_off_the_loop(port: int) -> None:
    threads: list[str] = []

    class Collector:
        def collect(self) -> Iterator[Metric]:
            threads.append(threading.current_thread().name)
            return iter(())

        def describe(self) -> Iterator[Metric]:
            return iter(())

    collector = Collector()
    REGISTRY.register(collector)
    try:
        response = request(port, "GET", "/metrics")
    finally:
        REGISTRY.unregister(collector)

    assert response.status == 200
    assert len(threads) == 1
    # The thread of `serving`, which the loop runs on.
    assert threads[0] != "serving"


def test_probes_and_another_model_answer_while_a_plain_predict_blocks() -> None:
    blocking = Blocking("app-blocking")
    late: list[Response] = []

    with serving([blocking, Echo("app-other")]) as port:
        waiting = threading.Thread(target=lambda: late.append(_predict(port, "app-blocking")))
        waiting.start()
        assert blocking.entered.wait(WAIT_S)
        probes = [request(port, "GET", path) for path in ("/", "/v2/health/ready", "/metrics")]
        other = _predict(port, "app-other")
        before = list(late)
        blocking.released.set()
        waiting.join(WAIT_S)

    assert [probe.status for probe in probes] == [200, 200, 200]
    assert b'kserve_requests_in_flight{model_name="app-blocking"} 1.0' in probes[2].body
    assert other.body == b'{"predictions":[[1,2]]}'
    assert before == []
    assert [response.body for response in late] == [b'{"predictions":["late"]}']


def test_a_cors_middleware_answers_preflights_and_marks_infer_responses(app: Application) -> None:
    app.add_middleware(CORSMiddleware, allow_origins=["https://ui"], allow_methods=["POST"])
    origin = {"Origin": "https://ui"}

    with serving(Echo("app-echo")) as port:
        preflight = request(
            port,
            "OPTIONS",
            "/v1/models/app-echo:predict",
            headers={**origin, "Access-Control-Request-Method": "POST"},
        )
        infer = request(
            port, "POST", "/v1/models/app-echo:predict", {"instances": [1]}, headers=origin
        )

    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (
        200,
        "https://ui",
    )
    assert (infer.status, infer.body) == (200, b'{"predictions":[1]}')
    assert infer.headers["access-control-allow-origin"] == "https://ui"


class Marking(BaseHTTPMiddleware):
    """Adds a header, in Starlette's most used form of a middleware."""

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> StarletteResponse:
        response = await call_next(request)
        response.headers["x-marked"] = request.url.path
        return response


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        pytest.param("app-echo", 200, b'{"predictions":[[1,2]]}', id="answer"),
        pytest.param("app-streaming", 200, b"ab", id="stream"),
        pytest.param("nope", 404, b'{"error":"Model with name nope does not exist."}', id="error"),
    ],
)
def test_a_dispatch_middleware_sees_every_infer_request(
    app: Application, name: str, status: int, body: bytes
) -> None:
    app.add_middleware(Marking)

    with serving([Echo("app-echo"), Streaming("app-streaming")]) as port:
        response = _predict(port, name)

    assert (response.status, response.body) == (status, body)
    assert response.headers["x-marked"] == f"/v1/models/{name}:predict"


def test_a_request_that_is_cancelled_under_a_dispatch_middleware_is_told_why(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    app.add_middleware(Marking)
    model = Blocking("app-blocking")
    late: list[Response] = []

    with serving(model, grace_period_s=0) as port:
        waiting = threading.Thread(target=lambda: late.append(_predict(port, "app-blocking")))
        waiting.start()
        assert model.entered.wait(WAIT_S)
    model.released.set()
    waiting.join(WAIT_S)

    assert [(response.status, response.json()) for response in late] == [
        (503, {"error": "Server is not ready. The server is shutting down."})
    ]
    assert "x-request-id" in late[0].headers
    assert [record.exc_info for record in caplog.records if record.exc_info] == []


def test_a_compressing_middleware_may_change_the_length(app: Application) -> None:
    app.add_middleware(GZipMiddleware, minimum_size=1)

    with serving(Echo("app-echo")) as port:
        response = request(
            port,
            "POST",
            "/v1/models/app-echo:predict",
            {"instances": [0] * 1000},
            headers={"Accept-Encoding": "gzip"},
        )

    assert response.headers["content-encoding"] == "gzip"
    assert orjson.loads(gzip.decompress(response.body)) == {"predictions": [0] * 1000}


def test_routes_and_mounts_of_user_code_stand_beside_the_servers(app: Application) -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"hello {request.path_params['who']}")

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(f"mounted {scope['path']}")(scope, receive, send)

    app.add_route("/hello/{who}", hello)
    app.mount("/own", mounted)

    with serving(Echo("app-echo")) as port:
        own = [request(port, "GET", path).body for path in ("/hello/you", "/own/x")]
        servers = [_predict(port), request(port, "GET", "/v2/health/live/")]
        nope = request(port, "GET", "/nope")
        wrong_method = request(port, "POST", "/hello/you")

    assert own == [b"hello you", b"mounted /own/x"]
    assert [answer.body for answer in servers] == [b'{"predictions":[[1,2]]}', b'{"live":true}']
    assert (nope.status, nope.body) == (404, b'{"detail":"Not Found"}')
    assert wrong_method.status == 405


def test_a_route_of_user_code_wins_over_the_servers_own(app: Application) -> None:
    async def root(request: Request) -> PlainTextResponse:
        return PlainTextResponse("mine")

    app.add_route("/", root)

    with serving(Echo("app-echo")) as port:
        response = request(port, "GET", "/")

    assert response.body == b"mine"


def test_two_servers_in_one_process_share_middleware_and_keep_their_models(
    app: Application,
) -> None:
    app.add_middleware(Marking)

    with serving(Echo("app-first")) as first, serving(Echo("app-second")) as second:
        answers = [
            (_predict(port, name).status, request(port, "GET", "/v1/models").json())
            for port in (first, second)
            for name in ("app-first", "app-second")
        ]

    assert answers == [
        (200, {"models": ["app-first"]}),
        (404, {"models": ["app-first"]}),
        (404, {"models": ["app-second"]}),
        (200, {"models": ["app-second"]}),
    ]


@pytest.mark.anyio
async def test_the_application_without_a_server_finds_nothing(app: Application) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v2", "headers": [], "query_string": b""}
    await app(scope, receive, send)

    assert (sent[0]["status"], sent[1]["body"]) == (404, b"Not Found")


@pytest.mark.anyio
async def test_anything_but_http_is_left_alone() -> None:
    called: list[str] = []

    async def never(*args: Any) -> Any:
        called.append("called")

    await RestApp(DataPlane(ModelRepository()))({"type": "websocket"}, never, never)

    assert called == []


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_a_handler_sees_the_predictor_of_its_server(event_loop: str) -> None:
    class Transforming(Model):
        async def preprocess(self, payload: Any, headers: Any = None) -> Any:
            assert self.predictor_config
            return {"on the loop": self.predictor_config.predictor_host}

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            assert self.predictor_config
            return {**payload, "on its thread": self.predictor_config.predictor_host}

    def answer(port: int) -> Any:
        connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("POST", "/v1/models/transforming:predict", b"{}")
        body = connection.getresponse().read()
        connection.close()
        return body

    settings: dict[str, Any] = {"event_loop": event_loop}
    with (
        serving(Transforming("transforming"), predictor=PredictorConfig("a"), **settings) as first,
        serving(Transforming("transforming"), predictor=PredictorConfig("b"), **settings) as second,
    ):
        answers = [answer(first), answer(second)]

    assert answers == [
        b'{"on the loop":"a","on its thread":"a"}',
        b'{"on the loop":"b","on its thread":"b"}',
    ]


def test_a_scrape_tells_the_state_that_a_model_has_given_itself() -> None:
    class Moody(Model):
        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            self.ready = False
            return {}

    with serving(Moody("moody")) as port:
        before = request(port, "GET", "/metrics").body
        request(port, "POST", "/v1/models/moody:predict", {})
        after = request(port, "GET", "/metrics").body

    ready = b'kserve_model_state{model_name="moody",state="ready"} %s'
    assert ready % b"1.0" in before
    assert ready % b"0.0" in after
