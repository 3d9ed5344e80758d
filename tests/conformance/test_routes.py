"""Every route and method of V1 and V2: the good answer, byte for byte, and the refusals."""

from typing import TYPE_CHECKING

import orjson
import pytest

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

UNKNOWN_MODEL = {"error": "Model with name InvalidModel does not exist."}
NOT_FOUND = {"detail": "Not Found"}
METHOD_NOT_ALLOWED = {"detail": "Method Not Allowed"}

GET_ROUTES = [
    "/",
    "/metrics",
    "/v1/models",
    "/v1/models/{model}",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
]
POST_ROUTES = [
    "/v1/models/{model}:predict",
    "/v1/models/{model}:explain",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/generate",
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/", b'{"status":"alive"}', id="root"),
        pytest.param("/v1/models", b'{"models":["%(model)s"]}', id="V1 list"),
        pytest.param(
            "/v1/models/%(model)s",
            b'{"name":"%(model)s","ready":true%(status)s}',
            id="V1 readiness",
        ),
        pytest.param("/v2/health/live", b'{"live":true}', id="V2 live"),
        pytest.param("/v2/health/ready", b'{"ready":true}', id="V2 ready"),
        pytest.param("/v2/models", b'{"models":["%(model)s"]}', id="V2 list"),
        pytest.param(
            "/v2/models/%(model)s/ready", b'{"name":"%(model)s","ready":true}', id="V2 model ready"
        ),
    ],
)
def test_answers_a_probe_byte_for_byte(server: "RunningServer", path: str, expected: bytes) -> None:
    name = server.entry.model_name

    response = server.request("GET", path % {"model": name})

    assert response.headers["content-type"] == "application/json"
    assert response.status == 200
    expected = expected % {b"model": name.encode(), b"status": server.entry.v1_status}
    if server.entry.openai is not None and path.startswith("/v1/"):
        # OpenAI's clients read the rest.
        assert response.body.startswith(expected[:-1] + b",")
    else:
        assert response.body == expected


def test_server_metadata_has_the_three_fields_of_the_protocol(server: "RunningServer") -> None:
    response = server.request("GET", "/v2")

    assert response.status == 200
    assert list(response.json()) == ["name", "version", "extensions"]
    assert response.json()["name"] == "kserve"
    assert isinstance(response.json()["version"], str)
    assert response.json()["extensions"] == ["binary_tensor_data"]


def test_model_metadata_is_that_of_the_artifact(server: "RunningServer") -> None:
    response = server.request("GET", server.entry.v2)

    assert (response.status, response.json()) == (200, server.entry.metadata)


def test_v1_predicts(server: "RunningServer") -> None:
    response = server.request("POST", f"{server.entry.v1}:predict", server.entry.v1_request)

    assert (response.status, response.body) == (200, orjson.dumps(server.entry.v1_response))
    assert response.headers["content-type"] == "application/json"


def test_v1_explains_or_says_that_it_cannot(server: "RunningServer") -> None:
    response = server.request("POST", f"{server.entry.v1}:explain", server.entry.v1_request)

    if server.entry.v1_explanation is None:
        name = server.entry.model_name
        assert response.status == 501
        assert response.json() == {"error": f"model {name} does not implement explain"}
    else:
        assert response.status == 200
        assert response.body == orjson.dumps(server.entry.v1_explanation)


def test_explain_echoes_no_request_header(server: "RunningServer") -> None:
    headers = {"Authorization": "Bearer secret", "Cookie": "id=secret", "X-Own": "secret"}

    response = server.request("POST", f"{server.entry.v1}:explain", b"{}", headers)

    assert "secret" not in str(response.headers)


def test_v2_infers(server: "RunningServer") -> None:
    body = {"id": "one", **server.entry.v2_request}

    response = server.request("POST", f"{server.entry.v2}/infer", body)

    assert (response.status, response.body) == (200, orjson.dumps(server.entry.v2_response("one")))
    assert response.headers["content-type"] == "application/json"


def test_v2_answer_has_an_id_where_the_client_sent_none(server: "RunningServer") -> None:
    response = server.request("POST", f"{server.entry.v2}/infer", server.entry.v2_request)

    made_id = response.json()["id"]
    assert isinstance(made_id, str) and made_id
    assert response.json() == server.entry.v2_response(made_id)


def test_v2_gives_the_requested_outputs_alone(server: "RunningServer") -> None:
    name = server.entry.v2_outputs[0]["name"]
    body = {"id": "one", **server.entry.v2_request, "outputs": [{"name": name}]}

    response = server.request("POST", f"{server.entry.v2}/infer", body)

    assert response.json() == server.entry.v2_response("one")


def test_metrics_count_the_answers_of_each_model_and_protocol(server: "RunningServer") -> None:
    labels = f'model_name="{server.entry.model_name}",protocol="v2",status="200"'
    line = f"kserve_requests_total{{{labels}}}"
    server.request("POST", f"{server.entry.v2}/infer", server.entry.v2_request)
    before = _sample(server, line)

    server.request("POST", f"{server.entry.v2}/infer", server.entry.v2_request)

    assert _sample(server, line) == before + 1


