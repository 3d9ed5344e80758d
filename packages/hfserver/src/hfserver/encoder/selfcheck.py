"""Finds the fastest way to run a model that gives what transformers' own forward gives.

No list of families says which models can be packed: a few texts of chance are run both ways when
the model is loaded. So a model that is not known, or one that a new version of transformers builds
in another way, is slower at worst, and never wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hfserver.encoder.headed_model import HeadedModel
from hfserver.encoder.heads import SEQUENCE_HEADS, Head
from hfserver.encoder.layout import Layout
from hfserver.encoder.packed import PackedExecutor, use_packed_attention
from hfserver.encoder.padded import PaddedExecutor, SingleExecutor
from hfserver.encoder.tokenization import TokenizedText
from kserve.logging import logger

# What two ways to compute the same may differ by, in parts of the size of the numbers. In float32
# they did by 1e-6 to 1e-5, and in bfloat16 by 1e-2.
_TOLERANCES: Final = {torch.float32: 1e-3, torch.bfloat16: 0.08, torch.float16: 0.02}

# A token comes out of different texts differently, by 1 and more; a model that hardly looks at the
# others would pass whatever is done with them.
_LEAST_SPREAD: Final = 3.0

# Of several lengths, two of them equal. The longest is beyond the window of local attention, as
# far as that is not the whole of the model.
_LENGTHS: Final = (5, 17, 1, 40, 17)
_MAX_LENGTH: Final = 320


class Executor(Protocol):
    """Runs texts through the model; on the thread that owns it, in torch's inference mode."""

    @property
    def kind(self) -> str:
        """How: `packed`, `padded` or `single`."""

    def run(self, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
        """Give an array for each text, in their order."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """A text, and what transformers' own forward makes of it."""

    text: TokenizedText
    hidden: NDArray[np.float32]
    result: NDArray[np.float32]


def choose_executor(
    model: Any,
    heads: Sequence[Head] | None = None,
    *,
    max_length: int,
    mask_token_id: int | None = None,
) -> Executor:
    """Choose how to run a model: packed, padded, or text by text.

    It runs the model, on the calling thread, and changes its attention.

    Args:
        model: A `PreTrainedModel`, in evaluation mode on its device.
        heads: What is made of its hidden states; of several the first that gives what the model's
            own forward gives. None for logits of the whole text.
        max_length: Tokens that it takes.
        mask_token_id: The token to fill in, of a model that does that.
    """
    heads = heads or [head() for head in SEQUENCE_HEADS]
    with torch.inference_mode():
        executor = _choose(HeadedModel(model), heads, max_length, mask_token_id)
    logger.info("%s runs %s", type(model).__name__, _DESCRIPTIONS[executor.kind])
    return executor


def _choose(
    model: HeadedModel, heads: Sequence[Head], max_length: int, mask_token_id: int | None
) -> Executor:
    texts = _texts(model.config, max_length, mask_token_id)
    tolerance = _TOLERANCES.get(model.model.dtype, 1e-3)
    samples = list(_samples(model, heads[0], texts))
    head = _fitting_head(model, heads, samples, tolerance)
    if head is None:
        return SingleExecutor(model, heads[0])
    return _batching(model, head, samples, tolerance)


_DESCRIPTIONS: Final = {
    "packed": "texts packed, without padding",
    "padded": "texts of about one length together, padded",
    "single": "texts one by one",
}


def _texts(config: Any, max_length: int, mask_token_id: int | None) -> list[TokenizedText]:
    rng = np.random.default_rng(0)
    window = getattr(config, "sliding_window", None) or 0
    longest = min(max_length, max(64, min(window + 33, _MAX_LENGTH)))
    lengths = [min(length, max_length) for length in (*_LENGTHS, longest)]
    texts = [
        TokenizedText(rng.integers(0, config.vocab_size, length, np.int64)) for length in lengths
    ]
    for text in texts:
        # The same: what the model makes of it shows whether the rest of a text matters.
        text.input_ids[-1] = texts[0].input_ids[-1]
    # Tokens that some models treat in another way than others.
    for special in (mask_token_id, getattr(config, "pad_token_id", None)):
        if special is not None:
            texts[1].input_ids[rng.integers(max(1, len(texts[1]) - 1))] = special
    return texts


def _samples(model: HeadedModel, head: Head, texts: Sequence[TokenizedText]) -> Iterator[_Sample]:
    for text in texts:
        try:
            yield _sample(model, head, text)
        except RuntimeError:
            # CANINE takes no text as short as one token.
            if text is texts[-1]:
                raise


def _sample(model: HeadedModel, head: Head, text: TokenizedText) -> _Sample:
    layout = Layout([text], model.device)
    hidden, logits = model.plain(layout.input_ids[None], layout.token_type_ids[None])
    (result,) = head.of_plain(model, hidden[0], logits[0], layout)
    return _Sample(text, hidden[0].float().cpu().numpy(), result)


def _fitting_head(
    model: HeadedModel, heads: Sequence[Head], samples: Sequence[_Sample], tolerance: float
) -> Head | None:
    """Give the head that makes of the hidden states what the model itself makes of them."""
    texts = [sample.text for sample in samples]
    layout = Layout(texts, model.device)
    of_text = {id(sample.text): sample.hidden for sample in samples}
    hidden = torch.from_numpy(np.concatenate([of_text[id(text)] for text in layout.texts]))
    for head in heads:
        try:
            rows = head.finish(model, hidden.to(model.device, model.model.dtype), layout)
        except Exception as exc:
            logger.debug("%s: %r", type(head).__name__, exc)
            continue
        if _agree(layout.restored(rows), [sample.result for sample in samples], tolerance):
            return head
    return None


def _batching(
    model: HeadedModel, head: Head, samples: Sequence[_Sample], tolerance: float
) -> Executor:
    expected = [sample.hidden for sample in samples]
    if not _tells_apart(expected, tolerance):
        return SingleExecutor(model, head)
    for executor in _candidates(model, head):
        texts = [sample.text for sample in samples]
        layout = Layout(texts, model.device)
        try:
            row = executor.hidden(layout).float().cpu().numpy()
        except Exception as exc:
            logger.debug("%s: %r", executor.kind, exc)
            continue
        if _agree(layout.restored(np.split(row, layout.starts[1:])), expected, tolerance):
            return executor
    return SingleExecutor(model, head)


def _candidates(model: HeadedModel, head: Head) -> Iterator[PackedExecutor | PaddedExecutor]:
    attention = model.model.config._attn_implementation
    if model.takes_positions and use_packed_attention(model.model):
        yield PackedExecutor(model, head)
        # As of RoBERTa.
        pad = getattr(model.config, "pad_token_id", None)
        if pad is not None:
            yield PackedExecutor(model, head, pad)
        model.model.set_attn_implementation(attention)
    yield PaddedExecutor(model, head)


def _agree(
    actual: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]], tolerance: float
) -> bool:
    return all(
        one.shape == other.shape and _distance(one, other) <= tolerance
        for one, other in zip(actual, expected, strict=True)
    )


def _tells_apart(hidden: Sequence[NDArray[np.float32]], tolerance: float) -> bool:
    """Say whether the last token, which is the same in all, comes out farther apart than that."""
    lasts = np.stack([states[-1] for states in hidden])
    return _distance(lasts[1:], lasts[:-1]) > _LEAST_SPREAD * tolerance


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Give the greatest difference, in parts of the size of the numbers; inf where one is NaN."""
    if not one.size:
        return 0.0
    size = float(np.sqrt(np.mean(np.square(other, dtype=np.float64)))) or 1.0
    distance = float(np.max(np.abs(one - other))) / size
    return distance if np.isfinite(distance) else np.inf
