"""Classes of a whole text: labels with scores, or the numbers that KServe's server gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from hfserver.inputs import Wishes
from hfserver.tasks.results import OUTPUT, Kind, Result, objects, texts_of, top_k_of
from hfserver.tasks.scores import Logits, apply_function, best, softmax
from kserve.errors import ModelLoadError
from kserve.signature import Tensors, TensorSpec


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes of a model.

    Attributes:
        names: By number.
        function: How logits become scores where the request does not say.
        score_function: How the logit of the only class becomes the score of a pair of texts.
    """

    names: tuple[str, ...]
    function: str
    score_function: str = "sigmoid"

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Read them from the configuration of a model.

        One that regresses gives its numbers as they are; classes that do not exclude each other,
        and a single one, go through a sigmoid, others through a softmax. Source: transformers,
        `TextClassificationPipeline`.
        """
        names = label_names(config)
        problem = getattr(config, "problem_type", None)
        if problem == "regression":
            function = "none"
        elif problem == "multi_label_classification" or len(names) == 1:
            function = "sigmoid"
        else:
            function = "softmax"
        return cls(names, function, _score_function(config))


# What sentence-transformers writes into the configuration of a cross-encoder, by the name of a
# class of torch; any other is not imported.
_ACTIVATIONS: Final = {"Identity": "none", "Sigmoid": "sigmoid"}


def _score_function(config: Any) -> str:
    """Give what a cross-encoder's logit goes through: a sigmoid unless its files say otherwise."""
    saved = getattr(config, "sentence_transformers", None) or {}
    name = saved.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", "")
    module, _, activation = str(name or "").rpartition(".")
    if module.partition(".")[0] != "torch":
        return "sigmoid"
    if activation not in _ACTIVATIONS:
        raise ModelLoadError(
            f"activation_fn of config.json: expected Identity or Sigmoid of torch, got {name}"
        )
    return _ACTIVATIONS[activation]


def label_names(config: Any) -> tuple[str, ...]:
    """Give the names of a model's classes by number; LABEL_0 and so on where it names none."""
    named: Mapping[Any, str] = {int(key): name for key, name in (config.id2label or {}).items()}
    return tuple(named.get(index, f"LABEL_{index}") for index in range(config.num_labels))


class SequenceClassification:
    """Makes the answers.

    Args:
        labels: The classes of the model.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.n_labels = len(labels.names)

    def outputs(self, kind: Kind) -> tuple[TensorSpec, ...]:
        """Give the outputs of V2."""
        if kind is Kind.RICH:
            return (TensorSpec("label", "BYTES", (-1,)), TensorSpec("score", "FP32", (-1,)))
        return (TensorSpec(OUTPUT, "INT64" if kind is Kind.PLAIN else "BYTES", (-1,)),)

    def row(self, result: Result, kind: Kind, wishes: Wishes) -> Any:
        """Give the number of the class, or values by number, or labels; a list with `top_k`."""
        if kind is Kind.RICH:
            labels = self.rich(result, wishes)
            return labels[0] if wishes.top_k is None else labels
        return _ROWS[kind](result.numbers)

    def tensors(self, results: Sequence[Result], kind: Kind, wishes: Wishes) -> Tensors:
        """Give the same as one output, or `label` and `score`: [n], or with `top_k` [n, k]."""
        if kind is Kind.RICH:
            return self._rich_tensors([self.rich(result, wishes) for result in results], wishes)
        rows = [_ROWS[kind](result.numbers) for result in results]
        if kind is Kind.PLAIN:
            return {OUTPUT: np.array(rows, dtype=np.int64)}
        return {OUTPUT: texts_of(rows)}

    def rich(self, result: Result, wishes: Wishes) -> list[dict[str, Any]]:
        """Give the labels of a text, the best first."""
        return rich(result.numbers, self.labels, wishes.function, top_k_of(wishes, 1))

    def _rich_tensors(self, rows: list[list[dict[str, Any]]], wishes: Wishes) -> Tensors:
        k = min(top_k_of(wishes, 1) or self.n_labels, self.n_labels)
        shape = (len(rows),) if wishes.top_k is None else (len(rows), k)
        cells = [label for row in rows for label in row]
        scores = np.array([cell["score"] for cell in cells], dtype=np.float32)
        return {
            "label": objects([cell["label"] for cell in cells], shape),
            "score": scores.reshape(shape),
        }


def rich(
    logits: Logits, labels: Labels, function: str | None = None, top_k: int | None = 1
) -> list[dict[str, Any]]:
    """Give the best labels of a text, the best first.

    Args:
        logits: Of the text, shape (n_labels,).
        labels: The classes.
        function: How logits become scores; None for the model's own.
        top_k: How many; None for all.
    """
    scores = apply_function(function or labels.function, logits)
    return [
        {"label": labels.names[index], "score": float(scores[index])}
        for index in best(scores, top_k).tolist()
    ]


def plain(logits: Logits) -> int:
    """Give the number of the best class of a text; `logits` has shape (n_labels,)."""
    return int(logits.argmax())


def probabilities(logits: Logits) -> dict[int, float]:
    """Give the probability of each class by its number, with four decimals, as KServe's server."""
    return numbered(np.round(softmax(logits).astype(np.float64), 4).tolist())


def raw_logits(logits: Logits) -> dict[int, float]:
    """Give the logit of each class by its number."""
    return numbered(logits.tolist())


def numbered(values: Sequence[float]) -> dict[int, float]:
    """Give values by their place."""
    return dict(enumerate(values))


_ROWS: Final[Mapping[Kind, Callable[[Logits], Any]]] = {
    Kind.PLAIN: plain,
    Kind.PROBABILITIES: probabilities,
    Kind.RAW_LOGITS: raw_logits,
}
