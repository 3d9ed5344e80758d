"""Texts of a batch in one row, one behind the other: nothing is computed for padding.

Transformers lets a model's attention be replaced by its name. Ours lets each token look at those of
its own text alone, and all other layers take tokens one by one anyhow.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AttentionInterface

from hfserver.encoder.headed_model import HeadedModel
from hfserver.encoder.heads import Head
from hfserver.encoder.layout import Layout
from hfserver.encoder.tokenization import TokenizedText

# A name that transformers does not know makes no mask either.
ATTENTION: Final = "hfserver_packed"

# Bounds of the products, sinks, and what is added to the products for their distance.
_NOT_COMPUTED: Final = ("softcap", "s_aux", "position_bias")

_current: Final = threading.local()


class PackedExecutor:
    """Runs the texts of a batch in one row.

    Args:
        model: The model, with `ATTENTION` for its attention.
        head: What is made of the hidden states.
        padding: The token whose number positions begin behind, as RoBERTa's do, and which has this
            number for its position; None where they begin at 0 and every token counts.
    """

    kind: Final = "packed"

    def __init__(self, model: HeadedModel, head: Head, padding: int | None = None) -> None:
        self._model = model
        self._head = head
        self._padding = padding

    def run(self, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
        """Give an array for each text; on the thread that owns the model."""
        layout = Layout(texts, self._model.device)
        hidden = self.hidden(layout)
        return layout.restored(self._head.finish(self._model, hidden, layout))

    def hidden(self, layout: Layout) -> torch.Tensor:
        """Give the hidden states of all texts, shape (n_tokens, size)."""
        positions = layout.tensor(self._positions(layout))
        with _reading(layout):
            return self._model.hidden(
                layout.input_ids[None], layout.token_type_ids[None], position_ids=positions[None]
            )[0]

    def _positions(self, layout: Layout) -> NDArray[np.int64]:
        padding = self._padding
        if padding is None:
            return layout.positions
        counted = np.concatenate([text.input_ids for text in layout.texts]) != padding
        numbers = np.cumsum(counted)
        # Those before the text do not count.
        before = np.repeat(numbers[layout.starts] - counted[layout.starts], layout.lengths)
        return np.where(counted, numbers - before, 0) + padding


def use_packed_attention(model: Any) -> bool:
    """Let a model's attention be ours; says whether it can."""
    AttentionInterface.register(ATTENTION, packed_attention)
    if not getattr(model, "_supports_attention_backend", False):
        return False
    model.set_attn_implementation(ATTENTION)
    # A model that cannot only warns.
    return bool(model.config._attn_implementation == ATTENTION)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Let each token look at those of its own text; the signature is transformers'.

    Texts that are equally long are one call.

    Args:
        module: The layer; says whether it is causal.
        query: Shape (1, n_heads, n_tokens, size).
        key: Shape (1, n_key_heads, n_tokens, size).
        value: As `key`.
        attention_mask: None, as there is no mask of this name.
        scaling: What the products are multiplied by; None is 1 / sqrt(size).
        dropout: Unused.
        sliding_window: A token looks at those less than so far away; None is at all.
        is_causal: Whether a token looks at earlier ones alone; None is what the layer says.
        kwargs: What else a model of its family has.

    Returns:
        Shape (1, n_tokens, n_heads, value size), and no weights.

    Raises:
        NotImplementedError: The model wants of its attention what this does not compute.
    """
    unknown = [name for name in _NOT_COMPUTED if kwargs.get(name) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'a mask'}")
    layout: Layout = _current.layout
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    _, n_heads, n_tokens, _ = query.shape
    output = query.new_empty(1, n_tokens, n_heads, value.shape[-1])
    for start, n_texts, length in layout.groups:
        end = start + n_texts * length
        parts = [_texts(row, start, end, n_texts) for row in (query, key, value)]
        mask = _mask(layout, length, sliding_window, is_causal=causal)
        attended = functional.scaled_dot_product_attention(
            *parts,
            attn_mask=mask,
            is_causal=causal and mask is None and length > 1,
            scale=scaling,
            enable_gqa=key.shape[1] != n_heads,
        )
        # (n_texts, n_heads, length, size) to tokens in their row.
        output[0, start:end] = attended.transpose(1, 2).reshape(end - start, n_heads, -1)
    return output, None


def _texts(row: torch.Tensor, start: int, end: int, n_texts: int) -> torch.Tensor:
    """Give the part of a row as texts, shape (n_texts, n_heads, length, size), uncopied."""
    return row[0, :, start:end].unflatten(1, (n_texts, -1)).transpose(0, 1)


def _mask(
    layout: Layout, length: int, window: int | None, *, is_causal: bool
) -> torch.Tensor | None:
    """Give what each token of a text may look at, shape (length, length); None is everything.

    Of a text within the window that is what causality alone says, for which there is no mask.
    """
    if window is None or window >= length:
        return None
    key = (length, window, is_causal)
    mask = layout.masks.get(key)
    if mask is None:
        numbers = np.arange(length)
        distances = numbers[:, None] - numbers
        allowed = np.abs(distances) < window
        mask = layout.masks[key] = layout.tensor(
            allowed & (distances >= 0) if is_causal else allowed
        )
    return mask


@contextmanager
def _reading(layout: Layout) -> Iterator[None]:
    """Tell attention, which runs on this thread, what it attends to."""
    _current.layout = layout
    try:
        yield
    finally:
        _current.layout = None
