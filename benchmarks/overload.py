"""Shows what our server does when more comes than it can do; `scripts/overload` sets it up.

It measures the peak by a closed loop, then sends 2, 5 and 10 times as much by an open loop, each
followed by a stretch at half of the peak. The model's work grows with the rows, so that the peak is
small enough for a client in Python to send ten times as much, and batching does not move it.
"""

import argparse
import math
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from benchmarks import payloads
from benchmarks.artifacts import Artifact, train
from benchmarks.closed_loop import Load, Result, run_http
from benchmarks.open_loop import (
    FAILED,
    UNANSWERED,
    WRONG,
    OpenLoad,
    Phase,
    PhaseResult,
    good_rate,
    run_open,
)
from benchmarks.probe import LivenessProbe, Sample
from benchmarks.processes import Server, sklearnserver, split_cpus, stay_on

MODEL: Final = "vectors"
REFUSALS: Final = ("429", "503", "504")
# In which a queue fills up, and which the figures leave out.
_RAMP_S: Final = 1.0
MIN_GOODPUT: Final = 0.9
# Of the first second at half of the peak: what came in while the queue was still full is refused.
MIN_RECOVERY: Final = 0.95
# A kubelet's default timeout for a probe.
MAX_LIVE_S: Final = 1.0
# A queue with a bound is as long at ten times the peak as at twice; the rest is for chance.
MAX_P99_GROWTH: Final = 1.5
_COLUMNS: Final = (
    *("load", "offered/s", "200/s", "goodput", "200", "refused", "failed", "p50 ms", "p99 ms"),
    *("p99 refused", "live worst ms", "load lag ms", "recovery"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One factor: the overload and what followed it.

    Attributes:
        peak: Right answers a second that the server can give.
        good_rate: Those that it gave in the overload, without its start.
        over: The stretch with too much.
        after: The stretch at half of the peak that followed at once.
        live: What the liveness probe saw during both.
    """

    peak: float
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
        return self.good_rate / self.peak

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies of the accepted."""
        return self.steady.latency_ms(99)

    @property
    def recovery(self) -> float:
        """The share of 200 in the first second at half of the peak."""
        return self.after.between(0, 1).share("200")

    @property
    def worst_live_s(self) -> float:
        """The slowest answer to the liveness probe; infinite if one was not answered 200."""
        return max((math.inf if each is None else each for _, each in self.live), default=math.nan)

    def faults(self, max_p99_ms: float) -> Iterator[str]:
        """Give what does not hold.

        Args:
            max_p99_ms: The most that the 99th percentile of the accepted may be.
        """
        name = self.over.phase.name
        if not self.goodput >= MIN_GOODPUT:
            yield f"{name}: goodput {self.goodput:.0%} of the peak, less than {MIN_GOODPUT:.0%}"
        if not self.p99_ms <= max_p99_ms:
            yield f"{name}: p99 of the accepted {self.p99_ms:.0f} ms, more than {max_p99_ms:.0f} ms"
        if not any(self.over.counts()[kind] for kind in REFUSALS):
            yield f"{name}: nothing was refused: the queue has no bound, or was not filled so soon"
        if not self.worst_live_s <= MAX_LIVE_S:
            yield f"{name}: liveness took {self.worst_live_s * 1e3:.0f} ms"
        if not self.recovery >= MIN_RECOVERY:
            yield f"{name}: {self.recovery:.0%} of the requests of the first second after were 200"
        unexpected = self.over.counts()[WRONG] + self.after.counts()[WRONG]
        if unexpected:
            yield f"{name}: {unexpected} wrong answers"


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
    over, steady = step.over, step.steady
    counts = over.counts()
    refused = [f"{counts[kind]} x {kind}" for kind in REFUSALS if counts[kind]]
    others = [f"{counts[kind]} {kind}" for kind in (FAILED, UNANSWERED, WRONG) if counts[kind]]
    return [
        over.phase.name,
        f"{len(over.outcomes) / over.phase.duration_s:.0f}",
        f"{step.good_rate:.0f}",
        f"{step.goodput:.0%}",
        str(counts["200"]),
        ", ".join(refused) or "0",
        ", ".join(others) or "0",
        f"{steady.latency_ms(50):.0f}",
        f"{step.p99_ms:.0f}",
        f"{steady.latency_ms(99, REFUSALS):.1f}",
        f"{step.worst_live_s * 1e3:.0f}",
        f"{over.worst_lag_ms():.0f}",
        f"{step.recovery:.1%}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def measure(artifact: Artifact, args: argparse.Namespace, server_cpu: int) -> list[Step]:
    """Measure the peak and the steps above it, on one server.

    Raises:
        RuntimeError: The server did not start, or gives no right answer.
    """
    rows = artifact.rows(args.rows)
    request = payloads.v2_binary(artifact.name, rows).wire
    expected = artifact.estimator.predict(rows).astype(np.int64).tobytes()

    def is_right(answer: bytes) -> bool:
        return expected in answer

    command = sklearnserver(artifact.directory, "--model_name", artifact.name, *args.flags)
    with Server("sklearnserver", command, f"/v2/models/{MODEL}/ready", server_cpu) as server:
        load = Load(request, is_right, args.connections, min(1.0, args.seconds), args.seconds)
        result = run_http(load, server.port, server.pid)
        _report_peak(result, args, server)
        phases = []
        for factor in args.factors:
            phases.append(Phase(f"{factor:g} x", factor * result.rate, args.seconds))
            phases.append(Phase(f"after {factor:g} x", result.rate / 2, args.recovery))
        with LivenessProbe(server.port) as probe:
            started_at, results = run_open(OpenLoad(request, is_right, phases), server.port)
    steps = []
    for over, after in zip(results[::2], results[1::2], strict=True):
        rate = good_rate(results, over.start_s + _ramp_s(over), over.end_s)
        live = _during(probe.samples, started_at, over, after)
        steps.append(Step(result.rate, rate, over, after, live))
    return steps


def _report_peak(result: Result, args: argparse.Namespace, server: Server) -> None:
    if not result.rate:
        raise RuntimeError(f"no right answer, {dict(result.failures)}\n{server.log_tail()}")
    print(
        f"peak: {result.rate:.0f} requests/s of {args.rows} rows, {args.connections} connections, "
        f"p50 {result.latency_ms(50):.0f} ms, p99 {result.latency_ms(99):.0f} ms, "
        f"failed {orjson.dumps(result.failures).decode()}, "
        f"server CPU {result.server_cpu:.2f}, load CPU {result.client_cpu:.2f}",
        flush=True,
    )
    if result.was_disturbed:
        print("something else used the machine: the peak may be higher, measure again", flush=True)


def _during(
    samples: Sequence[Sample], started_at: float, over: PhaseResult, after: PhaseResult
) -> list[Sample]:
    first, last = started_at + over.start_s, started_at + after.end_s
    return [(moment, latency_s) for moment, latency_s in samples if first <= moment < last]


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/overload", description=__doc__)
    add = parser.add_argument
    add("--factors", type=float, nargs="+", default=[2, 5, 10], help="times the peak (%(default)s)")
    add("--seconds", type=float, default=8, help="of each load (%(default)s)")
    add("--recovery", type=float, default=4, help="seconds at half of the peak (%(default)s)")
    add("--rows", type=int, default=64, help="of a request (%(default)s)")
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
    with tempfile.TemporaryDirectory() as folder:
        steps = measure(train(MODEL, Path(folder)), args, server_cpu)
    print(table(steps))
    if faults := all_faults(steps):
        sys.exit("\n".join(["does not hold:", *faults]))
    print("all of it holds")


if __name__ == "__main__":
    main()
