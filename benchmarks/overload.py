"""Shows what our server does when more comes than it can do; `scripts/overload` sets it up.

In turn, several times, it sends 2, 5 and 10 times as much as the server can do by an open loop,
each followed by a stretch at half of the peak. The peak is measured by a closed loop before and
after each, as a machine that others share has not the same speed for long. Two CPUs may be halves
of one core: something of the least priority keeps that of the load busy throughout, so that what is
left for the server does not depend on what the load takes.

The model's work grows with the rows, so that the peak is small enough for a client in Python to
send ten times as much, and batching does not move it.
"""

import argparse
import math
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Final

import numpy as np
import orjson

from benchmarks import payloads
from benchmarks.artifacts import Artifact, train
from benchmarks.closed_loop import Load, run_http
from benchmarks.open_loop import (
    FAILED,
    UNANSWERED,
    WRONG,
    OpenLoad,
    Outcome,
    Phase,
    PhaseResult,
    counts,
    good_rate,
    latency_ms,
    run_open,
    worst_lag_ms,
)
from benchmarks.probe import LivenessProbe, Sample
from benchmarks.processes import Busy, Server, sklearnserver, split_cpus, stay_on

MODEL: Final = "vectors"
REFUSALS: Final = ("429", "503", "504")
# In which a queue fills up, and which the figures leave out.
_RAMP_S: Final = 1.0
MIN_GOODPUT: Final = 0.9
# What comes in before the batch that runs at the end of the overload has ended is still refused.
MAX_RECOVERY_S: Final = 0.25
# A kubelet's default timeout for a probe.
MAX_LIVE_S: Final = 1.0
# A queue with a bound is as long at ten times the peak as at twice; the rest is for chance.
MAX_P99_GROWTH: Final = 1.5
_COLUMNS: Final = (
    *("load", "offered/s", "200/s", "goodput", "200", "refused", "failed", "p50 ms", "p99 ms"),
    *("p99 refused", "live worst ms", "load lag ms", "recovery ms"),
)


@dataclass(frozen=True, slots=True)
class Round:
    """One overload and what followed it.

    Attributes:
        peaks: Right answers a second that the server could give, before and after.
        good_rate: Those that it gave in the overload, without its start.
        over: The stretch with too much.
        after: The stretch at half of the peak that followed at once.
        live: What the liveness probe saw during both.
    """

    peaks: tuple[float, float]
    good_rate: float
    over: PhaseResult
    after: PhaseResult
    live: Sequence[Sample]

    @property
    def steady(self) -> PhaseResult:
        """The overload without its start."""
        return self.over.between(_ramp_s(self.over), math.inf)

    @property
    def goodput(self) -> float:
        """Right answers a second over those at the peak."""
        return self.good_rate / fmean(self.peaks)


@dataclass(frozen=True, slots=True)
class Step:
    """One factor: its rounds, one or more."""

    rounds: Sequence[Round]

    @property
    def name(self) -> str:
        """What the figures call it."""
        return self.rounds[0].over.phase.name

    @property
    def goodput(self) -> float:
        """The median of the rounds'."""
        return median(each.goodput for each in self.rounds)

    @property
    def good_rate(self) -> float:
        """The median of the rounds'."""
        return median(each.good_rate for each in self.rounds)

    @property
    def offered_rate(self) -> float:
        """Requests a second that were sent."""
        return len(self.over) / sum(each.over.phase.duration_s for each in self.rounds)

    @property
    def over(self) -> list[Outcome]:
        """All outcomes of the overload."""
        return [outcome for each in self.rounds for outcome in each.over.outcomes]

    @property
    def steady(self) -> list[Outcome]:
        """Those without its start."""
        return [outcome for each in self.rounds for outcome in each.steady.outcomes]

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies of the accepted."""
        return latency_ms(self.steady, 99)

    @property
    def recovery_s(self) -> float:
        """Seconds from the end of the overload until the last that was not answered 200 came in."""
        moments = (
            outcome.due_s - each.after.start_s
            for each in self.rounds
            for outcome in each.after.outcomes
            if outcome.kind != "200"
        )
        return max(moments, default=0.0)

    @property
    def worst_live_s(self) -> float:
        """The slowest answer to the liveness probe; infinite if one was not answered 200."""
        latencies = [latency_s for each in self.rounds for _, latency_s in each.live]
        return max((math.inf if each is None else each for each in latencies), default=math.nan)

    @property
    def wrong(self) -> int:
        """Wrong answers, in the overload and after it."""
        return sum(counts([*r.over.outcomes, *r.after.outcomes])[WRONG] for r in self.rounds)

    def faults(self, max_p99_ms: float) -> Iterator[str]:
        """Give what does not hold.

        Args:
            max_p99_ms: The most that the 99th percentile of the accepted may be.
        """
        name = self.name
        if not self.goodput >= MIN_GOODPUT:
            yield f"{name}: goodput {self.goodput:.0%} of the peak, less than {MIN_GOODPUT:.0%}"
        if not self.p99_ms <= max_p99_ms:
            yield f"{name}: p99 of the accepted {self.p99_ms:.0f} ms, more than {max_p99_ms:.0f} ms"
        if not any(outcome.kind in REFUSALS for outcome in self.over):
            yield f"{name}: nothing was refused: the queue has no bound, or was not filled so soon"
        if not self.worst_live_s <= MAX_LIVE_S:
            yield f"{name}: liveness took {self.worst_live_s * 1e3:.0f} ms"
        if not self.recovery_s <= MAX_RECOVERY_S:
            yield f"{name}: the last refusal was {self.recovery_s * 1e3:.0f} ms after its end"
        if self.wrong:
            yield f"{name}: {self.wrong} wrong answers"


def _ramp_s(over: PhaseResult) -> float:
    return min(_RAMP_S, over.phase.duration_s / 2)


def all_faults(steps: Sequence[Step]) -> list[str]:
    """Give what does not hold; the first step says what the queue's bound comes to."""
    max_p99_ms = steps[0].p99_ms * MAX_P99_GROWTH
    return [fault for step in steps for fault in step.faults(max_p99_ms)]


