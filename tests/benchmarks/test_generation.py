"""The page of ways to generate, and how they are seen to agree before they count."""

from collections.abc import Sequence

import pytest
from benchmarks.generation import OURS, SEQUENTIAL, Ask, Figures, asks, measure, page, table


def test_requests_are_the_same_for_the_same_seed_and_within_their_bounds() -> None:
    made = asks(20, (3, 9), (2, 4), seed=1)

    assert made == asks(20, (3, 9), (2, 4), seed=1)
    assert made != asks(20, (3, 9), (2, 4), seed=2)
    assert {len(ask.prompt) for ask in made} == set(range(3, 10))
    assert {ask.n_tokens for ask in made} == {2, 3, 4}


def test_ratios_are_to_the_first_way_of_the_same_requests() -> None:
    figures = {
        ("8", SEQUENTIAL): Figures([10, 30, 20], [5, 5, 5]),
        ("8", OURS): Figures([50, 40, 60], [25, 25, 25]),
        ("24", SEQUENTIAL): Figures([100], [50]),
    }

    lines = table(figures).splitlines()[2:]

    assert lines == [
        "| 8 | generate(), one by one | 20 | 10 to 30 | 1.00 | 5 |",
        "| 8 | ours | 50 | 40 to 60 | 2.50 | 25 |",
        "| 24 | generate(), one by one | 100 | 100 to 100 | 1.00 | 50 |",
    ]
    assert page(figures, ["a note"]).endswith(f"{lines[-1]}\n\n- a note\n")


def test_way_that_gives_other_tokens_is_not_measured() -> None:
    def right(requests: Sequence[Ask]) -> list[list[int]]:
        return [[sum(ask.prompt)] * 20_000 for ask in requests]

    def wrong(requests: Sequence[Ask]) -> list[list[int]]:
        return [[0] for _ in requests]

    cases = {"one": asks(2, (3, 9), (2, 4))}

    figures = measure({"a": right, "b": right}, cases, 2)
    assert {key: len(each.per_cpu) for key, each in figures.items()} == {
        ("one", "a"): 2,
        ("one", "b"): 2,
    }
    with pytest.raises(RuntimeError, match="b gives other tokens than a"):
        measure({"a": right, "b": wrong}, cases, 1)
