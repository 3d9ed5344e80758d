"""Which executor runs a model: the fastest that gives the logits of a plain forward.

What a model says of itself is not enough: an architecture may keep or mix what nobody expects. So
each executor has to compute two short random sequences, in parts and together, before it is used.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from hfserver.generation.executors.base import Chunk, Executor
from hfserver.generation.executors.encoder_decoder import EncoderDecoderExecutor
from hfserver.generation.executors.merge import MergeExecutor
from hfserver.generation.executors.packing import PackedModel
from hfserver.generation.executors.ragged import RaggedExecutor
from hfserver.generation.executors.recompute import RecomputeExecutor
from hfserver.generation.executors.sequential import SequentialExecutor
from kserve.logging import logger

# Two sequences of different lengths; the first one's prompt comes in two parts.
_LENGTHS: Final = (13, 9)
_FIRST_PART: Final = 6
_N_DECODES: Final = 3

# Of the spread of the logits: rounding stays far below, a wrong position or mask far above.
_TOLERANCE: Final = {torch.float32: 2e-3, torch.float64: 1e-6}
_HALF_TOLERANCE: Final = 0.1


def choose_executor(model: Any) -> Executor:
    """Give the first executor that passes the check.

    Args:
        model: A model of transformers, on its device, in evaluation mode.
    """
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            return EncoderDecoderExecutor(model)
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            # torch's own attention has no such bound, and transformers 5.16 leaves it out there.
            model.set_attn_implementation("eager")
        sequences = _sequences(model)
        expected = _logits(model, sequences)
        _pack(model, sequences, expected)
        candidates: Sequence[tuple[str, Callable[[], Executor]]] = (
            ("ragged", lambda: RaggedExecutor(model)),
            ("merge", lambda: MergeExecutor(model)),
            ("merge, whole prompts", lambda: MergeExecutor(model, can_chunk=False)),
            ("sequential", lambda: SequentialExecutor(model)),
            ("sequential, whole prompts", lambda: SequentialExecutor(model, can_chunk=False)),
        )
        for name, make in candidates:
            executor = _try(name, make, sequences, expected)
            if executor is not None:
                return executor
        return RecomputeExecutor(model)


def _try(
    name: str,
    make: Callable[[], Executor],
    sequences: Sequence[Sequence[int]],
    expected: Sequence[torch.Tensor],
) -> Executor | None:
    # A check is a boundary: whatever code of a model raises means that it cannot be run so.
    executor: Executor | None = None
    try:
        executor = make()
        reason = _difference(executor, sequences, expected)
    except Exception as exc:
        reason = f"{type(exc).__name__}: {exc}"
    if reason is None:
        return executor
    logger.info("Executor %s does not suit the model: %s", name, reason)
    if isinstance(executor, RaggedExecutor):
        executor.restore()
    return None


def _pack(model: Any, sequences: Sequence[Sequence[int]], expected: Sequence[torch.Tensor]) -> None:
    """Make the model faster, unless it is another one then."""
    packed = PackedModel(model)
    if not packed:
        return
    # A model may read weights by itself, which it could not any more.
    try:
        found = [[rows] for rows in _logits(model, sequences)]
        reason = _compare(found, expected, _tolerance(model))
    except Exception as exc:
        reason = f"{type(exc).__name__}: {exc}"
    if reason is not None:
        logger.info("The model's weights cannot be packed: %s", reason)
        packed.undo()


def _sequences(model: Any) -> list[list[int]]:
    """Make random sequences."""
    config = model.config.get_text_config()
    special = {
        value
        for key, value in config.to_dict().items()
        if key.endswith("_token_id") and isinstance(value, int)
    }
    generator = torch.Generator().manual_seed(0)
    ordinary = [index for index in range(min(config.vocab_size, 4096)) if index not in special]
    sequences = []
    for length in _LENGTHS:
        picks = torch.randint(len(ordinary), (length + _N_DECODES,), generator=generator)
        sequences.append([ordinary[pick] for pick in picks.tolist()])
    return sequences


def _logits(model: Any, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Give the logits of sequences by plain forwards."""
    return [
        model(input_ids=torch.tensor([sequence], device=model.device), use_cache=False)
        .logits[0]
        .float()
        for sequence in sequences
    ]


def _difference(
    executor: Executor, sequences: Sequence[Sequence[int]], expected: Sequence[torch.Tensor]
) -> str | None:
    """Say how the logits of an executor differ from a plain forward's; None if they do not."""
    states = [executor.open(len(sequence), sequence) for sequence in sequences]
    found: list[list[torch.Tensor]] = [[] for _ in states]

    def run(*parts: tuple[int, int, int]) -> None:
        chunks = [Chunk(states[s], sequences[s][a:b], b - a) for s, a, b in parts]
        for (index, _, _), rows in zip(parts, executor.run(chunks), strict=True):
            found[index].append(rows)

    first, second = _LENGTHS
    if executor.can_chunk:
        run((0, 0, _FIRST_PART))
        run((0, _FIRST_PART, first), (1, 0, second))
    else:
        run((0, 0, first), (1, 0, second))
    for step in range(_N_DECODES):
        # They are together, then one is alone, then they are together again.
        parts = [(0, first + step, first + step + 1), (1, second + step, second + step + 1)]
        for group in (parts[:1], parts[1:]) if step == 1 else (parts,):
            run(*group)
    for state in states:
        executor.close(state)
    return _compare(found, expected, _tolerance(executor.model))


def _tolerance(model: Any) -> float:
    return _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)


def _compare(
    found: Sequence[Sequence[torch.Tensor]], expected: Sequence[torch.Tensor], tolerance: float
) -> str | None:
    for rows, reference in zip(found, expected, strict=True):
        spread = float(reference.std())
        error = float((torch.cat(list(rows)) - reference).abs().max())
        if not error <= tolerance * spread:
            return f"its logits differ by {error:.3g}, of a spread of {spread:.3g}"
    return None
