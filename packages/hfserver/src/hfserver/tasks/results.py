"""What the tasks have in common: what the engine gave for a text, and the kinds of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hfserver.inputs import Text, Wishes
from hfserver.options import Options
from hfserver.tasks.scores import Logits
from kserve.errors import InvalidInput
from kserve.signature import Tensors, TensorSpec

# The only output of KServe's server.
OUTPUT: Final = "output-0"


class Kind(Enum):
    """What V1 and V2 give for a text."""

    PLAIN = "the number of the best class, or the best token"
    PROBABILITIES = "the probability of every class"
    RAW_LOGITS = "the logit of every class"
    RICH = "labels and scores"


@dataclass(frozen=True, slots=True)
class Result:
    """What the engine gave for one text.

    Attributes:
        text: The text, or the pair.
        ids: Its tokens.
        offsets: Where each stands in the text, in characters; None if the tokenizer does not tell.
        is_special: Of each, whether the model has added it.
        numbers: What the head of the model gave: (n_labels,), (n_tokens, n_labels),
            (n_masks, n_vocabulary) or (n_dimensions,).
    """

    text: Text
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]] | None
    is_special: Sequence[bool]
    numbers: Logits


class TaskAnswers(Protocol):
    """Makes the answers of one task."""

    def outputs(self, kind: Kind) -> tuple[TensorSpec, ...]:
        """Give the outputs of V2, for the metadata."""

    def row(self, result: Result, kind: Kind, wishes: Wishes) -> Any:
        """Give what V1 says of one text."""

    def tensors(self, results: Sequence[Result], kind: Kind, wishes: Wishes) -> Tensors:
        """Give what V2 says of all texts of a request."""


def kind_of(options: Options, wishes: Wishes) -> Kind:
    """Give what a request gets: what it asks for, else what the command line says.

    Raises:
        InvalidInput: It asks for probabilities and for logits.
    """
    if wishes.return_probabilities and wishes.return_raw_logits:
        raise InvalidInput("expected return_probabilities or return_raw_logits, got both as true")
    if wishes.rich_results:
        return Kind.RICH
    if wishes.return_raw_logits:
        return Kind.RAW_LOGITS
    if wishes.return_probabilities:
        return Kind.PROBABILITIES
    return _default_kind(options, wishes)


def _default_kind(options: Options, wishes: Wishes) -> Kind:
    if options.rich_results and wishes.rich_results is None:
        return Kind.RICH
    if options.return_raw_logits and wishes.return_raw_logits is None:
        return Kind.RAW_LOGITS
    if options.return_probabilities and wishes.return_probabilities is None:
        return Kind.PROBABILITIES
    return Kind.PLAIN


def objects(values: Sequence[Any], shape: tuple[int, ...] | None = None) -> NDArray[np.object_]:
    """Give values, which may be lists themselves, as an array of objects; flat without a shape."""
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array if shape is None else array.reshape(shape)


def texts_of(values: Sequence[Any], shape: tuple[int, ...] | None = None) -> NDArray[np.object_]:
    """Give objects as Python writes them: what KServe's server puts into BYTES."""
    return objects([str(value) for value in values], shape)


def top_k_of(wishes: Wishes, default: int | None) -> int | None:
    """Give how many labels or tokens a request asks for; None is all."""
    if wishes.top_k is None:
        return default
    return None if wishes.top_k == -1 else wishes.top_k
