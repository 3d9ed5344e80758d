"""What a server costs beside its predictions; `benchmarks/costs` sets it up.

It prints one table for each of the arguments threads, collector, scrape, body and connections, all
by default, as docs/performance.md shows them. It needs Linux, and 10,000 idle connections need as
many descriptors, here and in the server (`ulimit -Hn`).
"""

import argparse
import asyncio
import os
import re
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
import joblib
import numpy as np
import orjson
from numpy.typing import NDArray
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.testing import ServerProcess

Rows = list[tuple[Any, ...]]

MB: Final = 1_000_000

_N_CONNECTIONS: Final = 10_000
_N_GRPC_CONNECTIONS: Final = 1_000
_BODY_BYTES: Final = 100 * MB
_N_FEATURES: Final = 100
_N_MODELS: Final = 100
_LOAD_S: Final = 8.0
_IDLE_S: Final = 10.0
_TIMEOUT_S: Final = 120

_ROW: Final = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP64","data":[6.8,2.8,4.8,1.4]}]}'
_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"

# What a client of HTTP/2 says first: the preface and empty settings. Source: RFC 9113, 3.4 and 6.5,
# https://www.rfc-editor.org/rfc/rfc9113
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

# sklearnserver with a clock on the collector from when its models are loaded; the pauses, in ms, go
# to the file named first.
_CLOCKED_SERVER: Final = """\
import gc, json, sys, time
path, is_frozen = sys.argv.pop(1), sys.argv.pop(1) == "frozen"
pauses = {0: [], 1: [], 2: []}
def clock(phase, info):
    global started
    if phase == "start":
        started = time.perf_counter()
    else:
        pauses[info["generation"]].append(1000 * (time.perf_counter() - started))
freeze = gc.freeze
def start_clock():
    if is_frozen:
        freeze()
    gc.callbacks.append(clock)
gc.freeze = start_clock
from kserve.main import run
try:
    run("sklearnserver.model:SKLearnModel")
finally:
    gc.callbacks.clear()
    open(path, "w").write(json.dumps(pauses))
"""


