import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from benchmarks.processes import Server, free_port, is_answered, split_cpus, stay_on, usage

# It starts processes.
pytestmark = pytest.mark.timeout(90)

SCRIPT = """\
import argparse, os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = ",".join(map(str, sorted(os.sched_getaffinity(0)))).encode()
        self.send_response(200 if self.path == "/ready" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

parser = argparse.ArgumentParser()
parser.add_argument("--http_port", type=int)
parser.add_argument("--grpc_port", type=int)
HTTPServer(("127.0.0.1", parser.parse_args().http_port), Handler).serve_forever()
"""

GROWING = """\
import socket, sys, threading

print("small")
sys.stdin.readline()
data = bytearray(b"x") * (16 << 20)
connection = socket.socket()
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("grown")
sys.stdin.read()
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "server.py"
    path.write_text(SCRIPT)
    return str(path)


def test_a_server_runs_on_its_cpu_until_the_end_of_the_block(script: str) -> None:
    cpu, _ = split_cpus()

    with Server("script", [sys.executable, script], "/ready", cpu) as server:
        port, cpus = server.port, os.sched_getaffinity(server.pid)
        answered = [is_answered(port, path) for path in ("/ready", "/other")]

    assert (cpus, answered) == ({cpu}, [True, False])
    assert not is_answered(port, "/ready")


def test_the_log_is_what_the_server_wrote(script: str) -> None:
    with Server("script", [sys.executable, script], "/ready") as server:
        is_answered(server.port, "/one")
        tail = server.log_tail()
        is_answered(server.port, "/two")
        log = server.log()

    assert "GET /one" in tail
    assert log.startswith(tail)
    assert "GET /two" in log


def test_a_server_that_ends_at_once_is_an_error_with_its_log() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model')"]

    with pytest.raises(RuntimeError, match="script did not start:\nno model"):
        Server("script", command, "/ready").__enter__()


def test_usage_follows_descriptors_and_threads() -> None:
    command = [sys.executable, "-u", "-c", GROWING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = usage(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = usage(process.pid)
        process.stdin.close()

    assert after.n_threads == before.n_threads + 1
    assert after.n_descriptors == before.n_descriptors + 1
    assert after.rss_bytes > before.rss_bytes + (8 << 20)
    assert after.cpu_s >= before.cpu_s


def test_a_free_port_can_be_bound() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        assert 20000 <= listener.getsockname()[1] <= 32000


def test_threads_that_run_already_move_too() -> None:
    cpus = os.sched_getaffinity(0)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None

    try:
        stay_on(min(cpus))
        moved = [os.sched_getaffinity(id_) for id_ in (0, thread.native_id)]
        stay_on(*cpus)
        back = [os.sched_getaffinity(id_) for id_ in (0, thread.native_id)]
    finally:
        stay_on(*cpus)
        done.set()
        thread.join()

    assert moved == [{min(cpus)}] * 2
    assert back == [cpus] * 2
