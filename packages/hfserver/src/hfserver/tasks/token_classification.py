"""Classes of the tokens of a text, and the entities that they make up.

Source of the strategies: transformers, `TokenClassificationPipeline`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from hfserver.inputs import Wishes
from hfserver.tasks import sequence_classification
from hfserver.tasks.results import OUTPUT, Kind, Result, objects, texts_of
from hfserver.tasks.scores import Logits, softmax
from kserve.errors import InvalidInput
from kserve.signature import Tensors, TensorSpec

DEFAULT_STRATEGY: Final = "simple"

# What stands for a token that is not there, behind the shorter texts of a V2 request: what
# transformers calls a label that is to be ignored.
PADDING: Final = -100

# A token of no entity, in the schemes that tag with B-, I- and O.
_OUTSIDE: Final = "O"


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the text itself, none that the model adds.

    Attributes:
        index: Its place among all tokens.
        word: It as the vocabulary has it, or as the text has it where the vocabulary does not.
        start, end: Where it stands in the text, in characters; None if the tokenizer does not tell.
        is_subword: Whether it goes on with the word of the token before it.
        scores: Of each class, shape (n_labels,).
    """

    index: int
    word: str
    start: int | None
    end: int | None
    is_subword: bool
    scores: Logits


@dataclass(frozen=True, slots=True)
class _Tagged:
    """A token, or a word of some, with its class."""

    label: str
    score: Any
    words: tuple[str, ...]
    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class Words:
    """What the tokenizer of a model knows of words.

    Attributes:
        to_token: Gives the token of an id.
        to_string: Joins tokens to text.
        unknown_id: The id of what is not in the vocabulary; None if there is none.
        marks_subwords: Whether tokens that go on with a word are marked, as "##ing" is.
    """

    to_token: Callable[[int], str]
    to_string: Callable[[list[str]], str]
    unknown_id: int | None
    marks_subwords: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "Words":
        """Look them up in a tokenizer of transformers."""
        model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        return cls(
            tokenizer.convert_ids_to_tokens,
            tokenizer.convert_tokens_to_string,
            tokenizer.unk_token_id,
            bool(getattr(model, "continuing_subword_prefix", None)),
        )


class TokenClassification:
    """Makes the answers.

    Args:
        labels: The classes by number.
        words: What the tokenizer knows of words.
    """

    def __init__(self, labels: Sequence[str], words: Words) -> None:
        self.labels = labels
        self._words = words

    def outputs(self, kind: Kind) -> tuple[TensorSpec, ...]:
        """Give the outputs of V2."""
        if kind is Kind.RICH:
            return (TensorSpec("entities", "BYTES", (-1,)),)
        if kind is Kind.PLAIN:
            return (TensorSpec(OUTPUT, "INT64", (-1, 1, -1)),)
        return (TensorSpec(OUTPUT, "BYTES", (-1, -1)),)

    def row(self, result: Result, kind: Kind, wishes: Wishes) -> Any:
        """Give the entities of a text, or of each token a number, in a list, or values by number.

        The list around the numbers is one too many, as KServe's server has it.
        """
        if kind is Kind.RICH:
            return self.rich(result, wishes)
        numbers = _ROWS[kind](result.numbers)
        return [numbers] if kind is Kind.PLAIN else numbers

    def tensors(self, results: Sequence[Result], kind: Kind, wishes: Wishes) -> Tensors:
        """Give the entities of each text as JSON, or the same as KServe's server, padded."""
        if kind is Kind.RICH:
            rows = [self.rich(result, wishes) for result in results]
            return {"entities": objects([orjson.dumps(row).decode() for row in rows])}
        n_tokens = max((len(result.ids) for result in results), default=0)
        rows = [_ROWS[kind](result.numbers) for result in results]
        if kind is Kind.PLAIN:
            padded = [row + [PADDING] * (n_tokens - len(row)) for row in rows]
            numbers = np.array(padded, dtype=np.int64).reshape(len(rows), 1, n_tokens)
            return {OUTPUT: numbers}
        cells = [cell for row in rows for cell in [*row, *[{}] * (n_tokens - len(row))]]
        return {OUTPUT: texts_of(cells, (len(rows), n_tokens))}

    def rich(self, result: Result, wishes: Wishes) -> list[dict[str, Any]]:
        """Give the entities of a text."""
        if not isinstance(result.text, str):
            raise InvalidInput("entities are found in a text, got a pair of texts")
        return entities(
            result.text,
            result.ids,
            result.offsets,
            result.is_special,
            result.numbers,
            self.labels,
            self._words,
            wishes.strategy or DEFAULT_STRATEGY,
        )


def offset_mapping(results: Sequence[Result]) -> NDArray[np.int64]:
    """Give where each token of each text stands, shape (n_texts, n_tokens, 2), padded with zeros.

    Raises:
        InvalidInput: The tokenizer does not tell.
    """
    n_tokens = max((len(result.ids) for result in results), default=0)
    offsets = np.zeros((len(results), n_tokens, 2), dtype=np.int64)
    for place, result in enumerate(results):
        if result.offsets is None:
            raise InvalidInput("return_offsets_mapping: the tokenizer of this model has no offsets")
        offsets[place, : len(result.ids)] = result.offsets
    return offsets


