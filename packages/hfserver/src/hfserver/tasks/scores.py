"""From logits to scores: softmax, sigmoid, or as they are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def apply_function(function: str, logits: Logits) -> Logits:
    """Give the scores of logits, shape (..., n_labels), by softmax, sigmoid or none."""
    if function == "softmax":
        return softmax(logits)
    return sigmoid(logits) if function == "sigmoid" else logits


def softmax(logits: Logits) -> Logits:
    """Give the probabilities of classes that exclude each other, along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Logits = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: Logits) -> Logits:
    """Give the probability of each class by itself."""
    with np.errstate(over="ignore"):  # exp(100) is infinite in FP32, and 1 / inf the right 0
        probabilities: Logits = np.float32(1) / (np.float32(1) + np.exp(-logits))
    return probabilities


def best(scores: NDArray[Any], n: int | None) -> NDArray[np.int64]:
    """Give the places of the `n` highest of scores, shape (n_labels,), the best first; None is all.

    Of equal ones the first in place comes first.
    """
    n_labels = scores.shape[-1]
    if n is None or n >= n_labels:
        order: NDArray[np.int64] = np.argsort(-scores, kind="stable")
        return order
    # A vocabulary has 30,000 and more: sorted are those alone that may be among the best.
    least = np.partition(scores, n_labels - n)[n_labels - n]
    candidates = np.flatnonzero(scores >= least)
    chosen: NDArray[np.int64] = candidates[np.argsort(-scores[candidates], kind="stable")][:n]
    return chosen
