"""The flags of models that write text; needs neither torch nor transformers.

Source of the names: vLLM's and KServe's.
"""

import argparse
from dataclasses import dataclass
from typing import Final

from hfserver.generation.settings import (
    DEFAULT_MAX_BATCH_TOKENS,
    DEFAULT_MAX_NUM_SEQS,
    DEFAULT_MAX_WAITING_REQUESTS,
)
from kserve.config import count, positive

QUANTIZATIONS: Final = ("bnb-8bit", "bnb-4bit")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What the command line says about a model that writes text.

    Attributes:
        device: As torch names it; `auto` is the first GPU where there is one, else the CPU.
        quantization: How the weights are made smaller, one of `QUANTIZATIONS`; None leaves them.
        kv_cache_bytes: What the keys and values of running requests may take; None is a half of
            the memory that the model leaves.
        prefix_cache_bytes: What is kept of earlier requests; None is an eighth of that memory.
        max_num_batched_tokens: Tokens of prompts and answers in a step, about.
        max_num_seqs: Sequences that are computed at a time.
        max_waiting_requests: Requests that may wait to be.
    """

    device: str = "auto"
    quantization: str | None = None
    kv_cache_bytes: int | None = None
    prefix_cache_bytes: int | None = None
    max_num_batched_tokens: int = DEFAULT_MAX_BATCH_TOKENS
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    max_waiting_requests: int = DEFAULT_MAX_WAITING_REQUESTS

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "GenerationOptions":
        """Give what a parsed command line says."""
        return cls(
            device=args.device,
            quantization=args.quantization,
            kv_cache_bytes=args.kv_cache_bytes,
            prefix_cache_bytes=args.prefix_cache_bytes,
            max_num_batched_tokens=args.max_num_batched_tokens,
            max_num_seqs=args.max_num_seqs,
            max_waiting_requests=args.max_waiting_requests,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    add = parser.add_argument_group("models that write text").add_argument
    add(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:N; auto is a GPU where there is one (%(default)s)",
    )
    add(
        "--quantization",
        choices=QUANTIZATIONS,
        help="make the weights smaller, which is slower on a CPU (as they are)",
    )
    add(
        "--kv_cache_bytes",
        type=positive,
        help="memory for the keys and values of requests (half of what the model leaves)",
    )
    add(
        "--prefix_cache_bytes",
        type=count,
        help="memory for those of earlier requests, 0 for none (an eighth of what it leaves)",
    )
    add(
        "--max_num_batched_tokens",
        "--max-num-batched-tokens",
        type=positive,
        default=DEFAULT_MAX_BATCH_TOKENS,
        help="tokens of a step: more are faster, and take longer until a next one (%(default)s)",
    )
    add(
        "--max_num_seqs",
        "--max-num-seqs",
        type=positive,
        default=DEFAULT_MAX_NUM_SEQS,
        help="answers that are written at the same time (%(default)s)",
    )
    add(
        "--max_waiting_requests",
        type=positive,
        default=DEFAULT_MAX_WAITING_REQUESTS,
        help="requests that may wait for that, beyond which they get 429 (%(default)s)",
    )
