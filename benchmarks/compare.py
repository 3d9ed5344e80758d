"""Compares our servers with those on KServe's SDK; `benchmarks/compare` sets it up."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks import payloads
from benchmarks.artifacts import Artifact, train
from benchmarks.closed_loop import INFER, LARGE_MESSAGES, Load, Result, run_grpc, run_http
from benchmarks.footprint import SERVERS, Footprint, footprint
from benchmarks.http_answers import ask_once
from benchmarks.in_process import run_in_loop
from benchmarks.processes import Server, our_server, split_cpus, stay_on
from benchmarks.results import (
    FRAMEWORKS,
    Row,
    commit,
    footprints,
    listed,
    machine,
    our_versions,
    page,
    peer_versions,
    table,
)
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

OURS: Final = "ours"
PEER: Final = "kserve 0.21.0"
IN_PROCESS: Final = "in process"
FLOOR: Final = "floor"
_FOLDER: Final = Path(__file__).resolve().parent
_PROBE_TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Case:
    """What both servers are asked.

    Attributes:
        title: Its name in the table.
        model: The name of the artifact.
        encode: Makes the bytes of a request for a model and rows.
        n_rows: How many rows a request has.
        dtype: numpy's name for the datatype that they are sent in.
        is_grpc: Whether it goes over gRPC.
        wanted: How many times the peer's rate ours shall be; None where nothing is said.
        server: The package of our server.
        peer: The script of the peer, and its arguments beside the model; empty where KServe's SDK
            has no such server: ours is then compared with a loop around the model in one process.
    """

    title: str
    model: str
    encode: Callable[[str, NDArray[Any]], bytes]
    n_rows: int
    dtype: str
    is_grpc: bool
    wanted: float | None
    server: str = "sklearnserver"
    peer: tuple[str, ...] = ("kserve_sklearn.py",)


def _v2_json(model: str, rows: NDArray[Any]) -> bytes:
    return payloads.v2_json(model, rows).wire


def _v2_binary(model: str, rows: NDArray[Any]) -> bytes:
    return payloads.v2_binary(model, rows).wire


def _grpc_raw(model: str, rows: NDArray[Any]) -> bytes:
    data: bytes = payloads.grpc_raw(model, rows).SerializeToString()
    return data


# FP64 is what a client in Python sends by itself, FP32 what one sends who counts bytes.
CASES: Final = {
    "svc": Case("SVC 1x4, V2 JSON", "iris", _v2_json, 1, "float64", False, 8),
    "forest": Case("forest 1x100, V2 JSON", "forest", _v2_json, 1, "float64", False, 20),
    "binary": Case(
        "linear 1000x100 FP32, V2 binary", "linear", _v2_binary, 1000, "float32", False, 40
    ),
    "grpc": Case("linear 1000x100 FP32, gRPC raw", "linear", _grpc_raw, 1000, "float32", True, 3),
    "onnx": Case(
        "ONNX net 1x100 FP32, V2 binary",
        *("net", _v2_binary, 1, "float32", False, None, "onnxserver", ()),
    ),
    "onnx-wide": Case(
        "ONNX net of 1.2 million weights 1x100 FP32, V2 binary",
        *("wide-net", _v2_binary, 1, "float32", False, None, "onnxserver", ()),
    ),
    "tensorflow": Case(
        "TensorFlow net 1x100 FP32, V2 binary",
        *("tf-net", _v2_binary, 1, "float32", False, None, "tfserver", ()),
    ),
    "tensorflow-wide": Case(
        "TensorFlow net of 1.2 million weights 1x100 FP32, V2 binary",
        *("wide-tf-net", _v2_binary, 1, "float32", False, None, "tfserver", ()),
    ),
    "xgboost": Case(
        "XGBoost 1x100 FP32, V2 JSON",
        *("xgboost", _v2_json, 1, "float32", False, None, "xgbserver"),
        ("kserve_boosters.py", "--framework", "xgboost"),
    ),
    "lightgbm": Case(
        "LightGBM 1x100, V2 JSON",
        *("lightgbm", _v2_json, 1, "float64", False, None, "lgbserver"),
        ("kserve_boosters.py", "--framework", "lightgbm"),
    ),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How everything is measured.

    Attributes:
        n_connections: Connections of the load.
        warm_up_s: Seconds of each run before anything counts.
        duration_s: Seconds of each run that count.
        n_repeats: Runs of each server, in turn with the other's.
        peer: The interpreter of the peer's environment; None leaves the peer out.
        flags: More flags of our server.
        server_cpu: The CPU that a server is kept on.
    """

    n_connections: int
    warm_up_s: float
    duration_s: float
    n_repeats: int
    peer: str | None
    flags: Sequence[str]
    server_cpu: int


