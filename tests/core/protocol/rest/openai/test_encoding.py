"""Responses as JSON."""

from typing import Any

import numpy as np
import orjson
import pytest

from kserve.errors import InferenceError
from kserve.protocol.rest.openai.encoding import encode, encode_chunk
from kserve.protocol.rest.openai.types import (
    ClassificationData,
    ClassificationResponse,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponseData,
    PoolingRequest,
    PoolingResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreResponseData,
    UsageInfo,
)

FLOAT = EmbeddingRequest(model="m", input="a")
BASE64 = EmbeddingRequest(model="m", input="a", encoding_format="base64")


def written(response: Any, request: Any = FLOAT) -> Any:
    return orjson.loads(encode(response, request).body)


def test_writes_a_matrix_byte_for_byte() -> None:
    response = Embedding(data=np.array([[0.1, 2]], np.float32), usage=UsageInfo.of(2))

    assert encode(response, FLOAT).body == (
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,2.0]}],'
        b'"model":"m","usage":{"prompt_tokens":2,"total_tokens":2}}'
    )
    assert encode(response, BASE64).body == (
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":"zczMPQAAAEA="}],'
        b'"model":"m","usage":{"prompt_tokens":2,"total_tokens":2}}'
    )


def test_writes_items_that_the_model_has_made() -> None:
    items = [
        EmbeddingResponseData(index=5, embedding=np.ones(1, np.float64)),
        EmbeddingResponseData(index=6, embedding="AACAPw=="),
        EmbeddingResponseData(index=7, embedding=[1.0]),
    ]
    response = Embedding(data=items, model="other")

    assert [item["embedding"] for item in written(response)["data"]] == [[1.0], "AACAPw==", [1.0]]
    assert [item["embedding"] for item in written(response, BASE64)["data"]] == [
        *("AACAPw==", "AACAPw==", [1.0]),
    ]
    assert written(response)["model"] == "other"
    # The model's objects stay what they were.
    assert response.data is items and isinstance(items[0].embedding, np.ndarray)


def test_a_response_that_a_model_keeps_is_written_again() -> None:
    response = Embedding(data=np.ones((1, 1), np.float32))

    first = encode(response, BASE64)
    second = encode(response, EmbeddingRequest(model="n", input="a"))

    assert b'"embedding":"AACAPw=="' in first.body and b'"model":"m"' in first.body
    assert b'"embedding":[1.0]' in second.body and b'"model":"n"' in second.body


def test_writes_scores_and_pools_of_any_shape() -> None:
    request = ScoreRequest(model="m")
    scores = ScoreResponse(data=np.array([0.5], np.float32))
    given = ScoreResponse(data=[ScoreResponseData(index=3, score=0.25)])

    assert written(scores, request)["data"] == [{"object": "score", "index": 0, "score": 0.5}]
    assert written(given, request)["data"] == [{"object": "score", "index": 3, "score": 0.25}]
    pooled = PoolingResponse(data=[np.ones((2, 1), np.float32), np.zeros((1, 1), np.float32)])
    items = written(pooled, PoolingRequest(model="m", input="a"))["data"]
    assert [item["data"] for item in items] == [[[1.0], [1.0]], [[0.0]]]


def test_counts_what_becomes_null() -> None:
    matrix = np.array([[np.nan, 1], [np.inf, -np.inf]], np.float32)
    probs = [ClassificationData(index=0, probs=np.array([np.nan]))]

    assert encode(Embedding(data=matrix), FLOAT).n_nulled == 3
    assert encode(Embedding(data=matrix), BASE64).n_nulled == 0
    assert encode(ClassificationResponse(data=probs), FLOAT).n_nulled == 1


class Pydantic:
    """Looks as a model of pydantic's does."""

    def model_dump_json(self, *, exclude_unset: bool) -> str:
        return orjson.dumps({"exclude_unset": exclude_unset}).decode()


def test_writes_dicts_and_the_models_of_pydantic() -> None:
    assert written({"a": np.float32(0.5)}) == {"a": 0.5}
    assert encode_chunk(Pydantic()) == b'{"exclude_unset":true}'


@pytest.mark.parametrize("value", [object(), {"a": object()}, np.array(["a"], object)])
def test_says_that_the_model_gave_no_json(value: Any) -> None:
    with pytest.raises(InferenceError, match="the model's answer cannot be written as JSON"):
        encode(value, FLOAT)