def test_metrics_hold_the_histogram_that_dashboards_read(server: "RunningServer") -> None:
    line = f'request_predict_seconds_count{{model_name="{server.entry.model_name}"}}'
    server.request("POST", f"{server.entry.v1}:predict", server.entry.v1_request)
    before = _sample(server, line)

    server.request("POST", f"{server.entry.v1}:predict", server.entry.v1_request)

    assert _sample(server, line) == before + 1


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        pytest.param({}, "text/plain", id="text"),
        pytest.param(
            {"Accept": "application/openmetrics-text"}, "application/openmetrics-text", id="open"
        ),
    ],
)
def test_metrics_come_in_the_format_that_is_asked_for(
    server: "RunningServer", accept: dict[str, str], content_type: str
) -> None:
    response = server.request("GET", "/metrics", headers=accept)

    assert response.status == 200
    assert response.headers["content-type"].partition(";")[0] == content_type


@pytest.mark.parametrize("path", GET_ROUTES)
def test_head_has_the_headers_of_get_and_no_body(server: "RunningServer", path: str) -> None:
    path = path.format(model=server.entry.model_name)

    got = server.request("GET", path)
    head = server.request("HEAD", path)

    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    # The metrics' length changes from one scrape to the next.
    assert path == "/metrics" or head.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize("path", GET_ROUTES)
def test_a_trailing_slash_changes_nothing(server: "RunningServer", path: str) -> None:
    path = path.format(model=server.entry.model_name)

    response = server.request("GET", f"{path}/")

    assert response.status == 200
    assert path == "/metrics" or response.body == server.request("GET", path).body


@pytest.mark.parametrize("path", POST_ROUTES)
def test_a_trailing_slash_changes_nothing_for_a_prediction(
    server: "RunningServer", path: str
) -> None:
    path = path.format(model=server.entry.model_name)
    is_v2 = path.startswith("/v2")
    body = {"id": "1", **(server.entry.v2_request if is_v2 else server.entry.v1_request)}

    plain = server.request("POST", path, body)
    slashed = server.request("POST", f"{path}/", body)

    assert (slashed.status, slashed.body) == (plain.status, plain.body)


@pytest.mark.parametrize("path", POST_ROUTES)
def test_a_query_string_changes_nothing(server: "RunningServer", path: str) -> None:
    path = path.format(model=server.entry.model_name)
    is_v2 = path.startswith("/v2")
    body = {"id": "1", **(server.entry.v2_request if is_v2 else server.entry.v1_request)}

    plain = server.request("POST", path, body)
    queried = server.request("POST", f"{path}?trace=1&x=%2F", body)

    assert (queried.status, queried.body) == (plain.status, plain.body)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", GET_ROUTES)
def test_a_route_to_read_refuses_other_methods(
    server: "RunningServer", path: str, method: str
) -> None:
    response = server.request(method, path.format(model=server.entry.model_name))

    assert (response.status, response.json()) == (405, METHOD_NOT_ALLOWED)
    assert sorted(response.headers["allow"].split(", ")) == ["GET", "HEAD"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", POST_ROUTES)
def test_a_route_to_predict_refuses_other_methods(
    server: "RunningServer", path: str, method: str
) -> None:
    response = server.request(method, path.format(model=server.entry.model_name))

    assert (response.status, response.json()) == (405, METHOD_NOT_ALLOWED)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", POST_ROUTES)
def test_head_of_a_route_to_predict_is_refused_without_a_body(
    server: "RunningServer", path: str
) -> None:
    response = server.request("HEAD", path.format(model=server.entry.model_name))

    assert (response.status, response.body) == (405, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1",
        "/v1/nothing",
        "/v2/nothing",
        "/v2/health",
        "/v2/health/nothing",
        "/v3/models",
        "/metrics/nothing",
        "/%00",
        "/v1/../etc/passwd",
    ],
)
def test_an_unknown_path_is_not_found(server: "RunningServer", path: str) -> None:
    response = server.request("GET", path)

    assert (response.status, response.json()) == (404, NOT_FOUND)
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "path",
    ["/v1/models/{model}", "/v2/models/{model}", "/v2/models/{model}/ready"],
)
def test_an_unknown_model_is_named_by_the_routes_to_read(
    server: "RunningServer", path: str
) -> None:
    response = server.request("GET", path.format(model="InvalidModel"))

    assert response.status == 404
    if server.entry.openai is not None and path.startswith("/v1/"):
        # It may be OpenAI's clients that ask.
        assert response.json()["error"]["message"] == UNKNOWN_MODEL["error"]
    else:
        assert response.json() == UNKNOWN_MODEL


@pytest.mark.parametrize("path", POST_ROUTES)
@pytest.mark.parametrize(
    "body", [pytest.param(b"{}", id="an object"), pytest.param(b"{", id="no JSON")]
)
def test_an_unknown_model_is_named_by_the_routes_to_predict(
    server: "RunningServer", path: str, body: bytes
) -> None:
    response = server.request("POST", path.format(model="InvalidModel"), body)

    assert (response.status, response.json()) == (404, UNKNOWN_MODEL)


def test_a_model_name_is_compared_after_percent_decoding(server: "RunningServer") -> None:
    name = server.entry.model_name
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())

    response = server.request("GET", f"/v2/models/{encoded}/ready")

    assert (response.status, response.json()) == (200, {"name": name, "ready": True})


def test_a_model_name_is_exact(server: "RunningServer") -> None:
    name = server.entry.model_name.upper()

    response = server.request("GET", f"/v2/models/{name}/ready")

    assert response.status == 404
    assert response.json() == {"error": f"Model with name {name} does not exist."}


def _sample(server: "RunningServer", line: str) -> float:
    text = server.request("GET", "/metrics").body.decode()
    values = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line)]
    assert len(values) == 1, f"{line} occurs {len(values)} times"
    return float(values[0])