class WrongAnswer(Exception):
    """A server does not answer as the estimator does."""


class Comparison:
    """One case, with its artifact trained.

    Args:
        case: What is asked.
        artifact: The model that it is asked of.
        settings: How it is measured.
    """

    def __init__(self, case: Case, artifact: Artifact, settings: Settings) -> None:
        self._case = case
        self._artifact = artifact
        self._settings = settings
        rows = artifact.rows(case.n_rows, case.dtype)
        self._request = case.encode(artifact.name, rows)
        self._rows = rows
        self._expected = artifact.estimator.predict(rows)
        self._fragment = _fragment(self._expected, is_json=case.encode is _v2_json)

    def rows(self) -> Iterator[Row]:
        """Measure the servers in turn, and give their rows of the table, ours first.

        Raises:
            WrongAnswer: A server answers something else than the estimator.
            RuntimeError: A server did not start.
        """
        has_peer = self._settings.peer is not None and bool(self._case.peer)
        makers = [self._ours, self._theirs] if has_peer else [self._ours]
        answer = b""
        runs: list[list[Result]] = [[] for _ in makers]
        for _ in range(self._settings.n_repeats):
            for make, results in zip(makers, runs, strict=True):
                with make() as server:
                    answer = self._check(server)
                    results.append(self._measure(server))
        title = self._case.title
        theirs = [Row(title, PEER, results) for results in runs[1:]]
        if not self._case.peer:
            theirs = [Row(title, IN_PROCESS, self._measure_in_process())]
        ratio = _ratio(Row(title, OURS, runs[0]).rate, theirs)
        yield Row(title, OURS, runs[0], ratio, self._case.wanted)
        yield from theirs
        yield Row(title, FLOOR, [self._measure_floor(answer)])

    def _ours(self) -> Server:
        name = self._artifact.name
        command = our_server(
            self._case.server,
            self._artifact.directory,
            *("--model_name", name, *self._settings.flags),
        )
        return Server(OURS, command, self._ready_path(), self._settings.server_cpu)

    def _theirs(self) -> Server:
        # Isolated: PYTHONPATH may show it our own `kserve`.
        assert self._settings.peer is not None
        script, *arguments = self._case.peer
        command = [self._settings.peer, "-I", str(_FOLDER / script), *arguments]
        flags = ["--model_dir", str(self._artifact.directory), "--model_name", self._artifact.name]
        return Server(PEER, [*command, *flags], self._ready_path(), self._settings.server_cpu)

    def _ready_path(self) -> str:
        return f"/v2/models/{self._artifact.name}/ready"

    def _check(self, server: Server) -> bytes:
        """Ask once, decode the answer, and give its bytes."""
        if self._case.is_grpc:
            answer = _ask_grpc(server.grpc_port, self._request)
            given = payloads.grpc_output(pb.ModelInferResponse.FromString(answer))
        else:
            http = ask_once(server.port, self._request)
            answer = http.body
            if http.status != 200:
                raise WrongAnswer(f"{server.name}: {self._case.title}: {http.status} {answer!r}")
            given = payloads.v2_output(answer, http.json_length)
        if not np.array_equal(given, self._expected) or self._fragment not in answer:
            raise WrongAnswer(f"{server.name}: {self._case.title}: {given}, not {self._expected}")
        return answer

    def _measure(self, server: Server) -> Result:
        load = Load(
            self._request,
            self._is_right,
            self._settings.n_connections,
            self._settings.warm_up_s,
            self._settings.duration_s,
        )
        run, port = (run_grpc, server.grpc_port) if self._case.is_grpc else (run_http, server.port)
        result = run(load, port, server.pid)
        if not result.rate:
            raise WrongAnswer(
                f"{server.name}: {self._case.title}: no right answer, {dict(result.failures)}\n"
                f"{server.log_tail()}"
            )
        return result

    def _measure_in_process(self) -> list[Result]:
        """Call the model in a loop here, on the server's CPU."""
        settings, predict = self._settings, partial(self._artifact.estimator.predict, self._rows)
        cpus = os.sched_getaffinity(0)
        stay_on(settings.server_cpu)
        try:
            return [
                run_in_loop(predict, settings.warm_up_s, settings.duration_s)
                for _ in range(settings.n_repeats)
            ]
        finally:
            stay_on(*cpus)

    def _measure_floor(self, answer: bytes) -> Result:
        with tempfile.NamedTemporaryFile() as file:
            file.write(answer)
            file.flush()
            command = [sys.executable, "-m", "benchmarks.floor", "--answer", file.name]
            with Server(FLOOR, command, "/", self._settings.server_cpu) as server:
                return self._measure(server)

    def _is_right(self, answer: bytes) -> bool:
        return self._fragment in answer


