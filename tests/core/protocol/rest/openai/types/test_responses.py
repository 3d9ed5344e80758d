"""The responses, as code makes them."""

import re

import numpy as np
import pytest

from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ClassificationResponse,
    Completion,
    Error,
    ErrorResponse,
    Rerank,
    RerankRequest,
    UsageInfo,
)


def test_each_response_has_an_id_of_its_own() -> None:
    ids = [Completion(model="m", choices=[]).id for _ in range(2)]

    assert ids[0] != ids[1]
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", ids[0])
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", ChatCompletion(model="m", choices=[]).id)


@pytest.mark.parametrize(
    ("code", "status"),
    [("404", 404), ("model_not_found", 400), (None, 400), ("700", 400), ("200", 400)],
)
def test_an_error_without_a_status_has_that_of_its_code(code: str | None, status: int) -> None:
    assert ErrorResponse(error=Error(message="", type="", code=code)).http_status == status


def test_usage_has_the_total() -> None:
    assert UsageInfo.of(2, 3, 1).model_dump() == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def test_reranks_equal_scores_in_their_order_and_nan_last() -> None:
    request = RerankRequest(query="q", documents=["a", "b", "c", "d"])
    scores = np.array([0.5, np.nan, 0.5, 0.75], np.float32)

    rerank = Rerank.of(request, scores, UsageInfo.of(1), "m")

    assert [result.index for result in rerank.results] == [3, 0, 2, 1]
    assert rerank.model == "m"


@pytest.mark.parametrize(("top_n", "n_results"), [(None, 3), (0, 3), (2, 2), (9, 3)])
def test_reranks_as_many_as_are_asked_for(top_n: int | None, n_results: int) -> None:
    request = RerankRequest(query="q", documents=["a", "b", "c"], top_n=top_n)

    assert len(Rerank.of(request, [1, 2, 3], UsageInfo()).results) == n_results


def test_classifies_by_the_likeliest_label() -> None:
    response = ClassificationResponse.of([[0.25, 0.75]], ["no", "yes"], UsageInfo.of(1))

    (item,) = response.model_dump()["data"]
    assert item == {
        "index": 0,
        "label": "yes",
        "probs": [0.25, 0.75],
        "num_classes": 2,
        "labels": ["no", "yes"],
    }