def main() -> None:
    """Measure what the command line names, all by default."""
    costs: dict[str, Callable[[Path], None]] = {
        "threads": threads,
        "collector": collector,
        "scrape": scrape,
        "body": body,
        "connections": connections,
    }
    parser = argparse.ArgumentParser(description="What a server costs beside its predictions.")
    parser.add_argument("costs", nargs="*", metavar="cost", help=", ".join(costs))
    names = parser.parse_args().costs or list(costs)
    unknown = sorted(set(names) - set(costs))
    if unknown:
        parser.error(f"unknown cost {unknown[0]}: expected {', '.join(costs)}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            costs[name](Path(folder))


def threads(folder: Path) -> None:
    """Count the threads of a server that has answered, by what is served and set."""
    save(folder, SVC().fit(*load_iris(return_X_y=True)))
    rows = []
    for label, args, env in (
        ("REST and gRPC", (), {}),
        ("REST alone", ("--enable_grpc", "false"), {}),
        ("REST alone, `OMP_NUM_THREADS=1`", ("--enable_grpc", "false"), {"OMP_NUM_THREADS": "1"}),
    ):
        with serve(folder, *args, env=env) as server:
            infer(server)
            names = thread_names(server)
        listed = ", ".join(f"{n} {name}" for name, n in names.most_common())
        rows.append((label, names.total(), listed))
    table(("server", "threads", "by name"), rows)


def collector(folder: Path) -> None:
    """Time the pauses of the garbage collector under load, frozen and not."""
    model_dir = save(folder / "model", SVC().fit(*load_iris(return_X_y=True)))
    script = folder / "server.py"
    script.write_text(_CLOCKED_SERVER)
    rows: Rows = []
    for mode in ("not frozen", "frozen"):
        output = folder / mode
        server = ServerProcess(
            str(script), str(output), mode, *("--model_dir", str(model_dir)), *_QUIET
        )
        with server:
            asyncio.run(load(server.port, _LOAD_S))
        pauses = orjson.loads(output.read_bytes())
        rows.extend(
            (mode, generation, len(found), f"{sum(found):.1f}", f"{max(found, default=0):.2f}")
            for generation, found in pauses.items()
        )
    table(
        ("models", "generation", f"collections in {_LOAD_S:g} s", "ms in all", "longest, ms"), rows
    )


def scrape(folder: Path) -> None:
    """Time a scrape of the metrics with one model and with many."""
    estimator = SVC().fit(*load_iris(return_X_y=True))
    rows = []
    for n_models in (1, _N_MODELS):
        names = [f"model-{i}" for i in range(n_models)]
        for name in names:
            save(folder / str(n_models) / name, estimator)
        with serve(folder / str(n_models)) as server:
            for name in names:
                infer(server, name)
            durations, n_bytes = scrapes(server)
        rows.append((n_models, n_bytes, f"{1000 * median(durations):.1f}"))
    table(("models", "bytes", "ms"), rows)


def body(folder: Path) -> None:
    """Send a large body over each wire; the answer has one as large."""
    features = np.random.default_rng(0).random((1000, _N_FEATURES))
    save(folder, StandardScaler().fit(features))
    rows = []
    for label, send in (
        ("REST, V2 JSON", send_json),
        ("REST, V2 binary", send_binary),
        ("gRPC, raw", send_grpc),
    ):
        with serve(folder, *_LARGE) as server:
            send(server, MB)
            before = memory(server, "VmRSS")
            reset_peak(server)
            started = time.perf_counter()
            n_bytes = send(server, _BODY_BYTES)
            seconds = time.perf_counter() - started
            peak, after = memory(server, "VmHWM"), memory(server, "VmRSS")
        rows.append(
            (
                label,
                *(f"{size / MB:.0f}" for size in (n_bytes, before, peak, after)),
                f"{(peak - before) / n_bytes:.1f}",
                f"{seconds:.1f}",
            )
        )
    table(("wire", "body, MB", "before", "peak", "after", "peak / body", "seconds"), rows)


def connections(folder: Path) -> None:
    """Hold connections that ask nothing."""
    raise_own_limit()
    save(folder, SVC().fit(*load_iris(return_X_y=True)))
    rows = []
    for label, n, connect in (
        ("REST, after a request", _N_CONNECTIONS, connect_rest),
        ("gRPC", _N_GRPC_CONNECTIONS, connect_grpc),
    ):
        with serve(folder, "--timeout-keep-alive", "600") as server, ExitStack() as stack:
            stack.enter_context(connect(server))
            alone_ms = 1000 * median(timed(lambda: infer(server)) for _ in range(50))
            before = memory(server, "VmRSS")
            for _ in range(n):
                stack.enter_context(connect(server))
            grown = memory(server, "VmRSS") - before
            cpu = cpu_seconds(server)
            time.sleep(_IDLE_S)
            cpu = cpu_seconds(server) - cpu
            beside_ms = 1000 * median(timed(lambda: infer(server)) for _ in range(50))
        rows.append(
            (
                label,
                n,
                f"{grown / n / 1000:.1f}",
                f"{100 * cpu / _IDLE_S:.1f} %",
                f"{alone_ms:.1f} / {beside_ms:.1f}",
            )
        )
    table(("connections", "number", "kB each", "CPU", "ms of a request, without / with them"), rows)


_QUIET: Final = ("--model_name", "model", "--enable_latency_logging", "false")
_LARGE: Final = (
    *("--max_request_bytes", str(2 * _BODY_BYTES)),
    *("--grpc_max_receive_message_length", str(2 * _BODY_BYTES)),
    *("--grpc_max_send_message_length", str(2 * _BODY_BYTES)),
)


def save(model_dir: Path, estimator: Any) -> Path:
    """Write an estimator as the artifact of a model; gives the directory."""
    model_dir.mkdir(parents=True, exist_ok=True)
    joblib.dump(estimator, model_dir / "model.joblib")
    return model_dir


def serve(model_dir: Path, *args: str, env: dict[str, str] | None = None) -> ServerProcess:
    """Give a server of a directory, without a log line for each request."""
    environment = {**os.environ, **(env or {})}
    return ServerProcess(
        "sklearnserver", "--model_dir", str(model_dir), *_QUIET, *args, env=environment
    )


def infer(server: ServerProcess, name: str = "model") -> None:
    """Ask for one prediction."""
    response = server.request("POST", f"/v2/models/{name}/infer", _ROW)
    assert response.status == 200, response.body


def timed(function: Callable[[], object]) -> float:
    """Give the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def scrapes(server: ServerProcess) -> tuple[list[float], int]:
    """Give the seconds of each of 50 scrapes, and the bytes of the last."""
    durations, n_bytes = [], 0
    for _ in range(50):
        started = time.perf_counter()
        n_bytes = len(server.request("GET", "/metrics").body)
        durations.append(time.perf_counter() - started)
    return durations, n_bytes


async def load(port: int, seconds: float, n_connections: int = 64) -> None:
    """Ask over several connections at once."""
    deadline = time.perf_counter() + seconds
    head = b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    question = head % len(_ROW) + _ROW

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < deadline:
            writer.write(question)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            (length,) = re.findall(rb"(?i)content-length: (\d+)", answer)
            await reader.readexactly(int(length))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(n_connections)))


def table_of(n_bytes: int) -> NDArray[np.float64]:
    """Give FP64 rows of so many bytes."""
    n_rows = n_bytes // (8 * _N_FEATURES)
    return np.random.default_rng(1).random((n_rows, _N_FEATURES))


def send_json(server: ServerProcess, n_bytes: int) -> int:
    """Send and get numbers as JSON; gives the bytes of the body."""
    # A number in JSON has about 19 characters.
    rows = table_of(8 * n_bytes // 19)
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP64", "data": rows.ravel()}
    data = orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return post(server, data, {})


def send_binary(server: ServerProcess, n_bytes: int) -> int:
    """Send and get a binary tensor; gives the bytes of the body."""
    rows = table_of(n_bytes)
    tensor = {
        "name": "x",
        "shape": rows.shape,
        "datatype": "FP64",
        "parameters": {"binary_data_size": rows.nbytes},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return post(server, head + rows.tobytes(), headers)


def send_grpc(server: ServerProcess, n_bytes: int) -> int:
    """Send and get raw contents over gRPC; gives the bytes of the message."""
    rows = table_of(n_bytes)
    message = ModelInferRequest(
        model_name="model",
        inputs=[ModelInferRequest.InferInputTensor(name="x", datatype="FP64", shape=rows.shape)],
        raw_input_contents=[rows.tobytes()],
    ).SerializeToString()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as channel:
        call: Any = channel.unary_unary(_INFER)
        call(message, timeout=_TIMEOUT_S)
    return len(message)


def post(server: ServerProcess, data: bytes, headers: dict[str, str]) -> int:
    """Send a body to the model; gives its bytes."""
    path = "/v2/models/model/infer"
    response = server.request("POST", path, data, headers, timeout_s=_TIMEOUT_S)
    assert response.status == 200, response.body[:200]
    return len(data)


@contextmanager
def connect_rest(server: ServerProcess) -> Iterator[None]:
    """Hold a connection that has asked for one prediction."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT_S)
    connection.request("POST", "/v2/models/model/infer", _ROW)
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    yield
    connection.close()


@contextmanager
def connect_grpc(server: ServerProcess) -> Iterator[None]:
    """Hold a connection that has said no more than that it speaks HTTP/2."""
    with socket.create_connection(("127.0.0.1", server.grpc_port), _TIMEOUT_S) as connection:
        connection.sendall(_HTTP2_PREFACE)
        # The settings of the server, so that it has the connection.
        assert connection.recv(9)
        yield


def raise_own_limit() -> None:
    """Allow this process, and the servers that it starts, as many connections as may be."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if 0 < hard < _N_CONNECTIONS + 100:
        sys.exit(f"ulimit -Hn is {hard}: {_N_CONNECTIONS} connections need more")


def thread_names(server: ServerProcess) -> Counter[str]:
    """Give how many threads have which name."""
    tasks = Path(f"/proc/{server.process.pid}/task")
    return Counter((task / "comm").read_text().strip() for task in tasks.iterdir())


def memory(server: ServerProcess, field: str) -> int:
    """Give `VmRSS`, the resident bytes of the process, or `VmHWM`, the most that it had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def reset_peak(server: ServerProcess) -> None:
    """Let `VmHWM` start again from the present size."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def cpu_seconds(server: ServerProcess) -> float:
    """Give the seconds of CPU that the process has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(head: tuple[str, ...], rows: Rows) -> None:
    """Print a table of Markdown."""
    for row in (head, ("---",) * len(head), *rows):
        print("|", " | ".join(map(str, row)), "|")
    print(flush=True)


if __name__ == "__main__":
    main()
