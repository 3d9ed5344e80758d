"""The Prometheus metrics of the server; one set of bound children per model.

`labels()` costs 2 to 3 us a call, so every child is bound once and kept.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

# The names and the label of these four are those of KServe's own SDK: dashboards keep working.
PREPROCESS_SECONDS: Final = Histogram(
    "request_preprocess_seconds", "pre-process request latency", ["model_name"]
)
PREDICT_SECONDS: Final = Histogram(
    "request_predict_seconds", "predict request latency", ["model_name"]
)
POSTPROCESS_SECONDS: Final = Histogram(
    "request_postprocess_seconds", "post-process request latency", ["model_name"]
)
EXPLAIN_SECONDS: Final = Histogram(
    "request_explain_seconds", "explain request latency", ["model_name"]
)

REQUESTS: Final = Counter(
    "kserve_requests", "Requests answered", ["model_name", "protocol", "status"]
)
REQUESTS_IN_FLIGHT: Final = Gauge(
    "kserve_requests_in_flight", "Inference requests being worked on", ["model_name"]
)
NONFINITE_VALUES: Final = Counter(
    "kserve_nonfinite_values",
    "NaN and infinite output values that JSON could only carry as null",
    ["model_name"],
)
MODEL_LOAD_SECONDS: Final = Gauge(
    "kserve_model_load_seconds", "Duration of the last load, warm-up included", ["model_name"]
)
MODEL_STATE: Final = Gauge(
    "kserve_model_state", "1 for the state that the model is in", ["model_name", "state"]
)

# A doubling from one row to the largest batches that anyone has asked for.
_ROWS_BUCKETS: Final = tuple(float(1 << power) for power in range(14))

# From what a turn of the event loop takes to what no client waits for.
_QUEUE_BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

BATCH_ROWS: Final = Histogram(
    "kserve_batch_rows", "Rows of the batches that ran", ["model_name"], buckets=_ROWS_BUCKETS
)
BATCHES: Final = Counter(
    "kserve_batches",
    "Batches by why they were released and where they ran",
    ["model_name", "reason", "runs_on"],
)
QUEUE_SECONDS: Final = Histogram(
    "kserve_queue_seconds",
    "Time that requests waited for their batch to be released",
    ["model_name"],
    buckets=_QUEUE_BUCKETS,
)
QUEUE_ROWS: Final = Gauge("kserve_queue_rows", "Rows that wait for the model", ["model_name"])
QUEUE_REQUESTS: Final = Gauge(
    "kserve_queue_requests", "Requests that wait for the model", ["model_name"]
)
QUEUE_LEFT: Final = Counter(
    "kserve_queue_left",
    "Requests that left the queue unanswered: the client went away or a deadline passed",
    ["model_name"],
)
UNBATCHED_SPELLS: Final = Counter(
    "kserve_unbatched_spells",
    "Spells in which requests run one by one because batches failed",
    ["model_name"],
)

# From a short text to the longest that a batch of a large GPU holds.
_TOKENS_BUCKETS: Final = tuple(float(1 << power) for power in range(3, 18))

BATCH_TOKENS: Final = Histogram(
    "kserve_batch_tokens",
    "Tokens of the batches that ran, padding not counted",
    ["model_name"],
    buckets=_TOKENS_BUCKETS,
)
QUEUE_TOKENS: Final = Gauge("kserve_queue_tokens", "Tokens that wait for the model", ["model_name"])

_PER_MODEL: Final = (
    *(BATCH_ROWS, QUEUE_SECONDS, QUEUE_ROWS, QUEUE_REQUESTS, QUEUE_LEFT, UNBATCHED_SPELLS),
    *(PREPROCESS_SECONDS, PREDICT_SECONDS, POSTPROCESS_SECONDS, EXPLAIN_SECONDS),
    *(REQUESTS_IN_FLIGHT, NONFINITE_VALUES, MODEL_LOAD_SECONDS),
    *(BATCH_TOKENS, QUEUE_TOKENS),
)

Observe = Callable[[float], None]


class Level:
    """A number that the event loop moves up and down, and a scrape reads as a gauge.

    A gauge of the library's takes a lock and 0.5 us for each move, and a request makes four.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Move it up."""
        self.value += amount

    def dec(self, amount: int = 1) -> None:
        """Move it down."""
        self.value -= amount

    def get(self) -> float:
        """Give it; for the scrape."""
        return self.value


_levels: Final[dict[tuple[Gauge, str], Level]] = {}


def _level(gauge: Gauge, model_name: str) -> Level:
    """Give the one level behind a gauge of a model."""
    level = _levels.get((gauge, model_name))
    if level is None:
        level = _levels[gauge, model_name] = Level()
        gauge.labels(model_name).set_function(level.get)
    return level