def _ratio(rate: float, theirs: Sequence[Row]) -> float | None:
    return rate / theirs[0].rate if theirs else None


def _fragment(expected: NDArray[Any], *, is_json: bool) -> bytes:
    """Give what every right answer holds: both servers write labels as INT64."""
    values = expected.astype(np.int64) if expected.dtype.kind in "iu" else expected
    return b'"data":' + orjson.dumps(values.ravel().tolist()) if is_json else values.tobytes()


def _ask_grpc(port: int, request: bytes) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{port}", LARGE_MESSAGES) as channel:
        call = channel.unary_unary(INFER, request_serializer=bytes, response_deserializer=bytes)
        return call(request, timeout=_PROBE_TIMEOUT_S)


def _notes(settings: Settings, without_peer: str) -> list[str]:
    ours = our_versions()
    notes = [
        f"{settings.n_connections} connections, {settings.n_repeats} runs of "
        f"{settings.duration_s:g} s after {settings.warm_up_s:g} s of warm-up, defaults on"
        + (f" but for {' '.join(settings.flags)}" if settings.flags else ""),
        f"machine: {machine()}",
        f"{OURS}: commit {commit()}, {listed(ours)}",
    ]
    if settings.peer is None:
        return [*notes, f"{PEER} was left out: {without_peer}"]
    theirs = peer_versions(settings.peer)
    for framework in FRAMEWORKS:
        if theirs[framework] != ours[framework]:
            raise RuntimeError(f"{framework} {ours[framework]} and {theirs[framework]}")
    return [*notes, f"{PEER}: {listed(theirs)}"]


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/compare", description=__doc__)
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(CASES), help="all by default")
    add("--connections", type=int, default=64, help="of the load (%(default)s)")
    add("--seconds", type=float, default=6, help="of a run that count (%(default)s)")
    # The slowest answers of the peer take more than a second at 64 connections.
    add("--warm_up", type=float, default=3, help="seconds of a run before (%(default)s)")
    add("--repeats", type=int, default=3, help="runs of each server, in turn (%(default)s)")
    add("--quick", action="store_true", help="4 connections, one short run: does it work at all?")
    add("--output", type=Path, help="page to write (RESULTS.md beside this; none with --quick)")
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--peer", help="interpreter of the environment that has KServe's SDK")
    peer.add_argument("--without_peer", metavar="REASON", help="leave KServe's SDK out")
    add("flags", nargs="*", metavar="-- FLAG", help="more flags of our server")
    return parser


def _settings(args: argparse.Namespace, server_cpu: int) -> Settings:
    if args.quick:
        return Settings(4, 0.2, 0.5, 1, args.peer, args.flags, server_cpu)
    return Settings(
        n_connections=args.connections,
        warm_up_s=args.warm_up,
        duration_s=args.seconds,
        n_repeats=args.repeats,
        peer=args.peer,
        flags=args.flags,
        server_cpu=server_cpu,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the page."""
    args = make_parser().parse_args(argv)
    server_cpu, load_cpu = split_cpus()
    settings = _settings(args, server_cpu)
    notes = _notes(settings, args.without_peer)
    stay_on(load_cpu)
    rows: list[Row] = []
    sizes: dict[str, Footprint] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in (CASES[name] for name in args.cases):
            print(f"{case.title} ...", file=sys.stderr, flush=True)
            artifact = train(case.model, Path(folder))
            rows += Comparison(case, artifact, settings).rows()
            if case.server not in sizes:
                sizes[case.server] = footprint(
                    SERVERS[case.server], artifact.directory, settings.n_repeats, server_cpu
                )
    print(table(rows))
    print(footprints(sizes.values()))
    if disturbed := [f"{row.case} of {row.server}" for row in rows if row.was_disturbed]:
        notes.append(f"something else used the machine: measure {', '.join(disturbed)} again")
        print(notes[-1], file=sys.stderr)
    output = args.output or (None if args.quick else _FOLDER / "RESULTS.md")
    if output is not None:
        output.write_text(page(rows, sizes.values(), notes))


if __name__ == "__main__":
    main()
