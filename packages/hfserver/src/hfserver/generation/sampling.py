"""Choosing the next token of one sequence, exactly as its parameters say.

A row of logits is a float32 tensor of shape (n_vocabulary,). The order is that of vLLM: the
constraint, the bias, `min_tokens`, the penalties, the temperature, `min_p`, `top_k`, `top_p`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch

from hfserver.generation.interface import Constraint, SamplingParams, TokenLogprob

# Sorting 150,000 logits takes 20 ms. To find where the likeliest ones of a mass end, it is enough
# to sum them up in bins by their logit, and to sort the one bin that the end lies in.
_N_BINS: Final = 4096

# Logits that are further below the largest have e^-40 of its probability or less.
_WIDEST: Final = 40.0


class TokenCounts:
    """How often each token has occurred, kept so that a step costs only what has occurred."""

    __slots__ = ("_counts", "_ids", "_n", "_slots")

    def __init__(self, device: torch.device) -> None:
        self._slots: dict[int, int] = {}
        self._ids = torch.zeros(16, dtype=torch.long, device=device)
        self._counts = torch.zeros(16, dtype=torch.float32, device=device)
        self._n = 0

    def add(self, token_ids: Iterable[int]) -> None:
        """Count tokens."""
        for token_id in token_ids:
            slot = self._slots.get(token_id)
            if slot is None:
                slot = self._slots[token_id] = self._n
                self._n += 1
                if self._n > len(self._ids):
                    self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
                    self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
                self._ids[slot] = token_id
            self._counts[slot] += 1

    @property
    def ids(self) -> torch.Tensor:
        """The tokens that have occurred, shape (n_distinct,)."""
        return self._ids[: self._n]

    @property
    def counts(self) -> torch.Tensor:
        """How often, in the order of `ids`."""
        return self._counts[: self._n]


class Sampler:
    """Chooses the tokens of one sequence; keeps its random numbers and what it has seen.

    Args:
        params: How they are chosen.
        seed: Where its random numbers begin.
        stop_ids: What may not be chosen before `min_tokens`.
        prompt_ids: The prompt, for the repetition penalty.
        device: Where the logits are.
        suppressed_ids: What may never be chosen.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        stop_ids: Iterable[int],
        prompt_ids: Sequence[int],
        device: torch.device,
        suppressed_ids: Sequence[int] = (),
    ) -> None:
        self._params = params
        self._device = device
        self._generator = torch.Generator(device="cpu").manual_seed(seed)
        self._constraint: Constraint | None = params.constraint and params.constraint()
        self._n_chosen = 0
        self._stop_ids = _index(stop_ids, device) if params.min_tokens else None
        self._suppressed = _index(suppressed_ids, device) if suppressed_ids else None
        self._bias_ids = _index(params.logit_bias, device) if params.logit_bias else None
        self._biases = torch.tensor(list(params.logit_bias.values()), device=device).float()
        self._generated: TokenCounts | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._generated = TokenCounts(device)
        self._seen: TokenCounts | None = None
        if params.repetition_penalty != 1:
            self._seen = TokenCounts(device)
            self._seen.add(prompt_ids)

    def choose(self, logits: torch.Tensor) -> int:
        """Choose a token; `accept` says that it was taken.

        Args:
            logits: The model's, which are changed.

        Raises:
            ValueError: They hold NaN, or no token is allowed.
            Exception: Whatever the constraint raises.
        """
        self._process(logits)
        largest = float(logits.max())
        if math.isnan(largest) or largest == -math.inf:
            found = "NaN" if math.isnan(largest) else "no token that is allowed"
            raise ValueError(f"the logits hold {found}")
        if self._params.temperature == 0 or largest == math.inf:
            return int(logits.argmax())
        logits.sub_(largest).div_(self._params.temperature)
        return self._draw(logits)

    def accept(self, token_id: int) -> None:
        """Take note of the token that the sequence goes on with."""
        self._n_chosen += 1
        for counts in (self._generated, self._seen):
            if counts is not None:
                counts.add((token_id,))
        if self._constraint is not None:
            self._constraint.accept(token_id)

    def _process(self, logits: torch.Tensor) -> None:
        params = self._params
        if self._constraint is not None:
            self._constraint.apply(logits)
        if self._bias_ids is not None:
            logits[self._bias_ids] += self._biases
        if self._suppressed is not None:
            logits[self._suppressed] = -math.inf
        if self._stop_ids is not None and self._n_chosen < params.min_tokens:
            logits[self._stop_ids] = -math.inf
        if self._seen is not None:
            values = logits[self._seen.ids]
            penalty = params.repetition_penalty
            logits[self._seen.ids] = torch.where(values > 0, values / penalty, values * penalty)
        if self._generated is not None:
            taken = self._generated.counts * params.frequency_penalty + params.presence_penalty
            logits[self._generated.ids] -= taken

    def _draw(self, logits: torch.Tensor) -> int:
        """Draw from scaled logits whose largest is 0."""
        params = self._params
        uniform = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        if params.min_p > 0:
            logits.masked_fill_(logits < math.log(params.min_p), -math.inf)
        limits_k = 0 < params.top_k < len(logits)
        if not limits_k and params.top_p >= 1:
            return _inverse_cdf(logits.exp(), uniform)
        if limits_k:
            values, ids = logits.topk(params.top_k)
            kept = values.exp()
            return int(ids[_inverse_cdf(_nucleus(kept, params.top_p * kept.sum()), uniform)])
        weights = logits.exp()
        _cut_to_nucleus(weights, logits, params.top_p)
        return _inverse_cdf(weights, uniform)


