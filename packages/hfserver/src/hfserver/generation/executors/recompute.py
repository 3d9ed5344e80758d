"""Everything from the first token on, at each step: for models that no cache is right for."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from hfserver.generation.executors.base import Chunk, Executor


class RecomputeExecutor(Executor):
    """Runs any decoder by plain forwards. A state is the list of the tokens so far."""

    name: ClassVar[str] = "recompute"

    def kv_bytes(self, n_tokens: int, n_prompt_tokens: int) -> int:
        """Nothing is kept."""
        return 0

    def open(self, n_tokens: int, prompt_ids: Sequence[int]) -> list[int]:
        """Give a state without tokens."""
        return []

    def fork(self, state: list[int]) -> list[int]:
        """Copy the tokens."""
        return list(state)

    def recover(self, state: list[int], n_tokens: int) -> int:
        """Begin anew, which costs nothing."""
        state.clear()
        return 0

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """Compute the sequences one after the other."""
        return [self._run_one(chunk) for chunk in chunks]

    def _run_one(self, chunk: Chunk) -> torch.Tensor:
        self.n_forwards += 1
        ids: Any = [*chunk.state, *chunk.token_ids]
        logits: torch.Tensor = self.model(input_ids=self._ids(ids), use_cache=False).logits[0]
        chunk.state.extend(chunk.token_ids)
        return logits[len(logits) - chunk.n_logits :].float()
