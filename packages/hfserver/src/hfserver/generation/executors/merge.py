"""Sequences that decode share a cache, one row each, padded on the left.

For models whose attention cannot be replaced. A prompt is computed with a cache of its own; when it
is done its row joins the shared one, and leaves it at the end.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from hfserver.generation.executors.base import Chunk
from hfserver.generation.executors.sequential import CachedState, SequentialExecutor


class NotMergeable(Exception):
    """The model cannot be run so; the text says why."""


class MergeExecutor(SequentialExecutor):
    """Runs models whose cache has rows that are independent of each other.

    Args:
        model: The model.
        can_chunk: Its cache is right when a prompt comes in parts.

    Raises:
        NotMergeable: Its cache forgets tokens, so that rows cannot be shifted.
    """

    name: ClassVar[str] = "merge"

    def __init__(self, model: Any, can_chunk: bool = True) -> None:
        layers = DynamicCache(config=model.config).layers
        if any(getattr(layer, "is_sliding", False) for layer in layers):
            raise NotMergeable("it has layers that see only a window of tokens")
        # The shared cache, and whose its rows are.
        self._shared: Any = None
        self._members: list[CachedState] = []
        super().__init__(model, can_chunk)

    def close(self, state: CachedState) -> None:
        """Drop the cache; a row of the shared one goes when the next step is computed."""
        super().close(state)
        state.length = 0
        if not any(member.length for member in self._members):
            self._shared, self._members = None, []

    def fork(self, state: CachedState) -> CachedState:
        """Copy the cache, taking it out of the shared one."""
        self._take_out([state])
        return super().fork(state)

    def recover(self, state: CachedState, n_tokens: int) -> int:
        """A failed forward may have changed the shared cache: all of its rows begin anew."""
        if state in self._members:
            self._shared, members, self._members = None, self._members, []
            for member in members:
                member.length = 0
        return super().recover(state, n_tokens)

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """Compute the decodes in one forward, then the parts of prompts one by one."""
        decodes = [c for c in chunks if len(c.token_ids) == 1 and c.state.length > 0]
        if len(decodes) < 2:
            decodes = []
        rows: dict[int, torch.Tensor] = {}
        others = [chunk for chunk in chunks if chunk not in decodes]
        self._take_out([chunk.state for chunk in others])
        if decodes:
            logits = self._decode(decodes)
            rows = {id(chunk): row for chunk, row in zip(decodes, logits, strict=True)}
        for chunk in others:
            rows[id(chunk)] = self._run_one(chunk)
        return [rows[id(chunk)] for chunk in chunks]

    def _decode(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        self._gather([chunk.state for chunk in chunks])
        by_state = {id(chunk.state): chunk for chunk in chunks}
        ordered = [by_state[id(member)] for member in self._members]
        lengths = torch.tensor([m.length for m in self._members], device=self.device)
        longest = int(lengths.max())
        # True where a row has a token, this one included.
        places = torch.arange(longest + 1, device=self.device)
        mask = (places >= longest - lengths[:, None]).long()
        options: dict[str, Any] = {self._cache_name: self._shared, "use_cache": True}
        if self._token_bytes:
            options["attention_mask"] = mask
        if self._takes_positions:
            options["position_ids"] = lengths[:, None]
        ids = torch.tensor([list(chunk.token_ids) for chunk in ordered], device=self.device)
        logits = self._forward(ids, options, 1)[:, -1:].float()
        for member in self._members:
            member.length += 1
        found = {id(chunk): row for chunk, row in zip(ordered, logits, strict=True)}
        return [found[id(chunk)][1 - chunk.n_logits :] for chunk in chunks]

    def _gather(self, states: Sequence[CachedState]) -> None:
        """Make the shared cache hold the rows of these sequences and no others."""
        wanted = set(map(id, states))
        kept = [row for row, member in enumerate(self._members) if id(member) in wanted]
        caches: list[Any] = []
        lengths: list[list[int]] = []
        members = [self._members[row] for row in kept]
        if kept:
            if len(kept) < len(self._members):
                self._select(kept)
            caches.append(self._shared)
            lengths.append([member.length for member in members])
        known = set(map(id, members))
        for state in states:
            if id(state) not in known:
                caches.append(state.cache)
                lengths.append([state.length])
                members.append(state)
                state.cache = None
        self._shared = caches[0] if len(caches) == 1 else _join(caches, lengths)
        self._members = members

    def _take_out(self, states: Sequence[CachedState]) -> None:
        """Give those of these sequences that have a row of the shared cache one of their own."""
        for state in states:
            if state not in self._members:
                continue
            row = self._members.index(state)
            state.cache = _row(self._shared, row, state.length)
            others = [index for index in range(len(self._members)) if index != row]
            if others:
                self._select(others)
            else:
                self._shared = None
            self._members = [self._members[index] for index in others]

    def _select(self, rows: Sequence[int]) -> None:
        longest = max(self._members[row].length for row in rows)
        index = torch.tensor(rows, device=self.device)
        _change(self._shared, lambda tensor: tensor[index], longest)


def _change(cache: Any, function: Any, n_tokens: int) -> None:
    """Apply a function to each tensor of a cache, and keep the last tokens of keys and values."""
    for layer in cache.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                for key, tensor in value.items():
                    if isinstance(tensor, torch.Tensor):
                        value[key] = function(tensor)
            elif isinstance(value, torch.Tensor) and value.numel():
                changed = function(value)
                if name in ("keys", "values"):
                    changed = changed[:, :, changed.shape[2] - n_tokens :].contiguous()
                setattr(layer, name, changed)


def _row(cache: Any, row: int, n_tokens: int) -> Any:
    """Copy one row of a cache."""
    own = copy.copy(cache)
    own.layers = []
    for layer in cache.layers:
        own_layer = copy.copy(layer)
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(own_layer, name, dict(value))
        own.layers.append(own_layer)
    _change(own, lambda tensor: tensor[row : row + 1].clone(), n_tokens)
    return own


def _join(caches: Sequence[Any], lengths: Sequence[Sequence[int]]) -> Any:
    """Join the rows of caches into the first one, padded to the longest on the left.

    Args:
        caches: The caches.
        lengths: The tokens of each one's rows.
    """
    longest = max(map(max, lengths))
    joined = caches[0]
    for index, layer in enumerate(joined.layers):
        layers = [cache.layers[index] for cache in caches]
        for name, value in vars(layer).items():
            values = [getattr(other, name) for other in layers]
            if isinstance(value, dict):
                for key, tensor in value.items():
                    if isinstance(tensor, torch.Tensor):
                        value[key] = torch.cat([other[key] for other in values])
            elif isinstance(value, torch.Tensor) and value.numel():
                if name in ("keys", "values"):
                    values = [pad(v, (0, 0, longest - v.shape[2], 0)) for v in values]
                setattr(layer, name, torch.cat(values))
    return joined