def table(steps: Sequence[Step]) -> str:
    """Give the figures as a table of Markdown."""
    lines = [_line(_COLUMNS), _line(["---:"] * len(_COLUMNS)), *(_line(_cells(s)) for s in steps)]
    return "\n".join(lines)


def _cells(step: Step) -> list[str]:
    found = counts(step.over)
    refused = [f"{found[kind]} x {kind}" for kind in REFUSALS if found[kind]]
    others = [f"{found[kind]} {kind}" for kind in (FAILED, UNANSWERED, WRONG) if found[kind]]
    return [
        step.name,
        f"{step.offered_rate:.0f}",
        f"{step.good_rate:.0f}",
        f"{step.goodput:.0%}",
        str(found["200"]),
        ", ".join(refused) or "0",
        ", ".join(others) or "0",
        f"{latency_ms(step.steady, 50):.0f}",
        f"{step.p99_ms:.0f}",
        f"{latency_ms(step.steady, 99, REFUSALS):.1f}",
        f"{step.worst_live_s * 1e3:.0f}",
        f"{worst_lag_ms(step.over):.0f}",
        f"{step.recovery_s * 1e3:.0f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def measure(artifact: Artifact, args: argparse.Namespace, server_cpu: int) -> list[Step]:
    """Measure the steps above the peak, on one server.

    Raises:
        RuntimeError: The server did not start, or gives no right answer.
    """
    rows = artifact.rows(args.rows)
    request = payloads.v2_binary(artifact.name, rows).wire
    expected = artifact.estimator.predict(rows).astype(np.int64).tobytes()

    def is_right(answer: bytes) -> bool:
        return expected in answer

    load = Load(request, is_right, args.connections, min(1.0, args.seconds), args.seconds)
    command = sklearnserver(artifact.directory, "--model_name", artifact.name, *args.flags)
    rounds: dict[float, list[Round]] = {factor: [] for factor in args.factors}
    with Server("sklearnserver", command, f"/v2/models/{MODEL}/ready", server_cpu) as server:
        peak = _measure_peak(load, args, server)
        for _ in range(args.rounds):
            for factor, done in rounds.items():
                phases = [
                    Phase(f"{factor:g} x", factor * peak, args.seconds),
                    Phase(f"after {factor:g} x", peak / 2, args.recovery),
                ]
                with LivenessProbe(server.port) as probe:
                    _, results = run_open(OpenLoad(request, is_right, phases), server.port)
                over, after = results
                rate = good_rate(results, _ramp_s(over), over.end_s)
                next_peak = _measure_peak(load, args, server)
                done.append(Round((peak, next_peak), rate, over, after, probe.samples))
                peak = next_peak
    return [Step(each) for each in rounds.values()]


def _measure_peak(load: Load, args: argparse.Namespace, server: Server) -> float:
    result = run_http(load, server.port, server.pid)
    if not result.rate:
        raise RuntimeError(f"no right answer, {dict(result.failures)}\n{server.log_tail()}")
    print(
        f"peak: {result.rate:.0f} requests/s of {args.rows} rows, {args.connections} connections, "
        f"p50 {result.latency_ms(50):.0f} ms, p99 {result.latency_ms(99):.0f} ms, "
        f"failed {orjson.dumps(result.failures).decode()}, server CPU {result.server_cpu:.2f}",
        flush=True,
    )
    return result.rate


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/overload", description=__doc__)
    add = parser.add_argument
    add("--factors", type=float, nargs="+", default=[2, 5, 10], help="times the peak (%(default)s)")
    add("--rounds", type=int, default=3, help="how often each load is put (%(default)s)")
    add("--seconds", type=float, default=6, help="of each load and peak (%(default)s)")
    add("--recovery", type=float, default=2, help="seconds at half of the peak (%(default)s)")
    add("--rows", type=int, default=128, help="of a request (%(default)s)")
    add("--connections", type=int, default=64, help="that find the peak (%(default)s)")
    add("flags", nargs="*", metavar="-- FLAG", help="more flags of the server")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print; the exit code is 1 if something does not hold."""
    args = make_parser().parse_args(argv)
    server_cpu, load_cpu = split_cpus()
    stay_on(load_cpu)
    # An open loop without an answer needs a connection for each request; the server inherits it.
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    with tempfile.TemporaryDirectory() as folder, Busy(load_cpu):
        steps = measure(train(MODEL, Path(folder)), args, server_cpu)
    print(table(steps))
    if faults := all_faults(steps):
        sys.exit("\n".join(["does not hold:", *faults]))
    print("all of it holds")


if __name__ == "__main__":
    main()