class AnswerMetrics:
    """What is counted of every answer, bound to a model's name; empty for what concerns none.

    Attributes:
        nonfinite: The counter of output values that became null.
    """

    __slots__ = ("_answered", "_model_name", "nonfinite")

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._answered: dict[tuple[str, int | str], Counter] = {}
        self.nonfinite = NONFINITE_VALUES.labels(model_name)

    def count_answer(self, protocol: str, status: int | str) -> None:
        """Count one answered request.

        Args:
            protocol: `v1`, `v2`, `openai`, `grpc`, or empty for other routes.
            status: The status code; over gRPC its name.
        """
        key = (protocol, status)
        counter = self._answered.get(key)
        if counter is None:
            counter = self._answered[key] = REQUESTS.labels(self._model_name, protocol, str(status))
        counter.inc()


class ModelMetrics(AnswerMetrics):
    """The metrics of one model, bound to its name.

    Attributes:
        observe: Handler name (`preprocess`, `predict`, `postprocess`, `explain`) to the function
            that records its seconds.
        in_flight: The number of requests being worked on.
    """

    __slots__ = ("in_flight", "observe")

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name)
        self.observe: dict[str, Observe] = {
            "preprocess": PREPROCESS_SECONDS.labels(model_name).observe,
            "predict": PREDICT_SECONDS.labels(model_name).observe,
            "postprocess": POSTPROCESS_SECONDS.labels(model_name).observe,
            "explain": EXPLAIN_SECONDS.labels(model_name).observe,
        }
        self.in_flight = _level(REQUESTS_IN_FLIGHT, model_name)


class BatchMetrics:
    """What is counted of a model's queue and batches.

    Attributes:
        model_name: The model's name.
        queue_rows: The number of rows that wait.
        queue_requests: The number of requests that wait.
        unbatched_spells: The counter of spells without batches.
        waited: Records the seconds that a request waited.
    """

    __slots__ = (
        "_left",
        "_released",
        "_rows",
        "model_name",
        "queue_requests",
        "queue_rows",
        "unbatched_spells",
        "waited",
    )

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.queue_rows = _level(QUEUE_ROWS, model_name)
        self.queue_requests = _level(QUEUE_REQUESTS, model_name)
        self.unbatched_spells = UNBATCHED_SPELLS.labels(model_name)
        self.waited: Observe = QUEUE_SECONDS.labels(model_name).observe
        self._rows: Observe = BATCH_ROWS.labels(model_name).observe
        self._left = QUEUE_LEFT.labels(model_name)
        self._released: dict[tuple[str, str], Counter] = {}

    def released(self, reason: str, runs_on: str, n_rows: int) -> None:
        """Count a batch that starts.

        Args:
            reason: `free`, `full`, `delay`, `deadline`, or `retry` for a part of one that failed.
            runs_on: `loop` or `thread`.
            n_rows: Its rows.
        """
        counter = self._released.get((reason, runs_on))
        if counter is None:
            counter = BATCHES.labels(self.model_name, reason, runs_on)
            self._released[reason, runs_on] = counter
        counter.inc()
        self._rows(n_rows)

    def took(self, n_requests: int, n_rows: int) -> None:
        """Count requests out of the queue."""
        self.queue_requests.dec(n_requests)
        self.queue_rows.dec(n_rows)

    def left(self, n_rows: int) -> None:
        """Count a request out of the queue that nobody waits for any more."""
        self._left.inc()
        self.took(1, n_rows)


class TokenBatchMetrics(BatchMetrics):
    """What is counted of a model whose batches are bounded by tokens; its rows are texts.

    Attributes:
        queue_tokens: The number of tokens that wait.
        batch_tokens: Records the tokens of a batch.
    """

    __slots__ = ("batch_tokens", "queue_tokens")

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name)
        self.queue_tokens = _level(QUEUE_TOKENS, model_name)
        self.batch_tokens: Observe = BATCH_TOKENS.labels(model_name).observe

    def waiting(self, n_requests: int, n_rows: int, n_tokens: int) -> None:
        """Say how much waits now."""
        self.queue_requests.value = n_requests
        self.queue_rows.value = n_rows
        self.queue_tokens.value = n_tokens

    def gone(self) -> None:
        """Count a request that nobody waits for any more, and of which something still waited."""
        self._left.inc()


def forget_model(model_name: str) -> None:
    """Drop what was counted of a model that was unloaded, its states excepted."""
    for metric in _PER_MODEL:
        with suppress(KeyError):
            metric.remove(model_name)
    for gauge in (REQUESTS_IN_FLIGHT, QUEUE_ROWS, QUEUE_REQUESTS, QUEUE_TOKENS):
        _levels.pop((gauge, model_name), None)
    for counter in (REQUESTS, BATCHES):
        _forget_labels(counter, model_name)


def _forget_labels(counter: Counter, model_name: str) -> None:
    """Drop all children of a counter whose first label is the model's name."""
    labels = {
        tuple(value for name, value in sample.labels.items() if name != "model_name")
        for family in counter.collect()
        for sample in family.samples
        if sample.labels["model_name"] == model_name
    }
    for others in labels:
        with suppress(KeyError):
            counter.remove(model_name, *others)
