"""The names and labels of the metrics, and what is counted where."""

import pytest
from prometheus_client import REGISTRY

from kserve.metrics import (
    AnswerMetrics,
    BatchMetrics,
    ModelMetrics,
    TokenBatchMetrics,
    forget_model,
)


def _samples(model_name: str) -> dict[tuple[str, ...], float]:
    """Give every sample of a model: its name and its other labels, to its value."""
    return {
        (sample.name, *(sample.labels[key] for key in sample.labels if key != "model_name")): (
            sample.value
        )
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.labels.get("model_name") == model_name
        and not sample.name.endswith(("_created", "_bucket"))
    }


def test_a_model_that_nobody_asked_shows_zeros() -> None:
    ModelMetrics("metrics-zero")

    assert _samples("metrics-zero") == {
        ("request_preprocess_seconds_count",): 0,
        ("request_preprocess_seconds_sum",): 0,
        ("request_predict_seconds_count",): 0,
        ("request_predict_seconds_sum",): 0,
        ("request_postprocess_seconds_count",): 0,
        ("request_postprocess_seconds_sum",): 0,
        ("request_explain_seconds_count",): 0,
        ("request_explain_seconds_sum",): 0,
        ("kserve_requests_in_flight",): 0,
        ("kserve_nonfinite_values_total",): 0,
    }


@pytest.mark.parametrize("handler", ["preprocess", "predict", "postprocess", "explain"])
def test_seconds_go_to_the_histogram_of_their_handler(handler: str) -> None:
    name = f"metrics-{handler}"
    metrics = ModelMetrics(name)

    metrics.observe[handler](0.25)

    observed = {key[0]: value for key, value in _samples(name).items() if value}
    assert observed == {
        f"request_{handler}_seconds_count": 1,
        f"request_{handler}_seconds_sum": 0.25,
    }


def test_answers_are_counted_by_protocol_and_status() -> None:
    metrics = ModelMetrics("metrics-answers")

    metrics.count_answer("v1", 200)
    metrics.count_answer("v1", 200)
    metrics.count_answer("v2", 400)

    counted = {key: value for key, value in _samples("metrics-answers").items() if value}
    assert counted == {
        ("kserve_requests_total", "v1", "200"): 2,
        ("kserve_requests_total", "v2", "400"): 1,
    }


def test_what_concerns_no_model_adds_no_histogram() -> None:
    AnswerMetrics("metrics-none").count_answer("", 404)

    assert _samples("metrics-none") == {
        ("kserve_requests_total", "", "404"): 1,
        ("kserve_nonfinite_values_total",): 0,
    }


def test_a_queue_that_nobody_used_shows_zeros() -> None:
    BatchMetrics("metrics-idle-queue")

    assert _samples("metrics-idle-queue") == {
        ("kserve_batch_rows_count",): 0,
        ("kserve_batch_rows_sum",): 0,
        ("kserve_queue_seconds_count",): 0,
        ("kserve_queue_seconds_sum",): 0,
        ("kserve_queue_rows",): 0,
        ("kserve_queue_requests",): 0,
        ("kserve_queue_left_total",): 0,
        ("kserve_unbatched_spells_total",): 0,
    }


def test_batches_are_counted_by_why_they_were_released_and_where_they_ran() -> None:
    metrics = BatchMetrics("metrics-batches")

    metrics.released("free", "loop", 3)
    metrics.released("free", "loop", 4)
    metrics.released("retry", "thread", 1)

    assert {key: value for key, value in _samples("metrics-batches").items() if value} == {
        ("kserve_batches_total", "free", "loop"): 2,
        ("kserve_batches_total", "retry", "thread"): 1,
        ("kserve_batch_rows_count",): 3,
        ("kserve_batch_rows_sum",): 8,
    }


def test_what_leaves_the_queue_is_taken_off_the_gauges() -> None:
    metrics = BatchMetrics("metrics-queue")
    metrics.queue_requests.inc(4)
    metrics.queue_rows.inc(40)

    metrics.took(2, 20)
    metrics.left(15)
    metrics.waited(0.5)

    assert {key: value for key, value in _samples("metrics-queue").items() if value} == {
        ("kserve_queue_requests",): 1,
        ("kserve_queue_rows",): 5,
        ("kserve_queue_left_total",): 1,
        ("kserve_queue_seconds_count",): 1,
        ("kserve_queue_seconds_sum",): 0.5,
    }


def test_a_model_that_was_unloaded_leaves_nothing() -> None:
    model, batches = ModelMetrics("metrics-gone"), BatchMetrics("metrics-gone")
    model.count_answer("v1", 200)
    batches.released("free", "loop", 3)

    forget_model("metrics-gone")

    assert _samples("metrics-gone") == {}


def test_a_model_of_tokens_shows_how_many_wait_and_how_many_ran() -> None:
    metrics = TokenBatchMetrics("metrics-tokens")

    metrics.waiting(2, 5, 700)
    metrics.batch_tokens(300)
    metrics.batch_tokens(20)
    metrics.gone()

    samples = _samples("metrics-tokens")
    assert samples[("kserve_queue_requests",)] == 2
    assert samples[("kserve_queue_rows",)] == 5
    assert samples[("kserve_queue_tokens",)] == 700
    assert samples[("kserve_batch_tokens_count",)] == 2
    assert samples[("kserve_batch_tokens_sum",)] == 320
    assert samples[("kserve_queue_left_total",)] == 1
    forget_model("metrics-tokens")
    assert _samples("metrics-tokens") == {}
