import math
import random
import socket
import threading
from collections.abc import Callable

import pytest
from benchmarks.open_loop import (
    FAILED,
    UNANSWERED,
    WRONG,
    OpenLoad,
    Outcome,
    Phase,
    PhaseResult,
    arrivals,
    counts,
    good_rate,
    latency_ms,
    run_open,
)

Serve = Callable[[Callable[[socket.socket], bool]], int]

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nask"
RIGHT = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"


def put_load(port: int, *phases: Phase, patience_s: float = 10) -> list[PhaseResult]:
    load = OpenLoad(REQUEST, lambda body: body == b"right", phases, patience_s)
    return run_open(load, port)[1]


def test_sends_a_request_whether_or_not_earlier_ones_are_answered(serve: Serve) -> None:
    n_expected = len(list(arrivals(100, 0.3, random.Random(7))))
    all_there = threading.Barrier(n_expected, timeout=10)

    def handle(connection: socket.socket) -> bool:
        all_there.wait()
        connection.sendall(RIGHT)
        return True

    (result,) = put_load(serve(handle), Phase("all", 100, 0.3))

    assert counts(result.outcomes) == {"200": n_expected}


def test_a_latency_counts_from_when_the_request_was_due(serve: Serve) -> None:
    n_expected = len(list(arrivals(100, 0.3, random.Random(7))))
    all_there = threading.Barrier(n_expected, timeout=10)

    def handle(connection: socket.socket) -> bool:
        all_there.wait()
        connection.sendall(RIGHT)
        return True

    (result,) = put_load(serve(handle), Phase("all", 100, 0.3))

    first, last = result.outcomes[0], result.outcomes[-1]
    assert first.latency_s > last.due_s - first.due_s
    assert all(each.latency_s >= each.lag_s for each in result.outcomes)


def test_uses_a_connection_again(serve: Serve) -> None:
    peers = set()

    def handle(connection: socket.socket) -> bool:
        peers.add(connection.getpeername())
        connection.sendall(RIGHT)
        return True

    (result,) = put_load(serve(handle), Phase("all", 200, 0.5))

    assert len(peers) < len(result.outcomes)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(RIGHT.replace(b"200 OK", b"429 No"), "429", id="a refusal by its status"),
        pytest.param(RIGHT.replace(b"right", b"wrong"), WRONG, id="a wrong answer"),
        pytest.param(b"", FAILED, id="a connection that is closed"),
    ],
)
def test_counts(serve: Serve, answer: bytes, kind: str) -> None:
    def handle(connection: socket.socket) -> bool:
        connection.sendall(answer)
        return bool(answer)

    (result,) = put_load(serve(handle), Phase("all", 100, 0.1))

    assert set(counts(result.outcomes)) == {kind}


def test_counts_what_is_never_answered(serve: Serve) -> None:
    results = put_load(serve(lambda _: True), Phase("all", 100, 0.1), patience_s=0.1)

    assert set(counts(results[0].outcomes)) == {UNANSWERED}


def test_counts_what_nobody_listens_to() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))

        (result,) = put_load(unused.getsockname()[1], Phase("all", 100, 0.1))

    assert set(counts(result.outcomes)) == {FAILED}


def test_one_phase_follows_the_other(serve: Serve) -> None:
    def handle(connection: socket.socket) -> bool:
        connection.sendall(RIGHT)
        return True

    first, second = put_load(serve(handle), Phase("one", 100, 0.2), Phase("two", 50, 0.2))

    assert [first.start_s, first.end_s, second.start_s, second.end_s] == [0, 0.2, 0.2, 0.4]
    assert all(0 <= each.due_s < 0.2 for each in first.outcomes)
    assert all(0.2 <= each.due_s < 0.4 for each in second.outcomes)


def test_the_moments_are_the_same_for_the_same_seed() -> None:
    moments = [list(arrivals(1000, 1, random.Random(3))) for _ in range(2)]

    assert moments[0] == moments[1] == sorted(moments[0])
    assert 900 < len(moments[0]) < 1100


def result_of(*outcomes: Outcome) -> PhaseResult:
    return PhaseResult(Phase("all", 1, 10), 0, 10, outcomes)


def test_goodput_counts_answers_in_the_stretch_to_whichever_request() -> None:
    early = result_of(Outcome(0, "200", 4.5), Outcome(1, "200", 1), Outcome(2, "429", 3))
    late = result_of(Outcome(5, "200", 0.5), Outcome(5, "200", 20))

    assert good_rate([early, late], 4, 6) == 1.0


def test_latencies_are_those_of_the_kinds_asked_for() -> None:
    result = result_of(Outcome(0, "200", 0.5), Outcome(1, "429", 0.001), Outcome(2))

    assert latency_ms(result.outcomes, 99) == 500
    assert latency_ms(result.outcomes, 99, ["429", "503"]) == 1
    assert math.isnan(latency_ms(result.outcomes, 99, ["503"]))


def test_a_part_holds_what_was_due_in_it() -> None:
    first, second, third = Outcome(0.5, "200"), Outcome(1.5, "429"), Outcome(2.5, "200")

    part = result_of(first, second, third).between(1, math.inf)

    assert part.outcomes == [second, third]
    assert (part.start_s, part.end_s, counts(part.outcomes)) == (1, 10, {"200": 1, "429": 1})
