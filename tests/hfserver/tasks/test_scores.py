"""Scores of logits, and the best of them."""

import numpy as np
import pytest
import torch

from hfserver.tasks.scores import apply_function, best

LOGITS = np.array([[0.5, -3.0, 2.0], [100.0, -100.0, 0.0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("softmax", torch.softmax(torch.tensor(LOGITS), -1)),
        ("sigmoid", torch.sigmoid(torch.tensor(LOGITS))),
        ("none", torch.tensor(LOGITS)),
    ],
)
def test_gives_what_torch_gives(function: str, expected: torch.Tensor) -> None:
    scores = apply_function(function, LOGITS)

    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-7)


@pytest.mark.parametrize(
    ("n", "places"),
    [
        pytest.param(1, [3], id="one"),
        pytest.param(2, [3, 1], id="of equal ones the first"),
        pytest.param(3, [3, 1, 2], id="three"),
        pytest.param(9, [3, 1, 2, 4, 0], id="more than there are"),
        pytest.param(None, [3, 1, 2, 4, 0], id="all"),
    ],
)
def test_the_best_come_first(n: int | None, places: list[int]) -> None:
    scores = np.array([0.1, 0.5, 0.5, 0.9, 0.2], dtype=np.float32)

    assert best(scores, n).tolist() == places
