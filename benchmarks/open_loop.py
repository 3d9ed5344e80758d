"""Open-loop load: requests are sent when they are due, whether or not earlier ones are answered.

As users are: a slow server does not slow them down. A latency counts from the moment at which a
request was due, so that no delay of the load generator or of a full connection queue is lost.
"""

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, cast

import uvloop

from benchmarks.figures import percentile
from benchmarks.http_answers import Answer, AnswerReader, UnreadableAnswer

IsRight = Callable[[bytes], bool]

UNANSWERED: Final = "unanswered"
FAILED: Final = "failed"
WRONG: Final = "wrong answer"


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time with one rate.

    Attributes:
        name: What the figures call it.
        rate: Requests a second.
        duration_s: Seconds.
    """

    name: str
    rate: float
    duration_s: float


@dataclass(slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        due_s: When it was to be sent, in seconds since the start of the load.
        kind: The status, or one of `UNANSWERED`, `FAILED` and `WRONG`.
        latency_s: Seconds from then to its outcome; NaN while there is none.
        lag_s: Seconds from then until it was sent, or a part of a millisecond less than nothing, as
            uvloop's timers are no finer; NaN if it never was.
    """

    due_s: float
    kind: str = UNANSWERED
    latency_s: float = math.nan
    lag_s: float = math.nan


def counts(outcomes: Iterable[Outcome]) -> Counter[str]:
    """Give how many requests had which outcome."""
    return Counter(outcome.kind for outcome in outcomes)


def latency_ms(
    outcomes: Iterable[Outcome], percent: float, kinds: Collection[str] = ("200",)
) -> float:
    """Give a percentile of the latencies of some outcomes; NaN if there are none."""
    return percentile([each.latency_s for each in outcomes if each.kind in kinds], percent) * 1e3


def worst_lag_ms(outcomes: Iterable[Outcome]) -> float:
    """Give by how much the load generator was late at most, new connections included."""
    lags = [each.lag_s for each in outcomes if not math.isnan(each.lag_s)]
    return max(lags, default=math.nan) * 1e3


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """What became of the requests of one phase, or of a part of it.

    Attributes:
        phase: The phase.
        start_s: Its start, in seconds since the start of the load.
        end_s: Its end.
        outcomes: One for each request, in the order in which they were due.
    """

    phase: Phase
    start_s: float
    end_s: float
    outcomes: Sequence[Outcome]

    def between(self, from_s: float, to_s: float) -> "PhaseResult":
        """Give the part whose requests were due between two moments of the phase."""
        start_s, end_s = self.start_s + from_s, min(self.start_s + to_s, self.end_s)
        part = [each for each in self.outcomes if start_s <= each.due_s < end_s]
        return PhaseResult(self.phase, start_s, end_s, part)


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """What is asked, and when.

    Attributes:
        request: The bytes of one request.
        is_right: Tells from the bytes of a body whether an answer is right.
        phases: One behind the other, without a break.
        patience_s: Seconds after the last phase in which answers may still come.
        seed: Of the moments of the requests.
    """

    request: bytes
    is_right: IsRight
    phases: Sequence[Phase]
    patience_s: float = 30.0
    seed: int = 7


def good_rate(results: Iterable[PhaseResult], from_s: float, to_s: float) -> float:
    """Give the right answers a second that came between two moments, to whichever request."""
    outcomes = chain.from_iterable(result.outcomes for result in results)
    moments = (each.due_s + each.latency_s for each in outcomes if each.kind == "200")
    return sum(from_s <= moment < to_s for moment in moments) / (to_s - from_s)


def arrivals(rate: float, duration_s: float, generator: random.Random) -> Iterator[float]:
    """Give the moments of independent requests (Poisson), in seconds."""
    moment = generator.expovariate(rate)
    while moment < duration_s:
        yield moment
        moment += generator.expovariate(rate)


