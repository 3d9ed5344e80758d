"""What an engine is set to: its limits, and what its model says of itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# As many tokens as a forward on a CPU takes for a small part of a second on a small model.
DEFAULT_MAX_BATCH_TOKENS: Final = 512

DEFAULT_MAX_NUM_SEQS: Final = 128

# A request that waits costs its prompt's memory; one that waits behind as many has no hope.
DEFAULT_MAX_WAITING_REQUESTS: Final = 256


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
    """

    max_model_len: int
    kv_cache_bytes: int
    prefix_cache_bytes: int = 0
    max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    max_waiting_requests: int = DEFAULT_MAX_WAITING_REQUESTS


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
