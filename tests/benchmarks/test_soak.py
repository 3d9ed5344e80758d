import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from benchmarks.processes import Usage
from benchmarks.soak import (
    ACTS,
    CHANGE_MODELS,
    MIB,
    WEIGHTS,
    Sampler,
    Tally,
    Trend,
    errors_in_log,
    growing,
    report,
)

# What a client may rely on whatever else goes on.
GOOD = ("V1", "V2 JSON", "V2 binary", "gRPC", "gRPC stream", "scrape")


def sampled(
    rss_mib: Sequence[float], n_descriptors: Sequence[int], n_threads: Sequence[int]
) -> Sampler:
    usages = [
        Usage(int(rss * MIB), descriptors, threads, 0.0)
        for rss, descriptors, threads in zip(rss_mib, n_descriptors, n_threads, strict=True)
    ]
    return Sampler(1, [10.0 * number for number in range(len(usages))], usages)


def test_a_trend_leaves_the_warm_up_out() -> None:
    sampler = sampled([1, *range(50, 58)], [900, *[7] * 8], [90, *[3] * 8])

    trends = sampler.trends(warm_up_share=0.12)

    assert trends == [
        Trend("memory MiB", 50.5, 56.5, per_minute=6, at_least=6, growth=6),
        Trend("descriptors", 7, 7, per_minute=0, at_least=0, growth=0),
        Trend("threads", 3, 3, per_minute=0, at_least=0, growth=0),
    ]


def test_samples_are_lines() -> None:
    assert sampled([50, 51], [7, 8], [3, 4]).lines() == "0.0 50.0 7 3 0.0\n10.0 51.0 8 4 0.0\n"


def test_what_stays_does_not_grow() -> None:
    trends = sampled([50, 51, 50, 51, 50, 51, 50, 51], [7, 17] * 4, [3, 7] * 4).trends(0)

    assert list(growing(trends, max_mib_per_minute=1)) == []


def test_says_what_grows() -> None:
    trends = sampled(range(50, 58), range(0, 80, 10), range(0, 24, 3)).trends(0)

    assert list(growing(trends, max_mib_per_minute=1)) == [
        "memory grows by 6.00 MiB a minute, at least by 6.00",
        "descriptors grow: 5, then 65",
        "threads grow: 1.5, then 19.5",
    ]


def test_a_wave_of_memory_is_no_trend() -> None:
    trends = sampled([60, 50, 70, 55, 65, 52, 68, 57, 62, 59, 54, 71], [7] * 12, [3] * 12).trends(0)

    assert list(growing(trends, max_mib_per_minute=1)) == []


def test_the_report_counts_what_went_right_and_what_did_not() -> None:
    tally = Tally()
    for name, fault in (("V1", None), ("V1", "500"), ("gRPC", None), ("V1", None)):
        tally.add(name, fault)

    lines = report(tally, [Trend("threads", 3, 4, 0.5, 0.25, 1)]).splitlines()

    assert lines == [
        "| act | as it should be | not |",
        "| --- | ---: | ---: |",
        "| V1 | 2 | 1 |",
        "| gRPC | 1 | 0 |",
        "",
        "| | first quarter | last quarter | a minute | at least |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| threads | 3.0 | 4.0 | +0.50 | +0.25 |",
    ]
    assert tally.examples == {"V1": ["500"]}


def test_errors_in_a_log_are_counted_by_their_beginning() -> None:
    log = (
        "2026-01-01 00:00:00.000 7 ERROR kserve [app.py:1] Request a failed\n"
        "Traceback (most recent call last):\n"
        "2026-01-01 00:00:01.000 7 INFO kserve [app.py:2] No ERRORS\n"
        "2026-01-01 00:00:02.000 7 ERROR kserve [app.py:1] Request a failed\n"
    )

    assert errors_in_log(log) == {"kserve [app.py:1] Request a failed": 2}


def test_each_act_is_done() -> None:
    assert {*WEIGHTS, CHANGE_MODELS} == {*ACTS, "half-open"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_soaks_a_server_and_prints_all_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "0.1", "--max_mib_per_minute", "1e6"]

    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)

    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in done.stdout.splitlines()
        if line.startswith("| ")
    ]
    assert rows, done.stderr
    counts = {row[0]: (int(row[1]), int(row[2])) for row in rows[2:] if len(row) == 3}
    good = [counts[name] for name in GOOD if name in counts]
    assert sum(n_right for n_right, _ in good) > 0
    assert sum(n_faults for _, n_faults in good) == 0, done.stderr
    assert [row[0] for row in rows if len(row) == 5] == [
        "",
        "---",
        "memory MiB",
        "descriptors",
        "threads",
    ]
