"""The routes over real sockets, byte for byte."""

import base64
import threading
from http.client import HTTPConnection
from typing import Any

import numpy as np
import orjson
import pytest
from prometheus_client import REGISTRY

from kserve.testing import Response, request

ENCODER = "org/encoder"
WIDE = [[100 / 3, -100 / 7, np.pi * 100]]


def post(port: int, path: str, body: Any, **headers: str) -> Response:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return request(port, "POST", path, data, headers)


def error(response: Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    result: dict[str, Any] = body["error"]
    return result


@pytest.mark.parametrize("path", ["/v1/embeddings", "/openai/v1/embeddings", "/v1/embeddings/"])
def test_embeds_as_numbers_that_are_the_model_s_to_the_bit(port: int, path: str) -> None:
    response = post(port, path, {"model": ENCODER, "input": ["d", "ab"]})

    body = response.json()
    assert response.status == 200
    assert list(body) == ["object", "data", "model", "usage"]
    assert body["object"] == "list"
    assert body["model"] == ENCODER
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [(item["object"], item["index"]) for item in body["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    expected = np.array([[n / 3, -n / 7, np.pi * n] for n in (100, 195)], np.float32)
    got = np.array([item["embedding"] for item in body["data"]], np.float32)
    assert got.tobytes() == expected.tobytes()


def test_embeds_as_base64_of_little_endian_float32(port: int) -> None:
    body = {"model": ENCODER, "input": "d", "encoding_format": "base64"}

    (item,) = post(port, "/v1/embeddings", body).json()["data"]

    expected = np.array(WIDE, "<f4")
    assert base64.b64decode(item["embedding"], validate=True) == expected.tobytes()


@pytest.mark.parametrize(
    ("value", "n_vectors", "n_tokens"),
    [
        pytest.param("abc", 1, 3, id="text"),
        pytest.param(["abc", ""], 2, 3, id="texts"),
        pytest.param([1, 2], 1, 2, id="token ids"),
        pytest.param([[1, 2], [3]], 2, 3, id="lists of token ids"),
    ],
)
def test_embeds_each_form_of_input(port: int, value: Any, n_vectors: int, n_tokens: int) -> None:
    response = post(port, "/v1/embeddings", {"model": ENCODER, "input": value})

    assert len(response.json()["data"]) == n_vectors
    assert response.json()["usage"]["prompt_tokens"] == n_tokens


def test_embeds_in_fewer_dimensions_of_length_one(port: int) -> None:
    response = post(port, "/v1/embeddings", {"model": ENCODER, "input": "d", "dimensions": 2})

    vector = np.array(WIDE, np.float32)[0, :2]
    expected = vector / np.linalg.norm(vector)
    np.testing.assert_allclose(response.json()["data"][0]["embedding"], expected, rtol=1e-6)


def test_says_how_many_dimensions_there_are(port: int) -> None:
    response = post(port, "/v1/embeddings", {"model": ENCODER, "input": "d", "dimensions": 4})

    assert response.status == 400
    assert error(response) == {
        "message": "'dimensions': expected 1 to 3, got 4",
        "type": "invalid_request_error",
        "param": "dimensions",
        "code": None,
    }


def test_counts_numbers_that_become_null(port: int) -> None:
    def count() -> float:
        labels = {"model_name": ENCODER}
        return REGISTRY.get_sample_value("kserve_nonfinite_values_total", labels) or 0

    before = count()

    response = post(port, "/v1/embeddings", {"model": ENCODER, "input": "not finite"})

    assert response.json()["data"][0]["embedding"] == [None, None, 1]
    assert count() - before == 2


RERANK = {"model": ENCODER, "query": "q", "documents": ["a", {"text": "aaa"}, "aa"]}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/openai/v1/rerank"])
def test_reranks_the_best_first(port: int, path: str) -> None:
    body = post(port, path, RERANK).json()

    assert list(body) == ["id", "model", "usage", "results"]
    assert [
        (r["index"], np.float32(r["relevance_score"]), r["document"]) for r in body["results"]
    ] == [
        (1, np.float32(3 / 7), {"text": "aaa"}),
        (2, np.float32(2 / 7), {"text": "aa"}),
        (0, np.float32(1 / 7), {"text": "a"}),
    ]
    assert body["model"] == ENCODER


def test_reranks_the_top_n_without_documents(port: int) -> None:
    asked = {**RERANK, "top_n": 1, "return_documents": False}

    assert [set(r) for r in post(port, "/rerank", asked).json()["results"]] == [
        {"index", "relevance_score"}
    ]


def test_reranks_without_documents_as_the_second_version_of_cohere(port: int) -> None:
    results = post(port, "/v2/rerank", RERANK).json()["results"]

    assert [r["index"] for r in results] == [1, 2, 0]
    assert all("document" not in r for r in results)
    asked = {**RERANK, "return_documents": True}
    assert "document" in post(port, "/v2/rerank", asked).json()["results"][0]


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param({"text_1": "ab", "text_2": ["a", "abc"]}, id="one with several"),
        pytest.param({"queries": ["ab", "ab"], "documents": ["a", "abc"]}, id="one by one"),
    ],
)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_pairs(port: int, path: str, pairs: dict[str, Any]) -> None:
    body = post(port, path, {"model": ENCODER, **pairs}).json()

    assert body["data"] == [
        {"object": "score", "index": 0, "score": 1.0},
        {"object": "score", "index": 1, "score": 0.5},
    ]


@pytest.mark.parametrize("path", ["/classify", "/openai/v1/classify"])
def test_classifies_on_a_thread_of_the_model(port: int, path: str) -> None:
    body = post(port, path, {"model": ENCODER, "input": ["ab", "abcd"]}).json()

    labels = ["short", "long"]
    common = {"num_classes": 2, "labels": labels}
    assert body["data"] == [
        {"index": 0, "label": "short", "probs": [1.0, 0.125], **common},
        {"index": 1, "label": "long", "probs": [0.5, 0.625], **common},
    ]


def test_pools_a_matrix_of_each_text(port: int) -> None:
    body = post(port, "/pooling", {"model": ENCODER, "input": "d"}).json()

    (item,) = body["data"]
    assert (item["object"], item["index"], item["data"][0]) == ("pooling", 0, [0.0, 0.0, 0.0])
    assert np.array(item["data"][1], np.float32).tolist() == np.array(WIDE, np.float32)[0].tolist()


def test_pools_as_base64(port: int) -> None:
    asked = {"model": ENCODER, "input": "d", "encoding_format": "base64"}

    (item,) = post(port, "/pooling", asked).json()["data"]

    got = np.frombuffer(base64.b64decode(item["data"]), "<f4").reshape(2, 3)
    assert np.array_equal(got, np.array([[0, 0, 0], WIDE[0]], np.float32))


def test_tokenizes_and_back(port: int) -> None:
    asked = {"model": ENCODER, "prompt": "ab", "return_token_strs": True}

    assert post(port, "/tokenize", asked).json() == {
        "tokens": [97, 98],
        "count": 2,
        "max_model_len": 8,
        "token_strs": ["a", "b"],
    }
    tokens = {"model": ENCODER, "tokens": [97, 98]}
    assert post(port, "/detokenize", tokens).json() == {"prompt": "ab"}


def test_completes(port: int) -> None:
    asked = {"model": "writer", "prompt": ["a", "b"], "n": 2, "max_tokens": 2}

    body = post(port, "/v1/completions", asked).json()

    assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
    assert body["object"] == "text_completion"
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert body["choices"][0] == {
        "index": 0,
        "text": "the quick",
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert body["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 7,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


CHAT = {"model": "writer", "messages": [{"role": "user", "content": "go"}]}


def test_answers_a_chat(port: int) -> None:
    body = post(port, "/openai/v1/chat/completions", CHAT).json()

    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "the quick brown fox", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


def stream(port: int, path: str, body: dict[str, Any]) -> tuple[Response, list[Any]]:
    response = post(port, path, {**body, "stream": True})
    assert response.body.endswith(b"data: [DONE]\n\n")
    events = response.body.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events.pop() == "data: [DONE]"
    return response, [orjson.loads(event.removeprefix("data: ")) for event in events]


def test_streams_a_chat(port: int) -> None:
    response, chunks = stream(port, "/v1/chat/completions", CHAT)

    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "the "},
        {"content": "quick "},
        {"content": "brown "},
        {"content": "fox "},
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_streams_the_usage_last(port: int) -> None:
    asked = {**CHAT, "stream_options": {"include_usage": True}}

    _, chunks = stream(port, "/v1/chat/completions", asked)

    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        pytest.param(
            "fail midway",
            {
                "message": "expected more, got 2 words",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            },
            id="for the client to read",
        ),
        pytest.param(
            "break midway",
            {
                "message": "Internal server error",
                "type": "server_error",
                "param": None,
                "code": "internal_error",
            },
            id="without internals",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_ends_a_stream_that_fails_midway_with_the_error(
    port: int, path: str, prompt: str, expected: dict[str, Any]
) -> None:
    def failures() -> float:
        labels = {"model_name": "writer", "protocol": "openai", "status": "500"}
        return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0

    before = failures()
    messages = [{"role": "user", "content": prompt}]
    asked = {"prompt": prompt} if path == "/v1/completions" else {"messages": messages}

    response, events = stream(port, path, {"model": "writer", **asked})

    assert response.status == 200
    assert [set(event) == {"error"} for event in events] == [False, False, True]
    assert events[-1] == {"error": expected}
    # It is counted after the client has its end.
    pause = threading.Event()
    assert any(failures() == before + 1 or pause.wait(0.01) for _ in range(1500))


@pytest.mark.parametrize("is_stream", [False, True])
def test_fails_with_a_status_before_the_first_chunk(port: int, is_stream: bool) -> None:
    prompt = "fail at once" if is_stream else "fail"

    response = post(
        port, "/v1/completions", {"model": "writer", "prompt": prompt, "stream": is_stream}
    )

    assert response.status == 500
    assert error(response) == {
        "message": "Internal server error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code", "message"),
    [
        pytest.param(
            "/v1/embeddings",
            {"model": "nobody", "input": "a"},
            404,
            "model",
            "model_not_found",
            "Model with name nobody does not exist.",
            id="unknown model",
        ),
        pytest.param(
            "/v1/embeddings",
            {"model": "sleeping", "input": "a"},
            503,
            "model",
            "model_not_ready",
            "Model with name sleeping is not ready.",
            id="not ready",
        ),
        pytest.param(
            "/v1/chat/completions",
            {"model": ENCODER, "messages": []},
            400,
            "model",
            "unsupported_api",
            f"Model {ENCODER} does not support Chat Completions API",
            id="another kind of model",
        ),
        pytest.param(
            "/v1/embeddings",
            {"model": "plain", "input": "a"},
            400,
            "model",
            "unsupported_api",
            "Model plain does not support Embeddings API",
            id="a model of other protocols",
        ),
        pytest.param(
            "/v1/embeddings",
            {"input": "a"},
            400,
            "model",
            "missing_required_parameter",
            "missing required parameter 'model'",
            id="no model, of several",
        ),
        pytest.param(
            "/v1/embeddings",
            b"{",
            400,
            None,
            "invalid_json",
            "Unrecognized request format: unexpected end of data: line 1 column 2 (char 1)",
            id="bad JSON",
        ),
        pytest.param(
            "/v1/embeddings",
            {"model": ENCODER, "input": "refuse"},
            400,
            None,
            None,
            "expected another text, got 'refuse'",
            id="refused by the model",
        ),
        pytest.param(
            "/v1/embeddings",
            {"model": ENCODER, "input": "too long"},
            400,
            "input",
            "context_length_exceeded",
            "too long",
            id="refused with a code",
        ),
    ],
)
def test_answers_what_is_wrong_with_openai_s_error(
    port: int, path: str, body: Any, status: int, param: str, code: str, message: str
) -> None:
    response = post(port, path, body)

    assert response.status == status
    kind = "server_error" if status >= 500 else "invalid_request_error"
    assert error(response) == {"message": message, "type": kind, "param": param, "code": code}


def test_answers_with_the_error_that_a_handler_returns(port: int) -> None:
    response = post(port, "/v1/embeddings", {"model": ENCODER, "input": "error response"})

    assert response.status == 503
    assert response.json() == {
        "error": {"message": "busy", "type": "ServerError", "param": "", "code": "503"}
    }


def test_takes_only_post(port: int) -> None:
    response = request(port, "GET", "/v1/embeddings")

    assert response.status == 405
    assert response.headers["allow"] == "POST"
    assert error(response)["code"] == "method_not_allowed"


def test_gives_the_request_id_and_the_handler_s_headers_back(port: int) -> None:
    response = post(
        port, "/v1/embeddings", {"model": ENCODER, "input": "a"}, **{"X-Request-Id": "mine"}
    )

    assert response.headers["x-request-id"] == "mine"
    assert response.headers["x-seen"] == "mine"
    failed = post(port, "/v1/embeddings", b"[", **{"X-Request-Id": "mine"})
    assert failed.headers["x-request-id"] == "mine"


def test_answers_the_same_model_over_v1_and_v2(port: int) -> None:
    v1 = post(port, f"/v1/models/{ENCODER}:predict", {"instances": ["d"]}).json()
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["d"]}
    v2 = post(port, f"/v2/models/{ENCODER}/infer", {"inputs": [tensor]}).json()

    expected = np.array(WIDE, np.float32)
    assert np.array(v1["predictions"], np.float32).tobytes() == expected.tobytes()
    assert np.array(v2["outputs"][0]["data"], np.float32).tobytes() == expected.tobytes()


def test_says_that_a_model_of_these_routes_alone_infers_nothing(port: int) -> None:
    response = post(port, "/v1/models/writer:predict", {"instances": []})

    assert response.status == 501
    assert response.json() == {"error": "model writer does not implement predict"}


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/json; charset=utf-8"])
def test_reads_json_whatever_it_is_called(port: int, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}

    response = post(port, "/v1/embeddings", {"model": ENCODER, "input": "a"}, **headers)

    assert response.status == 200


def test_keeps_the_connection_after_a_stream(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    body = orjson.dumps({**CHAT, "stream": True})
    try:
        for _ in range(2):
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            assert response.read().endswith(b"data: [DONE]\n\n")
            assert response.getheader("connection") is None
    finally:
        connection.close()
