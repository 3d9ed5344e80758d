"""For models whose attention cannot be ours: texts of about one length together, or alone."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from hfserver.encoder.headed_model import HeadedModel
from hfserver.encoder.heads import Head
from hfserver.encoder.layout import Layout
from hfserver.encoder.tokenization import TokenizedText

# Places of one padded batch, padding included: of 512 to 4,096 the fastest for mixed lengths, as
# the fewer texts a batch has, the more alike they are.
_MAX_PLACES: Final = 512


class PaddedExecutor:
    """Runs texts in padded batches, those of about one length together.

    Args:
        model: The model.
        head: What is made of the hidden states.
        max_places: The tokens of a batch with padding; a longer text runs alone.
    """

    kind: Final = "padded"

    def __init__(self, model: HeadedModel, head: Head, max_places: int = _MAX_PLACES) -> None:
        self._model = model
        self._head = head
        self._max_places = max_places

    def run(self, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
        """Give an array for each text; on the thread that owns the model."""
        results: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
        for indices in self._batches(texts):
            layout = Layout([texts[index] for index in indices], self._model.device)
            rows = self._head.finish(self._model, self.hidden(layout), layout)
            for index, row in zip(indices, layout.restored(rows), strict=True):
                results[index] = row
        return results

    def hidden(self, layout: Layout) -> torch.Tensor:
        """Give the hidden states of all texts, shape (n_tokens, size)."""
        pad = getattr(self._model.config, "pad_token_id", None) or 0
        types = layout.padded(layout.token_type_ids, 0)
        padded = self._model.hidden(
            layout.padded(layout.input_ids, pad), types, attention_mask=layout.mask.long()
        )
        return padded[layout.mask]

    def _batches(self, texts: Sequence[TokenizedText]) -> Iterator[list[int]]:
        """Give the indices of the texts of each batch, shortest first."""
        batch: list[int] = []
        for index in sorted(range(len(texts)), key=lambda index: len(texts[index])):
            # The last is the longest.
            if batch and (len(batch) + 1) * len(texts[index]) > self._max_places:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


class SingleExecutor:
    """Runs texts one by one through transformers' own forward.

    Args:
        model: The model.
        head: What is made of its output.
    """

    kind: Final = "single"

    def __init__(self, model: HeadedModel, head: Head) -> None:
        self._model = model
        self._head = head

    def run(self, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
        """Give an array for each text; on the thread that owns the model."""
        return [self._run_one(text) for text in texts]

    def _run_one(self, text: TokenizedText) -> NDArray[np.float32]:
        layout = Layout([text], self._model.device)
        hidden, logits = self._model.plain(layout.input_ids[None], layout.token_type_ids[None])
        (result,) = self._head.of_plain(self._model, hidden[0], logits[0], layout)
        return result