def _index(token_ids: Iterable[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(token_ids), dtype=torch.long, device=device)


def _inverse_cdf(weights: torch.Tensor, uniform: float) -> int:
    """Give the index at which the sum of weights passes the share `uniform`, 0 to below 1."""
    sums = weights.cumsum(0, dtype=torch.float64)
    index = int(torch.searchsorted(sums, float(sums[-1]) * uniform, right=True))
    # Rounding could take the product to the sum itself, which is not passed.
    return min(index, int(torch.searchsorted(sums, float(sums[-1]))))


def _nucleus(weights: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Keep of weights in falling order the fewest first ones whose sum reaches `mass`, one or more.

    Source: Holtzman et al. 2019, "The curious case of neural text degeneration".
    """
    before = weights.cumsum(0) - weights
    return weights[: max(1, int((before < mass).sum()))]


def _cut_to_nucleus(weights: torch.Tensor, logits: torch.Tensor, top_p: float) -> None:
    """As `_nucleus` of a whole row in any order: sets the weights of all others to 0.

    Args:
        weights: Shape (n_vocabulary,).
        logits: Their logarithms; the largest is 0.
        top_p: The share of the sum of weights to keep.
    """
    lowest = float(logits.masked_fill(logits == -math.inf, 0.0).min())
    width = min(_WIDEST, -lowest) or 1.0
    bins = (logits * (-_N_BINS / width)).clamp_(0, _N_BINS - 1).long()
    sums = torch.bincount(bins, weights=weights.double(), minlength=_N_BINS).cumsum(0)
    mass = sums[-1] * top_p
    last = int((sums < mass).sum())
    weights.masked_fill_(bins > last, 0.0)
    inside = (bins == last).nonzero().squeeze(1)
    values, order = weights[inside].double().sort(descending=True, stable=True)
    rest = mass - (sums[last - 1] if last else 0.0)
    n_kept = len(_nucleus(values, rest))
    weights[inside[order[n_kept:]]] = 0.0


def token_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], n_top: int
) -> list[TokenLogprob]:
    """Give the log probabilities of tokens under the model's own logits.

    Args:
        logits: Shape (n_rows, n_vocabulary).
        token_ids: The token of each row.
        n_top: How many of the likeliest tokens to give beside it.
    """
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(1, _index(token_ids, logits.device)[:, None]).squeeze(1).tolist()
    if not n_top:
        return [TokenLogprob(*pair) for pair in zip(token_ids, chosen, strict=True)]
    values, ids = logprobs.topk(min(n_top, logprobs.shape[1]))
    tops: list[Any] = [
        tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return [TokenLogprob(*row) for row in zip(token_ids, chosen, tops, strict=True)]
