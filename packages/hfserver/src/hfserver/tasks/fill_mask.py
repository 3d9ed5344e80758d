"""What may stand in the place of a mask: tokens with scores, or the best one."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hfserver.inputs import Wishes
from hfserver.tasks.results import OUTPUT, Kind, Result, objects, texts_of, top_k_of
from hfserver.tasks.scores import Logits, best, softmax
from kserve.errors import InvalidInput
from kserve.listing import shortened
from kserve.logging import logger
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.signature import Tensors, TensorSpec

DEFAULT_TOP_K: Final = 5

# Of V2, by name.
_COLUMNS: Final = (
    ("token_str", "BYTES"),
    ("score", "FP32"),
    ("token", "INT64"),
    ("sequence", "BYTES"),
)


class FillMask:
    """Makes the answers.

    Args:
        tokenizer: That of the model, of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def outputs(self, kind: Kind) -> tuple[TensorSpec, ...]:
        """Give the outputs of V2; with several masks in a text they have an axis more."""
        if kind is Kind.RICH:
            return tuple(TensorSpec(name, datatype, (-1, -1)) for name, datatype in _COLUMNS)
        return (TensorSpec(OUTPUT, "BYTES", (-1,) if kind is Kind.PLAIN else (-1, -1, -1)),)

    def row(self, result: Result, kind: Kind, wishes: Wishes) -> Any:
        """Give the best tokens of a text; a list of them for each mask where it has several."""
        if kind is not Kind.RICH:
            return self._plain(result, kind)
        masks = self._rich(result, wishes)
        return masks[0] if len(masks) == 1 else masks

    def tensors(self, results: Sequence[Result], kind: Kind, wishes: Wishes) -> Tensors:
        """Give the same as tensors; all texts then need as many masks.

        Raises:
            InvalidInput: They have not.
        """
        if kind is Kind.PLAIN:
            return {OUTPUT: objects([self._plain(result, kind) for result in results])}
        n_masks = _same_number([len(result.numbers) for result in results])
        if kind is Kind.RICH:
            return self._columns([self._rich(result, wishes) for result in results], n_masks)
        rows = [self._plain(result, kind) for result in results]
        cells = [cell for row in rows for mask in row for cell in mask]
        n_tokens = len(cells) // (len(rows) * n_masks) if rows else 0
        return {OUTPUT: texts_of(cells, (len(rows), n_masks, n_tokens))}

    def _plain(self, result: Result, kind: Kind) -> Any:
        if kind is Kind.PLAIN:
            return plain(result.numbers, self._tokenizer)
        return (raw_logits if kind is Kind.RAW_LOGITS else probabilities)(result.numbers)

    def _rich(self, result: Result, wishes: Wishes) -> list[list[dict[str, Any]]]:
        targets = None
        if wishes.targets is not None:
            targets = target_ids(self._tokenizer, wishes.targets)
        places = mask_places(result.ids, self._tokenizer.mask_token_id, self._tokenizer.mask_token)
        top_k = top_k_of(wishes, DEFAULT_TOP_K)
        return rich(result.ids, places, result.numbers, self._tokenizer, top_k, targets)

    def _columns(self, rows: list[list[list[dict[str, Any]]]], n_masks: int) -> Tensors:
        cells = [cell for row in rows for mask in row for cell in mask]
        k = len(rows[0][0]) if rows else 0
        shape = (len(rows), k) if n_masks == 1 else (len(rows), n_masks, k)
        return {
            name: np.array([cell[name] for cell in cells], dtype=NUMPY_DTYPES[datatype]).reshape(
                shape
            )
            for name, datatype in _COLUMNS
        }


def _same_number(counts: Sequence[int]) -> int:
    if len(set(counts)) > 1:
        raise InvalidInput(
            "expected as many masks in every text of a V2 request, got texts with "
            f"{' and '.join(map(str, sorted(set(counts))))}"
        )
    return counts[0] if counts else 1


def target_ids(tokenizer: Any, targets: Sequence[str]) -> NDArray[np.int64]:
    """Give the tokens that a request allows in place of a mask, ascending.

    Of a text that is no token of the vocabulary, its first token counts.

    Raises:
        InvalidInput: There is none, or one is empty.
    """
    vocabulary = tokenizer.get_vocab()
    found = set()
    for target in targets:
        token_id = vocabulary.get(target)
        if token_id is None:
            ids = tokenizer(target, add_special_tokens=False)["input_ids"]
            if not ids:
                raise InvalidInput(f"targets: expected words, got {shortened(repr(target))}")
            token_id = ids[0]
            logger.debug("The target %r is no token: its first one counts", target)
        found.add(int(token_id))
    if not found:
        raise InvalidInput("targets: expected at least one word, got none")
    return np.array(sorted(found), dtype=np.int64)


def mask_places(ids: Sequence[int], mask_id: int, mask: str) -> list[int]:
    """Give where the masks of a text stand.

    Raises:
        InvalidInput: There is none.
    """
    places = [place for place, token_id in enumerate(ids) if token_id == mask_id]
    if not places:
        raise InvalidInput(f"expected at least one {mask} in the text, got none")
    return places


def rich(
    ids: Sequence[int],
    places: Sequence[int],
    logits: Logits,
    tokenizer: Any,
    top_k: int | None = DEFAULT_TOP_K,
    targets: NDArray[np.int64] | None = None,
) -> list[list[dict[str, Any]]]:
    """Give the best tokens for each mask of a text.

    Args:
        ids: The tokens of the text.
        places: Where its masks stand.
        logits: Of each mask, shape (n_masks, n_vocabulary).
        tokenizer: That of the model.
        top_k: How many for each mask; None for all.
        targets: The tokens to choose from; None for all.

    Returns:
        For each mask `score`, `token`, `token_str`, and `sequence`: the text with the token, which
        still has the other masks.
    """
    probabilities = softmax(logits)
    is_only = len(places) == 1
    results = []
    for place, scores in zip(places, probabilities, strict=True):
        allowed = scores if targets is None else scores[targets]
        chosen = best(allowed, top_k)
        tokens = chosen if targets is None else targets[chosen]
        results.append(
            [
                {
                    "score": float(scores[token]),
                    "token": token,
                    "token_str": tokenizer.decode([token]),
                    "sequence": tokenizer.decode(
                        _replaced(ids, place, token, tokenizer.pad_token_id),
                        skip_special_tokens=is_only,
                    ),
                }
                for token in tokens.tolist()
            ]
        )
    return results


def _replaced(ids: Sequence[int], place: int, token: int, pad_id: int | None) -> list[int]:
    """Give the tokens with another one in a place; padding, as an answer, is no text."""
    replaced = [*ids[:place], token, *ids[place + 1 :]]
    return [token_id for token_id in replaced if token_id != pad_id]


def plain(logits: Logits, tokenizer: Any) -> str:
    """Give the text of the best tokens for all masks of a text."""
    text: str = tokenizer.decode(logits.argmax(axis=-1).tolist())
    return text


def probabilities(logits: Logits) -> list[list[dict[int, str]]]:
    """Give the probability of each token of the vocabulary for each mask, as KServe's server.

    It writes them as text with four decimals.
    """
    return [
        [{token: f"{value:.4f}"} for token, value in enumerate(mask)]
        for mask in softmax(logits).tolist()
    ]


def raw_logits(logits: Logits) -> list[list[dict[int, float]]]:
    """Give the logit of each token of the vocabulary for each mask."""
    return [[{token: value} for token, value in enumerate(mask)] for mask in logits.tolist()]
