"""The list of models, on OpenAI's paths and on those that V1 has too."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kserve import Model
from kserve.config import ServerConfig
from kserve.model import BaseKServeModel
from kserve.model_repository import ModelRepository
from kserve.model_server import ModelServer
from kserve.protocol.rest.openai import OpenAIEncoderModel, OpenAIGenerativeModel
from kserve.protocol.rest.openai.types import CompletionRequest, Embedding, EmbeddingRequest
from kserve.testing import Response, request, serving

NOT_FOUND = b'{"detail":"Not Found"}'


def get(port: int, path: str, method: str = "GET") -> Response:
    return request(port, method, path)


def card(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "", **more}


def without_created(body: Any) -> Any:
    for each in body.get("data", [body]):
        assert abs(each.pop("created") - time.time()) < 600
    return body


def test_lists_the_models_of_the_routes(port: int) -> None:
    response = get(port, "/openai/v1/models")

    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["object", "data"]
    assert list(response.json()["data"][0]) == [
        *("id", "object", "created", "owned_by", "max_model_len"),
    ]
    assert without_created(response.json()) == {
        "object": "list",
        "data": [
            card("org/encoder", max_model_len=8),
            card("writer"),
            card("sleeping", max_model_len=8),
        ],
    }


def test_lists_all_models_for_both_protocols_on_the_path_of_both(port: int) -> None:
    body = get(port, "/v1/models").json()

    assert list(body) == ["models", "object", "data"]
    assert sorted(body["models"]) == ["org/encoder", "plain", "sleeping", "writer"]
    assert [each["id"] for each in body["data"]] == ["org/encoder", "writer", "sleeping"]


@pytest.mark.parametrize("name", ["org/encoder", "org%2Fencoder"])
def test_says_what_a_model_is(port: int, name: str) -> None:
    expected = card("org/encoder", max_model_len=8)

    assert without_created(get(port, f"/openai/v1/models/{name}").json()) == expected
    merged = get(port, f"/v1/models/{name}").json()
    assert list(merged)[:2] == ["name", "ready"]
    assert without_created(merged) == {"name": "org/encoder", "ready": True, **expected}


def test_leaves_a_model_of_v1_alone_to_v1(port: int) -> None:
    assert get(port, "/v1/models/plain").body == b'{"name":"plain","ready":true}'


def test_leaves_the_versions_of_a_model_to_v1(port: int) -> None:
    response = get(port, "/v1/models/org/encoder/versions/1")

    assert response.status == 404
    assert response.json() == {
        "error": "Model with name org/encoder has no version 1: it has no versions."
    }


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/openai/v1/models/nobody", 404, "model_not_found"),
        ("/v1/models/nobody", 404, "model_not_found"),
        ("/openai/v1/models/plain", 404, "model_not_found"),
        ("/openai/v1/models/sleeping", 503, "model_not_ready"),
        ("/v1/models/sleeping", 503, "model_not_ready"),
    ],
)
def test_says_that_a_model_is_not_there(port: int, path: str, status: int, code: str) -> None:
    response = get(port, path)

    assert response.status == status
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["param"] == "model"


def test_takes_only_get(port: int) -> None:
    response = get(port, "/openai/v1/models", "DELETE")

    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert get(port, "/openai/v1/models", "HEAD").body == b""


class Plain(Model):
    """No model of the routes."""


class Encoder(OpenAIEncoderModel, OpenAIGenerativeModel):
    """A model of the routes."""

    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        if request.input == "fail":
            raise RuntimeError("failed")
        return Embedding(data=np.ones((1, 2), np.float32))

    def create_completion(self, request: CompletionRequest, raw_request: Any = None) -> Any:  # type: ignore[override]
        yield {"choices": []}
        if request.prompt == "fail":
            raise RuntimeError("failed")


class Shelf(ModelRepository):
    """Loads an encoder by any name."""

    def load_model(self, name: str) -> bool:
        model: BaseKServeModel = Encoder(name)
        model.load()
        self.update(model)
        return True


@pytest.fixture
def shelf() -> Iterator[int]:
    """Give the port of a server without a model of the routes, until one is loaded."""
    config = ServerConfig(host="127.0.0.1", http_port=0, enable_grpc=False)
    server = ModelServer(config=config, registered_models=Shelf())
    with serving([Plain("plain")], server) as port:
        yield port


def test_has_no_routes_without_a_model(shelf: int) -> None:
    assert get(shelf, "/v1/models").body == b'{"models":["plain"]}'
    assert get(shelf, "/v1/models/nobody").body == (
        b'{"error":"Model with name nobody does not exist."}'
    )
    for path in ("/openai/v1/models", "/openai/v1/models/plain"):
        assert (get(shelf, path).status, get(shelf, path).body) == (404, NOT_FOUND)
    for path in ("/v1/embeddings", "/openai/v1/completions", "/rerank", "/v2/rerank"):
        response = request(shelf, "POST", path, b"{}")
        assert (response.status, response.body) == (404, NOT_FOUND)


def test_routes_come_and_go_with_a_model(shelf: int) -> None:
    asked = b'{"model":"late","input":"a"}'
    assert request(shelf, "POST", "/v1/embeddings", asked).body == NOT_FOUND

    assert request(shelf, "POST", "/v2/repository/models/late/load").status == 200

    assert request(shelf, "POST", "/v1/embeddings", asked).status == 200
    assert [each["id"] for each in get(shelf, "/openai/v1/models").json()["data"]] == ["late"]
    assert "data" in get(shelf, "/v1/models").json()

    assert request(shelf, "POST", "/v2/repository/models/late/unload").status == 200

    assert request(shelf, "POST", "/v1/embeddings", asked).body == NOT_FOUND
    assert get(shelf, "/v1/models").body == b'{"models":["plain"]}'


def test_nothing_keeps_a_model_that_has_answered(
    shelf: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is freed with its last request, and does not have to be looked for.
    monkeypatch.setattr("kserve.endpoints._COLLECT_AFTER_S", 1000.0)
    assert request(shelf, "POST", "/v2/repository/models/late/load").status == 200
    for api, text in (("embeddings", "a"), ("completions", "a"), ("embeddings", "")):
        body: dict[str, Any] = {
            "model": "late",
            "input": text or [],
            "prompt": text,
            "stream": True,
        }
        request(shelf, "POST", f"/v1/{api}", body)

    unloaded = request(shelf, "POST", "/v2/repository/models/late/unload", timeout_s=10)

    assert unloaded.status == 200


@pytest.mark.parametrize(
    ("prefix", "bases"),
    [
        pytest.param("", ["/v1"], id="none"),
        pytest.param("/", ["/v1"], id="a slash"),
        pytest.param("llm", ["/llm/v1", "/v1"], id="without a slash"),
        pytest.param("/a/b/", ["/a/b/v1", "/v1"], id="two steps"),
    ],
)
def test_the_environment_sets_the_prefix(
    prefix: str, bases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSERVE_OPENAI_ROUTE_PREFIX", prefix)

    with serving([Encoder("encoder")]) as port:
        for base in bases:
            assert "data" in get(port, f"{base}/models").json()
            refused = request(port, "POST", f"{base}/embeddings", b'{"model":"x"}')
            assert refused.json()["error"]["code"] == "model_not_found"
        assert get(port, "/openai/v1/models").body == NOT_FOUND
        merged = get(port, "/v1/models").json()
        assert list(merged) == ["models", "object", "data"]
