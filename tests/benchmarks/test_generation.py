"""The page of ways to generate, and how they are seen to agree before they count."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from benchmarks import generation
from benchmarks.generation import OURS, SEQUENTIAL, Figures, asks, measure, page, table
from benchmarks.generation_ways import Ask, Way

Run = Callable[[Sequence[Ask]], list[list[int]]]


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


def counted(run: Run) -> Way:
    """Give a way that takes a second of CPU each time."""
    seconds = iter(range(100))
    return Way(run, lambda: float(next(seconds)))


def test_way_that_gives_other_tokens_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "stay_on", lambda *cpus: None)

    def right(requests: Sequence[Ask]) -> list[list[int]]:
        return [[1, 2, 3] for _ in requests]

    def wrong(requests: Sequence[Ask]) -> list[list[int]]:
        return [[0] for _ in requests]

    cases = {"one": asks(2, (3, 9), (2, 4))}

    figures = measure({"a": counted(right), "b": counted(right)}, cases, 2)
    assert {key: each.per_cpu for key, each in figures.items()} == {
        ("one", "a"): [6.0, 6.0],
        ("one", "b"): [6.0, 6.0],
    }
    with pytest.raises(RuntimeError, match="b gives other tokens than a"):
        measure({"a": counted(right), "b": counted(wrong)}, cases, 1)


@pytest.mark.timeout(120)
def test_page_of_a_tiny_model_has_every_way(tmp_path: Path) -> None:
    output = tmp_path / "page.md"
    arguments = ["--runs", "1", "--layers", "1", "--hidden", "64", "--requests", "2"]
    arguments += ["--prompt", "64", "--without_peer", "not here", "--output", str(output)]

    subprocess.run([sys.executable, "-m", "benchmarks.generation", *arguments], check=True)

    text = output.read_text()
    for way in (SEQUENTIAL, generation.STATIC, generation.CONTINUOUS, OURS, generation.OURS_HTTP):
        assert text.count(f"| {way} |") == 2
    assert "transformers serve, HTTP was left out: not here" in text
    assert "The first token of a prompt of 64 tokens came after" in text
