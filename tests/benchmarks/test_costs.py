"""The tables of costs, over real servers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearnserver")

from benchmarks import costs

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def lines(text: str) -> list[str]:
    """Give the lines of a table with every number as 0."""
    return [re.sub(r"[\d.]+", "0", line) for line in text.splitlines()]


def test_a_scrape_grows_with_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(costs, "_N_MODELS", 3)

    costs.scrape(tmp_path)

    text = capsys.readouterr().out
    assert lines(text) == [
        "| models | bytes | ms |",
        "| --- | --- | --- |",
        *["| 0 | 0 | 0 |"] * 2,
        "",
    ]
    one, several = (int(n) for n in re.findall(r"\d \| (\d+) \|", text))
    assert several > 2 * one


def test_a_body_is_measured_on_every_wire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(costs, "_BODY_BYTES", 20 * costs.MB)

    costs.body(tmp_path)

    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert [row[0] for row in rows] == ["REST, V2 JSON", "REST, V2 binary", "gRPC, raw"]
    for _, n_megabytes, before, peak, *_ in rows:
        assert 19 <= float(n_megabytes) <= 21
        assert float(peak) > float(before) + 20


def test_idle_connections_are_held_on_both_wires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(costs, "_N_CONNECTIONS", 100)
    monkeypatch.setattr(costs, "_N_GRPC_CONNECTIONS", 50)
    monkeypatch.setattr(costs, "_IDLE_S", 0.1)

    costs.connections(tmp_path)

    rows = [
        line.strip("| ").split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:-1]
    ]
    assert rows == [["REST, after a request", "100"], ["gRPC", "50"]]


def test_the_collector_looks_at_less_when_models_are_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(costs, "_LOAD_S", 0.5)

    costs.collector(tmp_path)

    rows = [
        line.strip("| ").split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:-1]
    ]
    assert rows == [[mode, n] for mode in ("not frozen", "frozen") for n in ("0", "1", "2")]


def test_an_unknown_cost_is_refused_with_those_that_are_known() -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "benchmarks.costs", "disk"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert completed.returncode == 2
    assert completed.stderr.endswith(
        "unknown cost disk: expected threads, collector, scrape, body, connections\n"
    )


def test_one_blas_thread_is_fewer_than_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs.threads(tmp_path)

    counts = [int(n) for n in re.findall(r"\| (\d+) \|", capsys.readouterr().out)]
    both, rest, one = counts
    # gRPC runs on the event loop, as REST does.
    assert both == rest >= one >= 2
