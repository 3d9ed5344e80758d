"""Attention over texts in a row, and what it refuses to compute."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hfserver.encoder.layout import Layout
from hfserver.encoder.packed import _reading, packed_attention
from hfserver.encoder.tokenization import TokenizedText

CPU = torch.device("cpu")
LENGTHS = (3, 9, 3, 1, 14)


class Causal(torch.nn.Module):  # type: ignore[misc]
    is_causal = True


class Bidirectional(torch.nn.Module):  # type: ignore[misc]
    is_causal = False


def layout_of(lengths: tuple[int, ...] = LENGTHS) -> Layout:
    return Layout([TokenizedText(np.full(length, length)) for length in lengths], CPU)


@pytest.mark.parametrize("layer", [Causal(), Bidirectional()], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 100])
@pytest.mark.parametrize("n_key_heads", [1, 2, 4])
def test_a_token_looks_at_those_of_its_own_text_that_are_near(
    layer: torch.nn.Module, window: int | None, n_key_heads: int
) -> None:
    layout = layout_of()
    torch.manual_seed(0)
    query = torch.randn(1, 4, layout.n_tokens, 8)
    key, value = torch.randn(2, 1, n_key_heads, layout.n_tokens, 8)
    # One mask over all of the row, as an attention that knows nothing of texts has it.
    text, place = np.repeat(np.arange(len(LENGTHS)), layout.lengths), layout.positions
    distance = place[:, None] - place
    allowed = text[:, None] == text
    if window is not None:
        allowed &= np.abs(distance) < window
    if layer.is_causal:
        allowed &= distance >= 0
    repeated = [each.repeat_interleave(4 // n_key_heads, 1) for each in (key, value)]
    expected = functional.scaled_dot_product_attention(
        query, *repeated, attn_mask=torch.from_numpy(allowed), scale=0.3
    ).transpose(1, 2)

    with _reading(layout):
        actual, weights = packed_attention(
            layer, query, key, value, None, scaling=0.3, sliding_window=window
        )

    assert weights is None
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_it_does_not_compute_is_refused(name: str) -> None:
    layout = layout_of()
    row = torch.ones(1, 1, layout.n_tokens, 4)
    wish: dict[str, Any] = {name: 1.0}

    with _reading(layout), pytest.raises(NotImplementedError, match=f"attention with {name}"):
        packed_attention(Causal(), row, row, row, None, **wish)
    with _reading(layout), pytest.raises(NotImplementedError, match="attention with a mask"):
        packed_attention(Causal(), row, row, row, torch.ones(1))


def test_texts_are_put_into_a_row_shortest_first_and_results_come_back_in_order() -> None:
    layout = layout_of()

    assert layout.lengths.tolist() == [1, 3, 3, 9, 14]
    assert layout.groups == [(0, 1, 1), (1, 2, 3), (7, 1, 9), (16, 1, 14)]
    assert layout.input_ids.tolist() == [1, *[3] * 6, *[9] * 9, *[14] * 14]
    assert layout.segments.tolist() == [0, *[1] * 3, *[2] * 3, *[3] * 9, *[4] * 14]
    results = [np.array([length], np.float32) for length in layout.lengths]
    assert [int(row[0]) for row in layout.restored(results)] == list(LENGTHS)
