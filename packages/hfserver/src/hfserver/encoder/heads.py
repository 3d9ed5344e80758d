"""What is made of the hidden states of a batch, for each text: logits, or an embedding."""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hfserver.encoder.headed_model import HeadedModel
from hfserver.encoder.layout import Layout
from hfserver.encoder.sentence import SentencePipeline

Rows = Sequence[NDArray[np.float32]]


class Head(Protocol):
    """Makes the results of a batch; on the thread that owns the model."""

    def finish(self, model: HeadedModel, hidden: torch.Tensor, layout: Layout) -> Rows:
        """Give an array for each text of the layout, in its order.

        Args:
            model: The model.
            hidden: The hidden states of all texts in a row, shape (n_tokens, size).
            layout: Where each text is.
        """

    def of_plain(
        self, model: HeadedModel, hidden: torch.Tensor, logits: torch.Tensor, layout: Layout
    ) -> Rows:
        """Give the same for one text that ran alone through transformers' own forward.

        Args:
            model: The model.
            hidden: Shape (n_tokens, size).
            logits: As transformers gives them, without the axis of the batch.
            layout: Of this one text.
        """


class EmbeddingHead:
    """An embedding of each text, shape (dimension,)."""

    def __init__(self, pipeline: SentencePipeline) -> None:
        self._pipeline = pipeline

    def finish(self, model: HeadedModel, hidden: torch.Tensor, layout: Layout) -> Rows:
        """Pool the hidden states; see `Head`."""
        return list(_array(self._pipeline(hidden, layout)))

    def of_plain(
        self, model: HeadedModel, hidden: torch.Tensor, logits: torch.Tensor, layout: Layout
    ) -> Rows:
        """Pool the hidden states; see `Head`."""
        return self.finish(model, hidden, layout)


class HiddenHead:
    """The hidden states of the tokens of each text, shape (n_tokens, size)."""

    def finish(self, model: HeadedModel, hidden: torch.Tensor, layout: Layout) -> Rows:
        """Give the hidden states; see `Head`."""
        return np.split(_array(hidden), layout.starts[1:])

    def of_plain(
        self, model: HeadedModel, hidden: torch.Tensor, logits: torch.Tensor, layout: Layout
    ) -> Rows:
        """Give the hidden states; see `Head`."""
        return [_array(hidden)]


class TokenHead:
    """The logits of the wanted tokens of each text, shape (n_positions, n_labels).

    The labels of a model that fills masks are its tokens.
    """

    def finish(self, model: HeadedModel, hidden: torch.Tensor, layout: Layout) -> Rows:
        """Run the head on the wanted tokens alone; see `Head`."""
        rows, counts = _wanted(layout)
        if not len(rows):
            return [np.empty((0, 0), np.float32) for _ in layout.texts]
        if len(rows) < layout.n_tokens:
            index = layout.tensor(rows)
            hidden, ids = hidden[index], layout.input_ids[index]
        else:
            ids = layout.input_ids
        logits = model.logits(hidden[None], ids[None], torch.ones_like(ids)[None])
        return np.split(_array(logits[0]), np.cumsum(counts)[:-1])

    def of_plain(
        self, model: HeadedModel, hidden: torch.Tensor, logits: torch.Tensor, layout: Layout
    ) -> Rows:
        """Take the wanted tokens; see `Head`."""
        rows, _ = _wanted(layout)
        return [_array(logits)[rows]]


class _SequenceHead:
    def of_plain(
        self, model: HeadedModel, hidden: torch.Tensor, logits: torch.Tensor, layout: Layout
    ) -> Rows:
        """Give the logits; see `Head`."""
        return [_array(logits)]


class FirstTokenHead(_SequenceHead):
    """The logits of each text, shape (n_labels,), of a head that looks at the first token."""

    def finish(self, model: HeadedModel, hidden: torch.Tensor, layout: Layout) -> Rows:
        """Run the head on the first tokens; see `Head`."""
        return _of_one_token(model, hidden, layout, layout.starts)


class LastTokenHead(_SequenceHead):
    """The logits of each text, shape (n_labels,), of a head that looks at the last token.

    That is the last that is not of padding, as transformers has it, wherever it comes from.
    """

    def finish(self, model: HeadedModel, hidden: torch.Tensor, layout: Layout) -> Rows:
        """Run the head on the last tokens; see `Head`."""
        pad = model.config.pad_token_id
        if pad is None:
            # The head refuses more than one text without it, and there is no padding here.
            model.config.pad_token_id = pad = -1
        lasts = [
            start + max(np.flatnonzero(text.input_ids != pad), default=0)
            for start, text in zip(layout.starts, layout.texts, strict=True)
        ]
        return _of_one_token(model, hidden, layout, np.array(lasts, np.int64))


class AllTokensHead(_SequenceHead):
    """The logits of each text, shape (n_labels,), of a head that looks at all of its tokens."""

    def finish(self, model: HeadedModel, hidden: torch.Tensor, layout: Layout) -> Rows:
        """Run the head on a padded batch, which costs little beside the encoder; see `Head`."""
        pad = model.config.pad_token_id or 0
        logits = model.logits(
            layout.padded(hidden, 0.0), layout.padded(layout.input_ids, pad), layout.mask.long()
        )
        return list(_array(logits))


# Which token such a head looks at is found by trying.
SEQUENCE_HEADS: Final = (FirstTokenHead, LastTokenHead, AllTokensHead)


def _of_one_token(
    model: HeadedModel, hidden: torch.Tensor, layout: Layout, rows: NDArray[np.int64]
) -> Rows:
    index = layout.tensor(rows)
    ids = layout.input_ids[index][:, None]
    return list(_array(model.logits(hidden[index][:, None], ids, torch.ones_like(ids))))


def _wanted(layout: Layout) -> tuple[NDArray[np.int64], list[int]]:
    """Give the tokens of the row that results are wanted of, and how many of each text."""
    rows = [
        start + (np.arange(len(text)) if text.positions is None else text.positions)
        for start, text in zip(layout.starts, layout.texts, strict=True)
    ]
    return np.concatenate(rows), [len(each) for each in rows]


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
