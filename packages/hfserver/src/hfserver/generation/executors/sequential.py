"""One sequence a forward, each with a cache of the model's own kind: right for every decoder.

Sequences still take turns token by token, so none waits for another one's end.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from transformers import DynamicCache

from hfserver.generation.executors.base import Chunk, Executor

# What models call their cache: most of them, and those that have states in place of keys.
_CACHE_NAMES: Final = ("past_key_values", "cache_params")


@dataclass(slots=True, eq=False)
class CachedState:
    """A sequence with a cache of its own.

    Attributes:
        cache: The cache; None before the first tokens.
        length: Tokens that it holds.
    """

    cache: Any = None
    length: int = 0


class SequentialExecutor(Executor):
    """Runs any decoder, one sequence after the other.

    Args:
        model: The model.
        can_chunk: Its cache is right when a prompt comes in parts.
    """

    name: ClassVar[str] = "sequential"

    def __init__(self, model: Any, can_chunk: bool = True) -> None:
        super().__init__(model)
        self.can_chunk = can_chunk
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = next(name for name in _CACHE_NAMES if name in parameters)
        self._takes_positions = "position_ids" in parameters
        self._selects_rows = bool(model._supports_logits_to_keep())
        self._fixed_bytes, self._token_bytes = self._measure()

    def _measure(self) -> tuple[int, int]:
        """Find what a cache takes: for itself, and for each token."""
        state = self.open(2, ())
        self.run([Chunk(state, [0])])
        one = _bytes(state.cache)
        self.run([Chunk(state, [0])])
        token_bytes = max(0, _bytes(state.cache) - one)
        return one - token_bytes, token_bytes

    def kv_bytes(self, n_tokens: int, n_prompt_tokens: int) -> int:
        """Give the bytes of its cache."""
        return self._fixed_bytes + n_tokens * self._token_bytes

    def open(self, n_tokens: int, prompt_ids: Sequence[int]) -> CachedState:
        """Give a state without tokens."""
        return CachedState()

    def fork(self, state: CachedState) -> CachedState:
        """Copy the cache."""
        return CachedState(copy.deepcopy(state.cache), state.length)

    def close(self, state: CachedState) -> None:
        """Drop the cache."""
        state.cache = None

    def recover(self, state: CachedState, n_tokens: int) -> int:
        """A failed forward may have changed the cache, which begins anew."""
        state.cache, state.length = None, 0
        return 0

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """Compute the chunks one after the other."""
        return [self._run_one(chunk) for chunk in chunks]

    def _run_one(self, chunk: Chunk) -> torch.Tensor:
        state: CachedState = chunk.state
        n = len(chunk.token_ids)
        if state.cache is None:
            state.cache = DynamicCache(config=self.model.config)
        ids = self._ids(chunk.token_ids)
        options: dict[str, Any] = {self._cache_name: state.cache, "use_cache": True}
        if self._takes_positions:
            options["position_ids"] = self._ids(range(state.length, state.length + n))
        logits = self._forward(ids, options, max(1, chunk.n_logits))
        state.length += n
        return logits[0, logits.shape[1] - chunk.n_logits :].float()

    def _forward(self, ids: torch.Tensor, options: dict[str, Any], n_rows: int) -> torch.Tensor:
        """Give the logits of at least the last `n_rows` tokens of each row."""
        self.n_forwards += 1
        if self._selects_rows:
            options["logits_to_keep"] = n_rows
        logits: torch.Tensor = self.model(input_ids=ids, **options).logits
        return logits


def tensors(cache: Any) -> list[torch.Tensor]:
    """Give the tensors of a cache."""
    found: list[torch.Tensor] = []
    for layer in cache.layers:
        for value in vars(layer).values():
            parts = value.values() if isinstance(value, dict) else [value]
            found.extend(part for part in parts if isinstance(part, torch.Tensor))
    return found


def _bytes(cache: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(cache))
