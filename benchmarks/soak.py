"""Puts everything that clients do on one server for some minutes; `scripts/soak` sets it up.

All wires, sizes from one row to megabytes, mistakes, clients that leave or never finish, models
that are loaded and unloaded, and scrapes, at the same time. Once a second it looks at the server's
memory, descriptors and threads. The exit code is 1 if any of them grows, or an answer was wrong.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from statistics import median
from typing import Final

import grpc
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import bad_clients, clients
from benchmarks.artifacts import train
from benchmarks.clients import Act, Client, Fault, Known, Target
from benchmarks.figures import growth, lowest, slope
from benchmarks.processes import Server, Usage, sklearnserver, usage

MODELS: Final = ("iris", "linear", "forest")
# Copies of the first two.
SPARES: Final = {"spare-1": "iris", "spare-2": "linear"}
_INTERVAL_S: Final = 1.0
_WINDOW_S: Final = 10.0
# Between the acts of one client, so that the server idles now and then, as servers do.
_PAUSE_S: Final = 0.01
_QUIET_TIMEOUT_S: Final = 60
_MAX_EXAMPLES: Final = 5
MIB: Final = 1 << 20

# Descriptors of connections that chance opens at the same time, here or there.
MAX_MORE_DESCRIPTORS: Final = 10
# gRPC's own pool gives and takes a few.
MAX_MORE_THREADS: Final = 4


# What one client alone does: loading and unloading, of which it expects what came of its own.
CHANGE_MODELS: Final = "change models"
# What the others do, and how often against each other.
WEIGHTS: Final[Mapping[str, int]] = {
    "V1": 10,
    "V2 JSON": 10,
    "V2 binary": 10,
    "gRPC": 10,
    "gRPC stream": 6,
    "spare model": 4,
    "scrape": 4,
    "mistake": 6,
    "gRPC mistake": 3,
    "garbage": 2,
    "gRPC garbage": 1,
    "leave mid-body": 2,
    "leave before the answer": 2,
    "leave mid-answer": 1,
    "gRPC cancel": 2,
    "half-open": 1,
}
ACTS: Final[Mapping[str, Act]] = {
    "V1": clients.ask_v1,
    "V2 JSON": clients.ask_v2_json,
    "V2 binary": clients.ask_v2_binary,
    "gRPC": clients.ask_grpc,
    "gRPC stream": clients.ask_grpc_stream,
    "spare model": clients.ask_spare,
    "scrape": clients.look,
    "mistake": bad_clients.ask_wrongly,
    "gRPC mistake": bad_clients.ask_wrongly_over_grpc,
    "garbage": bad_clients.send_garbage,
    "gRPC garbage": bad_clients.send_garbage_to_grpc,
    "leave mid-body": bad_clients.leave_mid_body,
    "leave before the answer": bad_clients.leave_before_the_answer,
    "leave mid-answer": bad_clients.leave_mid_answer,
    "gRPC cancel": bad_clients.cancel_over_grpc,
    CHANGE_MODELS: bad_clients.change_models,
}


@dataclass(slots=True)
class Tally:
    """What has happened, from all threads.

    Attributes:
        done: How often each act went as it should.
        faults: How often each did not.
        examples: The texts of the first faults of each act.
    """

    done: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, fault: str | None) -> None:
        """Count one act."""
        with self._lock:
            if fault is None:
                self.done[name] += 1
                return
            self.faults[name] += 1
            examples = self.examples.setdefault(name, [])
            if len(examples) < _MAX_EXAMPLES:
                examples.append(fault)


@dataclass(frozen=True, slots=True)
class Trend:
    """How one figure of the server went, after the warm-up.

    Attributes:
        name: What it is, with its unit.
        first: Median of the first quarter.
        last: Median of the last quarter.
        per_minute: Slope of the lowest values of each 10 s, by Theil and Sen.
        at_least: What that slope is at least, with 97.5 % confidence.
        growth: What it has grown by: last less first.
    """

    name: str
    first: float
    last: float
    per_minute: float
    at_least: float
    growth: float

    @classmethod
    def of(cls, name: str, times_s: Sequence[float], values: Sequence[float]) -> "Trend":
        """Look at samples."""
        quarter = max(1, len(values) // 4)
        per_s, at_least_per_s = slope(*lowest(times_s, values, _WINDOW_S))
        first, last = median(values[:quarter]), median(values[-quarter:])
        return cls(name, first, last, per_s * 60, at_least_per_s * 60, growth(values))


@dataclass(slots=True)
class Sampler:
    """What a process used, once a second.

    Attributes:
        times_s: When, in seconds since the first.
        usages: What.
    """

    pid: int
    times_s: list[float] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)

    def run(self, is_over: threading.Event) -> None:
        """Look until told that it is over, or the process is gone."""
        started = time.perf_counter()
        while not is_over.wait(_INTERVAL_S):
            try:
                self.usages.append(usage(self.pid))
            except OSError:
                return
            self.times_s.append(time.perf_counter() - started)

    def lines(self) -> str:
        """Give a line for each sample: seconds, MiB, descriptors, threads, seconds of CPU."""
        return "".join(
            f"{time_s:.1f} {each.rss_bytes / MIB:.1f} {each.n_descriptors} {each.n_threads} "
            f"{each.cpu_s:.1f}\n"
            for time_s, each in zip(self.times_s, self.usages, strict=True)
        )

    def trends(self, warm_up_share: float) -> list[Trend]:
        """Give the trends behind a share of the time."""
        start = int(len(self.usages) * warm_up_share)
        times_s, usages = self.times_s[start:], self.usages[start:]
        if not usages:
            return []
        return [
            Trend.of("memory MiB", times_s, [each.rss_bytes / MIB for each in usages]),
            Trend.of("descriptors", times_s, [each.n_descriptors for each in usages]),
            Trend.of("threads", times_s, [each.n_threads for each in usages]),
        ]


class Soak:
    """Clients at work.

    Args:
        target: Whom they ask.
        n_clients: How many, each on a thread.
        seed: Of their chance.
        without: The acts that are left out.
    """

    def __init__(
        self, target: Target, n_clients: int, seed: int, without: Collection[str] = ()
    ) -> None:
        self.tally = Tally()
        self._target = target
        self._half_open = bad_clients.HalfOpen()
        self._acts = {**ACTS, "half-open": self._half_open.open_one}
        self._is_over = threading.Event()
        chosen = {name: share for name, share in WEIGHTS.items() if name not in without}
        jobs = [chosen] * n_clients
        if CHANGE_MODELS not in without:
            jobs.append({CHANGE_MODELS: 1})
        self._threads = [
            threading.Thread(target=self._work, args=(job, seed + number), daemon=True)
            for number, job in enumerate(jobs)
        ]

    def run(self, duration_s: float) -> None:
        """Work for so long, then leave nothing open."""
        for thread in self._threads:
            thread.start()
        self._is_over.wait(duration_s)
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * clients.TIMEOUT_S)
        self._half_open.close()

    def _work(self, job: Mapping[str, int], seed: int) -> None:
        client = Client(self._target, seed)
        while not self._is_over.wait(_PAUSE_S):
            (name,) = client.chance.choices(list(job), list(job.values()))
            self.tally.add(name, _fault_of(self._acts[name], client))
        client.close()


def _fault_of(act: Act, client: Client) -> str | None:
    try:
        act(client)
    except Fault as exc:
        return str(exc)
    except grpc.RpcError as exc:
        return f"{exc.code().name}: {exc.details()}"
    except (OSError, HTTPException, ValueError) as exc:
        return f"{type(exc).__name__}: {exc}"
    return None


def check_quiet(server: Server, before: Usage) -> Iterator[str]:
    """Wait until the server has forgotten its clients, and give what is left of them."""
    deadline = time.monotonic() + _QUIET_TIMEOUT_S
    while left := list(_left_over(server, before)):
        if time.monotonic() > deadline:
            yield from left
            return
        time.sleep(_INTERVAL_S)


def _left_over(server: Server, before: Usage) -> Iterator[str]:
    left = usage(server.pid).n_descriptors
    if left > before.n_descriptors + MAX_MORE_DESCRIPTORS:
        yield f"descriptors: {before.n_descriptors} before any client, {left} after all"
    for model, n_in_flight in in_flight(server.port).items():
        if n_in_flight:
            yield f"requests in flight of {model}: {n_in_flight:g} without any client"


def in_flight(port: int) -> dict[str, float]:
    """Give the requests in flight by model, as the server counts them."""
    response = clients.http_get(port, "/metrics")[1].decode()
    return {
        sample.labels["model_name"]: sample.value
        for family in text_string_to_metric_families(response)
        for sample in family.samples
        if sample.name == "kserve_requests_in_flight"
    }


def growing(trends: Sequence[Trend], max_mib_per_minute: float) -> Iterator[str]:
    """Give what grows more than chance makes it."""
    memory, descriptors, threads = trends
    if memory.at_least > max_mib_per_minute:
        yield (
            f"memory grows by {memory.per_minute:.2f} MiB a minute, "
            f"at least by {memory.at_least:.2f}"
        )
    for trend, limit in ((descriptors, MAX_MORE_DESCRIPTORS), (threads, MAX_MORE_THREADS)):
        if trend.growth > limit:
            yield f"{trend.name} grow: {trend.first:g}, then {trend.last:g}"


def errors_in_log(log: str) -> Counter[str]:
    """Count the errors that the server has logged, by what they begin with."""
    errors = (line.partition(" ERROR ")[2] for line in log.splitlines() if " ERROR " in line)
    return Counter(" ".join(error.split()[:12]) for error in errors)


def report(tally: Tally, trends: Sequence[Trend]) -> str:
    """Give the figures as two tables of Markdown."""
    names = sorted(tally.done | tally.faults)
    acts = [f"| {name} | {tally.done[name]} | {tally.faults[name]} |" for name in names]
    figures = [
        f"| {each.name} | {each.first:.1f} | {each.last:.1f} | {each.per_minute:+.2f} | "
        f"{each.at_least:+.2f} |"
        for each in trends
    ]
    return "\n".join(
        [
            *("| act | as it should be | not |", "| --- | ---: | ---: |", *acts, ""),
            "| | first quarter | last quarter | a minute | at least |",
            "| --- | ---: | ---: | ---: | ---: |",
            *figures,
        ]
    )


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    add = parser.add_argument
    add("minutes", type=float, help="how long clients work")
    add("--clients", type=int, default=8, help="at the same time (%(default)s)")
    add("--seed", type=int, default=7, help="of chance (%(default)s)")
    # What allocators keep grows for a while, most of it in the first minute.
    add("--warm_up_share", type=float, default=0.25, help="left out of trends (%(default)s)")
    add("--max_mib_per_minute", type=float, default=1.0, help="of memory (%(default)s)")
    add("--samples", type=Path, help="file to write what was seen each second to")
    add("--without", nargs="+", default=[], choices=[*WEIGHTS, CHANGE_MODELS], help="leave out")
    add("flags", nargs="*", metavar="-- FLAG", help="more flags of the server")
    return parser


def soak(folder: Path, args: argparse.Namespace) -> list[str]:
    """Serve, work, print the figures, and give the faults.

    Args:
        folder: An empty directory, for the models.
        args: Those of `make_parser`.
    """
    artifacts = {name: train(name, folder) for name in MODELS}
    spares = [Known.of(train(copied, folder / "copies"), name) for name, copied in SPARES.items()]
    for name, copied in SPARES.items():
        (folder / "copies" / copied).rename(folder / name)
    (folder / "copies").rmdir()
    known = [Known.of(artifact) for artifact in artifacts.values()]
    with Server("sklearnserver", sklearnserver(folder, *args.flags), "/v2/health/ready") as server:
        target = Target(server.port, server.grpc_port, known, spares)
        work = Soak(target, args.clients, args.seed, args.without)
        before = usage(server.pid)
        sampler = Sampler(server.pid)
        is_over = threading.Event()
        sampling = threading.Thread(target=sampler.run, args=(is_over,), daemon=True)
        sampling.start()
        work.run(args.minutes * 60)
        is_over.set()
        sampling.join()
        if args.samples is not None:
            args.samples.write_text(sampler.lines())
        trends = sampler.trends(args.warm_up_share)
        print(report(work.tally, trends))
        return [*_faults(work.tally, trends, args), *_faults_of_server(server, before)]


def _faults(tally: Tally, trends: Sequence[Trend], args: argparse.Namespace) -> Iterator[str]:
    for name, examples in tally.examples.items():
        yield f"{name}: {tally.faults[name]} times, such as:"
        yield from (f"  {example}" for example in examples)
    if trends:
        yield from growing(trends, args.max_mib_per_minute)


def _faults_of_server(server: Server, before: Usage) -> Iterator[str]:
    if server.process.poll() is not None:
        yield f"the server ended with {server.process.returncode}:\n{server.log_tail()}"
        return
    yield from check_quiet(server, before)
    code = server.stop()
    if code:
        yield f"the server stopped with code {code}"
    for text, count in errors_in_log(server.log()).most_common():
        yield f"logged {count} times: {text}"


def main(argv: Sequence[str] | None = None) -> None:
    """Soak and print; the exit code is 1 if there were faults."""
    args = make_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        faults = soak(Path(folder), args)
    if faults:
        sys.exit("\n".join(["faults:", *faults]))
    print("no faults, nothing grew")


if __name__ == "__main__":
    main()
