"""Texts of a batch one behind the other: where each of them is."""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from hfserver.encoder.tokenization import TokenizedText


class Layout:
    """The texts of a batch, shortest first, and the tokens of all of them in one row.

    Args:
        texts: In the order of the batch.
        device: Where the model is.

    Attributes:
        texts: Shortest first.
        lengths: The tokens of each, shape (n_texts,).
        starts: The first token of each in the row, shape (n_texts,).
        n_tokens: The length of the row.
        masks: What attention made for this batch, to use again in the next layer.
    """

    def __init__(self, texts: Sequence[TokenizedText], device: torch.device) -> None:
        lengths = np.array([len(text) for text in texts], np.int64)
        self._order = np.argsort(lengths, kind="stable")
        self.texts = [texts[index] for index in self._order]
        self.lengths = lengths[self._order]
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.n_tokens = int(self.lengths.sum())
        self.masks: dict[tuple[int, int | None, bool], torch.Tensor] = {}
        self._device = device

    @cached_property
    def groups(self) -> list[tuple[int, int, int]]:
        """The first token, the number and the length of the texts that are equally long."""
        groups, start = [], 0
        for length, members in groupby(self.lengths.tolist()):
            n_texts = len(list(members))
            groups.append((start, n_texts, length))
            start += n_texts * length
        return groups

    @cached_property
    def input_ids(self) -> torch.Tensor:
        """The tokens of all texts, shape (n_tokens,)."""
        return self.tensor(np.concatenate([text.input_ids for text in self.texts]))

    @cached_property
    def token_type_ids(self) -> torch.Tensor:
        """Their types, shape (n_tokens,)."""
        return self.tensor(
            np.concatenate(
                [
                    np.zeros_like(text.input_ids)
                    if text.token_type_ids is None
                    else text.token_type_ids
                    for text in self.texts
                ]
            )
        )

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """The position of each token in its text, from 0, shape (n_tokens,)."""
        return np.arange(self.n_tokens) - np.repeat(self.starts, self.lengths)

    @cached_property
    def segments(self) -> torch.Tensor:
        """The text that each token is of, shape (n_tokens,)."""
        return self.tensor(np.repeat(np.arange(len(self.texts)), self.lengths))

    @cached_property
    def mask(self) -> torch.Tensor:
        """Which places of a padded batch hold a token, shape (n_texts, longest)."""
        return self.tensor(np.arange(self.lengths.max()) < self.lengths[:, None])

    def padded(self, row: torch.Tensor, fill: float) -> torch.Tensor:
        """Put what there is for each token into a padded batch, shape (n_texts, longest, ...)."""
        shape = (len(self.texts), int(self.lengths.max()), *row.shape[1:])
        batch = row.new_full(shape, fill)
        batch[self.mask] = row
        return batch

    def tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        """Put an array where the model is."""
        return torch.from_numpy(array).to(self._device)

    def restored(self, results: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Give what belongs to the texts in the order of the batch."""
        restored: list[NDArray[np.float32]] = list(results)
        for index, result in zip(self._order, results, strict=True):
            restored[index] = result
        return restored
