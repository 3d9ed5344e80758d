"""What an executor is: sequences with a KV cache of their own, and forwards over many of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch


@dataclass(slots=True)
class Chunk:
    """Tokens of one sequence for the next forward.

    Attributes:
        state: The sequence's, from `Executor.open`.
        token_ids: The next tokens; they follow those that the state holds.
        n_logits: How many of the last ones want logits: 0, 1 or all of them.
    """

    state: Any
    token_ids: Sequence[int]
    n_logits: int = 1


class Executor(ABC):
    """Computes with one model; for one thread.

    Attributes:
        name: What it is called in the log and in metrics.
        can_chunk: A prompt may be computed in several parts.
        has_prefixes: `read_block` and `write_block` work.
        n_forwards: Forwards of the model since the start.
    """

    name: ClassVar[str]
    can_chunk: bool = True
    has_prefixes: bool = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.n_forwards = 0

    @abstractmethod
    def kv_bytes(self, n_tokens: int, n_prompt_tokens: int) -> int:
        """Give the bytes that a sequence of so many tokens takes, and its encoder's prompt."""

    @abstractmethod
    def open(self, n_tokens: int, prompt_ids: Sequence[int]) -> Any:
        """Give the state of a new sequence of at most so many tokens."""

    @abstractmethod
    def fork(self, state: Any) -> Any:
        """Give a state of its own that goes on from where another one is."""

    def close(self, state: Any) -> None:
        """Free what a state holds."""

    @abstractmethod
    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """Compute the next tokens of some sequences.

        Where it raises, `recover` says what is left of their states.

        Returns:
            For each chunk its logits, float32, shape (n_logits, n_vocabulary).
        """

    @abstractmethod
    def recover(self, state: Any, n_tokens: int) -> int:
        """Go back to a state's first tokens after `run` raised; gives how many of them are left."""

    def read_block(self, state: Any, start: int, stop: int) -> list[torch.Tensor]:
        """Copy the keys and values of some tokens of a sequence."""
        raise NotImplementedError(f"{self.name} has no prefixes")

    def write_block(self, state: Any, block: Sequence[torch.Tensor]) -> None:
        """Let a sequence go on with tokens that `read_block` has copied."""
        raise NotImplementedError(f"{self.name} has no prefixes")

    def _ids(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(token_ids)], dtype=torch.long, device=self.device)
