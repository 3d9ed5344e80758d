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

_PER_MODEL: Final = (
    *(PREPROCESS_SECONDS, PREDICT_SECONDS, POSTPROCESS_SECONDS, EXPLAIN_SECONDS),
    *(REQUESTS_IN_FLIGHT, NONFINITE_VALUES, MODEL_LOAD_SECONDS),
)

Observe = Callable[[float], None]


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
            protocol: `v1`, `v2`, `grpc`, or empty for other routes.
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
        in_flight: The gauge of requests being worked on.
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
        self.in_flight = REQUESTS_IN_FLIGHT.labels(model_name)


def forget_model(model_name: str) -> None:
    """Drop what was counted of a model that was unloaded, its states excepted."""
    for metric in _PER_MODEL:
        with suppress(KeyError):
            metric.remove(model_name)
    answered = {
        (sample.labels["protocol"], sample.labels["status"])
        for family in REQUESTS.collect()
        for sample in family.samples
        if sample.labels["model_name"] == model_name
    }
    for labels in answered:
        with suppress(KeyError):
            REQUESTS.remove(model_name, *labels)
