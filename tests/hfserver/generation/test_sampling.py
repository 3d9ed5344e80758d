"""Parameters mean exactly what they say: compared with their definitions on fixed logits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hfserver.generation.interface import SamplingParams
from hfserver.generation.sampling import Sampler, TokenCounts, _cut_to_nucleus, token_logprobs

CPU = torch.device("cpu")

Filter = Callable[[torch.Tensor], torch.Tensor]


def sampler(seed: int = 0, prompt: tuple[int, ...] = (), **params: Any) -> Sampler:
    stop_ids = params.pop("stop_ids", ())
    suppressed = params.pop("suppressed", ())
    return Sampler(SamplingParams(**params), seed, stop_ids, prompt, CPU, suppressed)


def logits_of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def chosen(n: int, logits: torch.Tensor, **params: Any) -> torch.Tensor:
    """Give how often each token was chosen."""
    one = sampler(seed=7, **params)
    counts = torch.zeros(len(logits))
    for _ in range(n):
        counts[one.choose(logits.clone())] += 1
    return counts


def test_zero_temperature_takes_the_likeliest_token() -> None:
    assert sampler(temperature=0).choose(logits_of(1, 5, 3)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_by_the_probabilities_of_scaled_logits(temperature: float) -> None:
    logits = torch.randn(8, generator=torch.Generator().manual_seed(1)) * 2
    n = 4000

    counts = chosen(n, logits, temperature=temperature)

    expected = (logits / temperature).softmax(-1) * n
    # Chi-square of 7 degrees of freedom is beyond 24.3 once in a thousand.
    assert float(((counts - expected) ** 2 / expected).sum()) < 24.3


def _top_p(p: float) -> Filter:
    def keep(probs: torch.Tensor) -> torch.Tensor:
        values, order = probs.sort(descending=True)
        kept = order[values.cumsum(0) - values < p]
        return torch.zeros_like(probs).index_fill(0, kept, 1)

    return keep


@pytest.mark.parametrize(
    ("params", "keep"),
    [
        ({"top_k": 3}, lambda p: (p >= p.topk(3).values[-1]).float()),
        ({"top_k": 1}, lambda p: (p >= p.max()).float()),
        ({"top_p": 0.6}, _top_p(0.6)),
        ({"top_p": 0.0}, lambda p: (p >= p.max()).float()),
        ({"top_p": 0.999}, _top_p(0.999)),
        ({"min_p": 0.2}, lambda p: (p >= 0.2 * p.max()).float()),
        ({"min_p": 1.0}, lambda p: (p >= p.max()).float()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_filters_keep_what_they_are_defined_to(params: dict[str, Any], keep: Filter) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(2)) * 2
    n = 3000
    kept = logits.softmax(-1) * keep(logits.softmax(-1))

    counts = chosen(n, logits, **params)

    expected = kept / kept.sum() * n
    assert float(counts[expected == 0].sum()) == 0
    is_kept = expected > 0
    distance = ((counts - expected) ** 2 / expected)[is_kept].sum()
    # Of 11 degrees of freedom or fewer, once in a thousand.
    assert float(distance) < 31.3


def test_top_p_counts_what_top_k_has_left() -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1).log()

    counts = chosen(500, logits, top_k=2, top_p=0.55)

    # Of two that are left the first has 0.57 of the probability.
    assert counts.tolist() == [500, 0, 0, 0]


def test_min_p_is_applied_after_the_temperature() -> None:
    logits = logits_of(0.0, math.log(0.3))

    assert chosen(200, logits, min_p=0.4)[1] == 0
    # The square root of 0.3 is above 0.4.
    assert chosen(200, logits, min_p=0.4, temperature=2.0)[1] > 0


@pytest.mark.parametrize("scale", [0.0, 0.001, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.7, 0.95, 0.9999])
def test_top_p_of_a_large_vocabulary_keeps_what_a_full_sort_keeps(
    scale: float, top_p: float
) -> None:
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(3)) * scale
    logits -= logits.max()
    logits[5] = -math.inf
    values, order = logits.double().softmax(-1).sort(descending=True, stable=True)
    n_expected = max(1, int((values.cumsum(0) - values < top_p).sum()))
    weights = logits.exp()

    _cut_to_nucleus(weights, logits, top_p)

    kept = weights.nonzero().squeeze(1)
    # Weights of single precision may take a token more or less at the border.
    assert abs(len(kept) - n_expected) <= n_expected // 1000
    n_both = min(len(kept), n_expected)
    assert weights[order[:n_both]].min() > 0
    assert torch.equal(weights[kept], logits[kept].exp())


def test_presence_penalty_is_taken_once_and_only_of_generated_tokens() -> None:
    one = sampler(prompt=(2,), temperature=0, presence_penalty=1.5)
    for token_id in (0, 0, 1):
        one.accept(token_id)
    logits = logits_of(3, 2, 1, 0)

    one.choose(logits)

    assert logits.tolist() == [1.5, 0.5, 1, 0]


def test_frequency_penalty_is_taken_for_each_time() -> None:
    one = sampler(temperature=0, frequency_penalty=0.5)
    for token_id in (0, 0, 1):
        one.accept(token_id)
    logits = logits_of(3, 2, 1)

    one.choose(logits)

    assert logits.tolist() == [2, 1.5, 1]


def test_repetition_penalty_divides_and_multiplies_and_counts_the_prompt() -> None:
    one = sampler(prompt=(0, 1), temperature=0, repetition_penalty=2.0)
    one.accept(2)
    logits = logits_of(3, -2, 1, 4)

    one.choose(logits)

    assert logits.tolist() == [1.5, -4, 0.5, 4]


def test_bias_is_added() -> None:
    assert sampler(temperature=0, logit_bias={2: 100.0, 0: -1.0}).choose(logits_of(3, 2, 1)) == 2


def test_no_stop_token_is_chosen_before_min_tokens() -> None:
    one = sampler(temperature=0, min_tokens=2, stop_ids=(0,))
    tokens = []
    for _ in range(3):
        tokens.append(one.choose(logits_of(5, 4)))
        one.accept(tokens[-1])

    assert tokens == [1, 1, 0]


def test_suppressed_token_is_never_chosen() -> None:
    assert sampler(temperature=0, suppressed=(0,)).choose(logits_of(5, 4)) == 1


def test_same_seed_draws_the_same() -> None:
    logits = torch.zeros(50)

    def draw(seed: int) -> list[int]:
        one = sampler(seed=seed)
        return [one.choose(logits.clone()) for _ in range(20)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize(
    ("values", "text"), [((1, math.nan), "NaN"), ((-math.inf, -math.inf), "no token")]
)
def test_logits_that_give_no_token_are_an_error(values: tuple[float, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sampler().choose(logits_of(*values))


def test_infinite_logit_wins() -> None:
    assert sampler().choose(logits_of(1, math.inf, 3)) == 1


def test_tiny_temperature_does_not_overflow() -> None:
    assert sampler(temperature=1e-30).choose(logits_of(1e30, 2, 3)) == 0


class _Only:
    def __init__(self) -> None:
        self.accepted: list[int] = []

    def apply(self, logits: torch.Tensor) -> None:
        logits[: len(self.accepted) + 1] = -math.inf

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


def test_constraint_limits_each_token_and_learns_of_it() -> None:
    made = []

    def make() -> _Only:
        made.append(_Only())
        return made[-1]

    one = sampler(temperature=0, constraint=make)
    for expected in (1, 2, 3):
        token_id = one.choose(logits_of(9, 8, 7, 6))
        one.accept(token_id)
        assert token_id == expected

    assert [only.accepted for only in made] == [[1, 2, 3]]


def test_counts_grow_with_the_tokens_that_occur() -> None:
    counts = TokenCounts(CPU)

    counts.add([5] * 3 + list(range(100)))

    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == {
        token_id: 4.0 if token_id == 5 else 1.0 for token_id in range(100)
    }


def test_log_probabilities_are_those_of_log_softmax() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(4))
    expected = logits.log_softmax(-1)

    first, second = token_logprobs(logits, [3, 1], 2)

    assert first.logprob == pytest.approx(float(expected[0, 3]))
    values, ids = expected[1].topk(2)
    assert second.top == tuple(zip(ids.tolist(), values.tolist(), strict=True))
    assert token_logprobs(logits, [3, 1], 0)[0].top == ()
