"""What an engine is set to: its limits, and what its model says of itself."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

# As many tokens as a forward on a CPU takes for a small part of a second on a small model.
DEFAULT_MAX_BATCH_TOKENS: Final = 512

DEFAULT_MAX_NUM_SEQS: Final = 128

# A request that waits costs its prompt's memory; one that waits behind as many has no hope.
DEFAULT_MAX_WAITING_REQUESTS: Final = 256


def count_that_fits(most: int, n_bytes: int, size: Callable[[int], int]) -> int:
    """Give the largest count, of 0 to `most`, whose size is within a number of bytes.

    Args:
        most: The largest count that is of use.
        n_bytes: What it may take.
        size: Gives the bytes of a count, never fewer for a larger one.

    Returns:
        The count; -1 where not even 0 fits.
    """
    return bisect.bisect_right(range(most + 1), n_bytes, key=size) - 1


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The limits of an engine.

    Attributes:
        max_model_len: Tokens of a prompt and its answer together, at most.
        kv_cache_bytes: What the keys and values of running requests may take, at most.
        prefix_cache_bytes: What is kept of earlier requests, beside it; 0 keeps nothing.
        max_batch_tokens: Tokens of prompts and answers in a step, about.
        max_num_seqs: Sequences that are computed at a time.
        max_waiting_requests: Requests that may wait to be.
        default_max_tokens: Tokens of an answer that has no limit of its own, at most; None is any
            number.
    """

    max_model_len: int
    kv_cache_bytes: int
    prefix_cache_bytes: int = 0
    max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    max_waiting_requests: int = DEFAULT_MAX_WAITING_REQUESTS
    default_max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a model says of some of its tokens.

    Attributes:
        eos_ids: Any of them ends a sequence.
        decoder_start_ids: With an encoder: what the decoder begins with; empty without one.
        forced_bos_id: The first token, whatever the logits say; None leaves it to them.
        forced_eos_id: The last token of an answer that is cut off; None leaves it to them.
        suppressed_ids: They never come.
    """

    eos_ids: frozenset[int] = frozenset()
    decoder_start_ids: Sequence[int] = ()
    forced_bos_id: int | None = None
    forced_eos_id: int | None = None
    suppressed_ids: Sequence[int] = ()