def entities(
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]] | None,
    is_special: Sequence[bool],
    logits: Logits,
    labels: Sequence[str],
    words: Words,
    strategy: str = "simple",
) -> list[dict[str, Any]]:
    """Find the entities in a text.

    Args:
        text: The text.
        ids: Its tokens.
        offsets: Where each stands in the text, in characters; None if the tokenizer does not tell.
        is_special: Of each, whether the model has added it.
        logits: Of each token, shape (n_tokens, n_labels).
        labels: The classes by number.
        words: What the tokenizer knows of words.
        strategy: `none` gives each token with its class; `simple` joins neighbours of one class;
            `first`, `average` and `max` give all tokens of a word one class before that: that of
            its first token, that of the mean of the scores, or that of the surest token.

    Returns:
        `entity` and `index`, or `entity_group`; `score`, `word`, `start`, `end`.
    """
    tokens = list(_tokens(text, ids, offsets, is_special, softmax(logits), words))
    if strategy == "none":
        return [entity for entity in _each(tokens, labels) if entity["entity"] != _OUTSIDE]
    if strategy == "simple":
        tagged = [_tag(token.scores, (token,), labels) for token in tokens]
    else:
        tagged = [
            _tag(_SCORES[strategy](word), word, labels, words.to_string) for word in _words(tokens)
        ]
    groups = (_group(group, words) for group in _groups(tagged))
    return [entity for entity in groups if entity["entity_group"] != _OUTSIDE]


def plain(logits: Logits) -> list[int]:
    """Give the number of the best class of each token, those that the model adds included."""
    best: list[int] = logits.argmax(axis=-1).tolist()
    return best


def probabilities(logits: Logits) -> list[dict[int, float]]:
    """Give the probability of each class, by number and with four decimals, for each token."""
    return [sequence_classification.probabilities(token) for token in logits]


def raw_logits(logits: Logits) -> list[dict[int, float]]:
    """Give the logit of each class, by number, for each token."""
    return [sequence_classification.raw_logits(token) for token in logits]


def _tokens(
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]] | None,
    is_special: Sequence[bool],
    scores: Logits,
    words: Words,
) -> Iterator[Token]:
    for index, token_id in enumerate(ids):
        if is_special[index]:
            continue
        word = words.to_token(int(token_id))
        start = end = None
        is_subword = False
        if offsets is not None:
            start, end = offsets[index]
            is_subword = _is_subword(text, start, end, word, words.marks_subwords)
            if token_id == words.unknown_id:
                word, is_subword = text[start:end], False
        yield Token(index, word, start, end, is_subword, scores[index])


def _is_subword(text: str, start: int, end: int, word: str, marks_subwords: bool) -> bool:
    if marks_subwords:
        return len(word) != end - start
    # The best guess: nothing but a space begins a word.
    return start > 0 and " " not in text[start - 1 : start + 1]


def _each(tokens: list[Token], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    for token in tokens:
        best = int(token.scores.argmax())
        yield {
            "entity": labels[best],
            "score": float(token.scores[best]),
            "index": token.index,
            "word": token.word,
            "start": token.start,
            "end": token.end,
        }


def _words(tokens: list[Token]) -> Iterator[tuple[Token, ...]]:
    begins = [place for place, token in enumerate(tokens) if place == 0 or not token.is_subword]
    for begin, end in pairwise([*begins, len(tokens)]):
        yield tuple(tokens[begin:end])


def _tag(
    scores: Logits,
    tokens: tuple[Token, ...],
    labels: Sequence[str],
    to_string: Callable[[list[str]], str] | None = None,
) -> _Tagged:
    best = int(scores.argmax())
    words = tuple(token.word for token in tokens)
    if to_string is not None:
        words = (to_string(list(words)),)
    return _Tagged(labels[best], scores[best], words, tokens[0].start, tokens[-1].end)


def _first(word: tuple[Token, ...]) -> Logits:
    return word[0].scores


def _average(word: tuple[Token, ...]) -> Logits:
    average: Logits = np.mean(np.stack([token.scores for token in word]), axis=0)
    return average


def _surest(word: tuple[Token, ...]) -> Logits:
    return max(word, key=lambda token: float(token.scores.max())).scores


_SCORES: Final = {"first": _first, "average": _average, "max": _surest}


def _groups(tagged: list[_Tagged]) -> Iterator[list[_Tagged]]:
    group: list[_Tagged] = []
    for word in tagged:
        is_first, name = _read_label(word.label)
        if group and (is_first or _read_label(group[-1].label)[1] != name):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _read_label(label: str) -> tuple[bool, str]:
    """Give whether a label begins an entity, and the name of its class."""
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label


def _group(group: list[_Tagged], words: Words) -> dict[str, Any]:
    return {
        "entity_group": group[0].label.split("-", 1)[-1],
        "score": float(np.mean([word.score for word in group])),
        "word": words.to_string([word for tagged in group for word in tagged.words]),
        "start": group[0].start,
        "end": group[-1].end,
    }


_ROWS: Final[Mapping[Kind, Callable[[Logits], list[Any]]]] = {
    Kind.PLAIN: plain,
    Kind.PROBABILITIES: probabilities,
    Kind.RAW_LOGITS: raw_logits,
}
