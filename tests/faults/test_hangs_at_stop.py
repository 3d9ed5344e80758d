"""What never returns does not keep the process from ending in time."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import RemoteDisconnected
from pathlib import Path

import pytest

from kserve.testing import Response, ServerProcess

WAIT_S = 40
SERVER = str(Path(__file__).with_name("hanging_server.py"))
DRAINING = {"error": "Server is not ready. The server is shutting down."}


@pytest.fixture
def in_flight() -> Iterator[Callable[[ServerProcess], "Future[Response]"]]:
    """Send a request that hangs, and wait until it does."""
    with ThreadPoolExecutor(1) as pool:

        def send(server: ServerProcess) -> "Future[Response]":
            path = "/v1/models/hanging:predict"
            future = pool.submit(server.request, "POST", path, {"instances": [1]})
            server.wait_for("entered")
            return future

        yield send


@pytest.mark.parametrize("way", ["python", "c", "pool"])
def test_a_predict_that_hangs_is_answered_503_and_does_not_keep_the_process(
    way: str, in_flight: Callable[[ServerProcess], "Future[Response]"]
) -> None:
    args = ("--place", "predict", "--way", way, "--grace_period_s", "1")
    with ServerProcess(SERVER, *args) as server:
        answer = in_flight(server)

        code = server.stop()

    assert (answer.result(WAIT_S).status, answer.result(WAIT_S).json()) == (503, DRAINING)
    assert code == 0


@pytest.mark.parametrize("way", ["loop", "uncancellable"])
def test_a_process_that_cannot_be_ended_in_order_ends_with_a_failure_and_says_where(
    way: str, in_flight: Callable[[ServerProcess], "Future[Response]"]
) -> None:
    args = ("--place", "predict", "--way", way, "--grace_period_s", "0")
    with ServerProcess(SERVER, *args) as server:
        answer = in_flight(server)

        code = server.stop()

    assert isinstance(answer.exception(WAIT_S), RemoteDisconnected | ConnectionResetError)
    assert code == 1
    assert "Timeout (0:00:03)!" in server.stderr
    assert "most recent call first" in server.stderr


@pytest.mark.parametrize("way", ["python", "c"])
def test_a_models_stop_that_hangs_does_not_keep_the_process(way: str) -> None:
    args = ("--place", "stop", "--way", way, "--grace_period_s", "1")
    with ServerProcess(SERVER, *args) as server:
        code = server.stop()

    assert code == 0
    assert "entered" in server.stderr
    assert "Models did not stop in 1.0 s" in server.stderr


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("way", ["python", "c", "pool"])
def test_a_load_that_hangs_ends_with_the_first_signal(sig: signal.Signals, way: str) -> None:
    # Had it to wait for the delay or the grace period, the test would.
    times = ("--drain_delay_s", "60", "--grace_period_s", "120")
    place = ("--place", "load", "--way", way)
    with ServerProcess(SERVER, *place, *times, until="entered") as server:
        code = server.stop(sig)

    assert code == 0
