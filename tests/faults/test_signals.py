"""What signals do, in every part of a server's life."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kserve.testing import ServerProcess

WAIT_S = 40
HERE = Path(__file__).parent
HANGING = str(HERE / "hanging_server.py")
# Nothing here waits for any of these: a test that had to would fail.
LONG = ("--drain_delay_s", "60", "--grace_period_s", "120")
PREDICT = ("POST", "/v1/models/hanging:predict", {"instances": [1]})
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# Holds up the process where the server's own code has only just begun.
STARTING = """\
import sys, threading
from kserve.main import run
from kserve.model import TensorModel

class Slow(TensorModel):
    @classmethod
    def add_arguments(cls, parser):
        print("entered", file=sys.stderr, flush=True)
        threading.Event().wait()

run(Slow)
"""


def _wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_draining(server: ServerProcess) -> bool:
    return server.request("GET", "/v2/health/ready").status == 503


def _can_be_process_1() -> bool:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    try:
        return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=WAIT_S).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_before_anything_is_loaded_ends_the_process(
    sig: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "serve.py"
    script.write_text(STARTING)

    with ServerProcess(str(script), until="entered") as server:
        code = server.stop(sig)

    assert code == 0


def test_sigterm_leaves_the_server_as_it_is_but_for_its_readiness() -> None:
    with ServerProcess(HANGING, *LONG) as server:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        states = [next(watch).status]

        server.process.send_signal(signal.SIGTERM)
        states.append(next(watch).status)
        checked = stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status
        paths = ("/v2/health/ready", "/v2/models/hanging/ready", "/v1/models/hanging")
        statuses = [server.request("GET", path).status for path in paths]
        live = [server.request("GET", path).status for path in ("/v2/health/live", "/")]
        answer = server.request(*PREDICT)
        channel.close()
        server.stop(signal.SIGINT)

    assert states == [SERVING, NOT_SERVING]
    assert checked == NOT_SERVING
    assert statuses == [503, 503, 503]
    assert live == [200, 200]
    assert (answer.status, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT])
def test_another_signal_than_sigterm_has_no_delay(sig: signal.Signals) -> None:
    with ServerProcess(HANGING, *LONG) as server:
        code = server.stop(sig)

    assert code == 0


@pytest.mark.parametrize(
    ("second", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGQUIT, 131)]
)
def test_a_second_signal_ends_at_once(second: signal.Signals, expected: int) -> None:
    with ServerProcess(HANGING, *LONG) as server:
        server.process.send_signal(signal.SIGTERM)
        _wait_until(lambda: _is_draining(server))

        code = server.stop(second)

    assert code == expected


def test_a_second_signal_ends_a_drain_that_waits_for_a_hung_request() -> None:
    args = ("--place", "predict", "--way", "c", *LONG)
    with ServerProcess(HANGING, *args) as server:
        client = subprocess.Popen([sys.executable, "-c", _ask(server.port)])
        server.wait_for("entered")
        server.process.send_signal(signal.SIGINT)
        _wait_until(lambda: _refuses(server.port))

        code = server.stop(signal.SIGINT)
        client_code = client.wait(WAIT_S)

    assert code == 130
    assert client_code == 7


def _ask(port: int) -> str:
    # Exit code 7 if the connection ends without an answer.
    return (
        "import http.client\n"
        f"client = http.client.HTTPConnection('127.0.0.1', {port})\n"
        "client.request('POST', '/v1/models/hanging:predict', '{}')\n"
        "try:\n"
        "    client.getresponse()\n"
        "except (http.client.RemoteDisconnected, ConnectionResetError):\n"
        "    raise SystemExit(7)\n"
    )


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.skipif(not _can_be_process_1(), reason="no right to make a process namespace")
@pytest.mark.parametrize(
    ("args", "until", "signals", "expected"),
    [
        pytest.param(["--place", "load"], "entered", [signal.SIGTERM], 0, id="while it loads"),
        pytest.param(["--drain_delay_s", "0"], None, [signal.SIGTERM], 0, id="while it serves"),
        pytest.param([], None, [signal.SIGINT], 0, id="SIGINT"),
        pytest.param(LONG, None, [signal.SIGTERM, signal.SIGTERM], 143, id="a second signal"),
    ],
)
def test_as_process_1_which_the_kernel_sends_no_signal_that_is_not_handled(
    args: list[str], until: str | None, signals: list[signal.Signals], expected: int
) -> None:
    with ServerProcess(str(HERE / "container.py"), HANGING, *args, until=until) as server:
        process_1 = _only_child(server.process.pid)
        number_inside = _status(process_1)["NSpid"].split()[-1]

        os.kill(process_1, signals[0])
        for sig in signals[1:]:
            _wait_until(lambda: _is_draining(server))
            os.kill(process_1, sig)
        code = server.process.wait(WAIT_S)

    assert number_inside == "1"
    assert code == expected


def _only_child(pid: int) -> int:
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)