def run_open(load: OpenLoad, port: int) -> tuple[float, list[PhaseResult]]:
    """Put a load on a REST port.

    Returns:
        The start of the load, by `time.perf_counter`, and the results of the phases.
    """
    return uvloop.run(_run(load, port))


async def _run(load: OpenLoad, port: int) -> tuple[float, list[PhaseResult]]:
    pool = _Pool(port, load)
    generator = random.Random(load.seed)
    results = []
    start_s = 0.0
    for phase in load.phases:
        outcomes: list[Outcome] = []
        for moment in arrivals(phase.rate, phase.duration_s, generator):
            outcome = Outcome(start_s + moment)
            # A turn of the loop even if the request is due already: answers come in meanwhile.
            await asyncio.sleep(max(0.0, outcome.due_s - pool.now()))
            outcomes.append(outcome)
            pool.ask(outcome)
        end_s = start_s + phase.duration_s
        results.append(PhaseResult(phase, start_s, end_s, outcomes))
        start_s = end_s
    await pool.finish(load.patience_s)
    return pool.started_at, results


class _Connection(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    def __init__(self, pool: "_Pool") -> None:
        self._pool = pool
        self._reader = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._outcome: Outcome | None = None
        self._lost = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own is no subclass.
        self._transport = cast(asyncio.Transport, transport)
        self._pool.remember(self)

    def send(self, outcome: Outcome) -> None:
        if self._transport is None:
            self._pool.settle(outcome, FAILED)
            return
        self._outcome = outcome
        outcome.lag_s = self._pool.now() - outcome.due_s
        self._transport.write(self._pool.request)

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._reader.feed(data)
        except UnreadableAnswer:
            self.abort()
            return
        if answer is not None:
            self._take(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost.set()
        self._pool.forget(self)
        if self._outcome is not None:
            self._pool.settle(self._outcome, FAILED)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def give_up(self) -> None:
        """Close; a request that is not answered stays so."""
        self._outcome = None
        self.abort()
        await self._lost.wait()

    def _take(self, answer: Answer) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            # To no request: the server refuses the connection itself.
            self.abort()
            return
        is_wrong = answer.status == 200 and not self._pool.is_right(answer.body)
        self._pool.settle(outcome, WRONG if is_wrong else str(answer.status))
        if answer.closes:
            self.abort()
        else:
            self._pool.put_back(self)


class _Pool:
    """Connections that are free, and what is still to be answered."""

    def __init__(self, port: int, load: OpenLoad) -> None:
        self.request = load.request
        self.is_right = load.is_right
        self.started_at = time.perf_counter()
        self._port = port
        self._free: list[_Connection] = []
        self._connections: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._n_open = 0
        self._is_done = asyncio.Event()

    def now(self) -> float:
        """Give the seconds since the start of the load."""
        # The clock of uvloop counts whole milliseconds.
        return time.perf_counter() - self.started_at

    def ask(self, outcome: Outcome) -> None:
        self._n_open += 1
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                connection.send(outcome)
                return
        task = asyncio.ensure_future(self._ask_on_new(outcome))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def settle(self, outcome: Outcome, kind: str) -> None:
        outcome.kind = kind
        outcome.latency_s = self.now() - outcome.due_s
        self._n_open -= 1
        if not self._n_open:
            self._is_done.set()

    def put_back(self, connection: _Connection) -> None:
        self._free.append(connection)

    async def finish(self, patience_s: float) -> None:
        if self._n_open:
            self._is_done.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_done.wait(), patience_s)
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        await asyncio.gather(*(connection.give_up() for connection in list(self._connections)))

    def remember(self, connection: _Connection) -> None:
        self._connections.add(connection)

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    async def _ask_on_new(self, outcome: Outcome) -> None:
        connection = _Connection(self)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, "127.0.0.1", self._port)
        except OSError:
            self.settle(outcome, FAILED)
            return
        connection.send(outcome)
