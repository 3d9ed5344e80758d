"""The Prometheus metrics of generation. What they count is what vLLM's of the same names do."""

from contextlib import suppress
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_LABELS: Final = ["model_name"]

# Seconds: of a token of a small model on a GPU, to that of a long prompt on a CPU.
_TOKEN_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS: Final = (
    *(0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0),
)

TIME_TO_FIRST_TOKEN: Final = Histogram(
    "hfserver_time_to_first_token_seconds",
    "Time from the arrival of a request to its first token",
    _LABELS,
    buckets=_TOKEN_BUCKETS,
)
INTER_TOKEN_LATENCY: Final = Histogram(
    "hfserver_inter_token_latency_seconds",
    "Time from one token of a sequence to its next",
    _LABELS,
    buckets=_TOKEN_BUCKETS,
)
E2E_LATENCY: Final = Histogram(
    "hfserver_e2e_request_latency_seconds",
    "Time from the arrival of a request to its end",
    _LABELS,
    buckets=_REQUEST_BUCKETS,
)
QUEUE_TIME: Final = Histogram(
    "hfserver_request_queue_time_seconds",
    "Time that a request waited before it was computed",
    _LABELS,
    buckets=_REQUEST_BUCKETS,
)
PROMPT_TOKENS: Final = Counter("hfserver_prompt_tokens", "Tokens of prompts", _LABELS)
GENERATION_TOKENS: Final = Counter("hfserver_generation_tokens", "Generated tokens", _LABELS)
REQUESTS: Final = Counter(
    "hfserver_requests_finished",
    "Requests by how they ended: stop, length, cancelled, error",
    ["model_name", "finished_reason"],
)
RUNNING: Final = Gauge("hfserver_num_requests_running", "Requests that are being computed", _LABELS)
WAITING: Final = Gauge("hfserver_num_requests_waiting", "Requests that wait", _LABELS)
KV_USAGE: Final = Gauge(
    "hfserver_kv_cache_usage_perc", "Share of the KV cache that is reserved, 1 is all", _LABELS
)
PREFIX_QUERIES: Final = Counter(
    "hfserver_prefix_cache_queries", "Tokens of prompts looked up in the prefix cache", _LABELS
)
PREFIX_HITS: Final = Counter(
    "hfserver_prefix_cache_hits", "Tokens of prompts found in the prefix cache", _LABELS
)

_PER_MODEL: Final = (
    *(TIME_TO_FIRST_TOKEN, INTER_TOKEN_LATENCY, E2E_LATENCY, QUEUE_TIME),
    *(PROMPT_TOKENS, GENERATION_TOKENS, RUNNING, WAITING, KV_USAGE, PREFIX_QUERIES, PREFIX_HITS),
)
FINISHED_REASONS: Final = ("stop", "length", "cancelled", "error")


class GenerationMetrics:
    """The metrics of one model, bound to its name."""

    def __init__(self, model_name: str) -> None:
        self.first_token = TIME_TO_FIRST_TOKEN.labels(model_name).observe
        self.inter_token = INTER_TOKEN_LATENCY.labels(model_name).observe
        self.e2e = E2E_LATENCY.labels(model_name).observe
        self.queue_time = QUEUE_TIME.labels(model_name).observe
        self.prompt_tokens = PROMPT_TOKENS.labels(model_name).inc
        self.generation_tokens = GENERATION_TOKENS.labels(model_name).inc
        self.prefix_queries = PREFIX_QUERIES.labels(model_name).inc
        self.prefix_hits = PREFIX_HITS.labels(model_name).inc
        self.set_running = RUNNING.labels(model_name).set
        self.set_waiting = WAITING.labels(model_name).set
        self.set_kv_usage = KV_USAGE.labels(model_name).set
        self._finished = {
            reason: REQUESTS.labels(model_name, reason) for reason in FINISHED_REASONS
        }

    def finished(self, reason: str) -> None:
        """Count a request that has ended."""
        self._finished[reason].inc()


def forget_model(model_name: str) -> None:
    """Drop what was counted of a model that is unloaded."""
    for metric in _PER_MODEL:
        with suppress(KeyError):
            metric.remove(model_name)
    for reason in FINISHED_REASONS:
        with suppress(KeyError):
            REQUESTS.remove(model_name, reason)
