"""What a model has once, under however many names it is served."""

import gc
import weakref
from typing import Any

import pytest

from kserve.config import ServerConfig
from kserve.executor import ModelThreads
from kserve.model import Model
from kserve.model_resources import ModelResources


def double(values: list[Any]) -> list[Any]:
    return [2 * value for value in values]


def test_a_model_has_one_queue_and_the_arguments_are_those_of_the_first() -> None:
    resources = ModelResources(Model("m"), "m", ServerConfig())

    first = resources.batcher(double)
    second = resources.batcher(len)  # type: ignore[arg-type]

    assert first is second
    assert first._run is double


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        pytest.param(None, 32, id="the server's"),
        pytest.param(8, 8, id="the model's"),
        pytest.param(64, 32, id="the smaller one"),
    ],
)
def test_the_limits_are_those_of_the_server_and_of_the_model(
    own: int | None, expected: int
) -> None:
    model = Model("m")
    model.max_batch_size = own
    config = ServerConfig(
        max_batch_size=32,
        max_batch_delay_ms=5,
        max_queued_rows=100,
        max_concurrent_predicts=3,
        max_inflight_requests=2,
    )

    resources = ModelResources(model, "m", config)
    limits = resources.batcher(double)._limits

    assert (limits.max_batch_size, limits.max_batch_delay_s) == (expected, 0.005)
    assert (limits.max_queued_rows, limits.max_running) == (100, 3)
    resources.admission.enter()
    resources.admission.enter()
    assert resources.admission.is_full


@pytest.mark.parametrize(
    ("of_server", "of_model", "expected"),
    [
        pytest.param(None, None, 1, id="nobody says"),
        pytest.param(None, 4, 4, id="the model says"),
        pytest.param(2, 4, 2, id="the server is told"),
    ],
)
def test_as_many_calls_run_at_a_time_as_the_server_or_else_the_model_says(
    of_server: int | None, of_model: int | None, expected: int
) -> None:
    model = Model("m")
    model.max_concurrent_predicts = of_model

    resources = ModelResources(model, "m", ServerConfig(max_concurrent_predicts=of_server))

    assert resources.threads._n_threads == expected
    assert resources.batcher(double)._limits.max_running == expected


def test_threads_that_still_live_are_used() -> None:
    threads = ModelThreads("m")

    assert ModelResources(Model("m"), "m", ServerConfig(), threads).threads is threads


def test_a_hang_is_told_with_the_model_which_it_does_not_keep() -> None:
    told: list[tuple[Any, bool]] = []
    model = Model("m")
    resources = ModelResources(
        model, "m", ServerConfig(), on_hang=lambda model, has_hung: told.append((model, has_hung))
    )
    assert resources.threads._on_hang is not None

    resources.threads._on_hang(True)
    heard = told.pop() == (model, True)
    is_freed = weakref.ref(model)
    del model
    gc.collect()
    resources.threads._on_hang(False)

    assert heard
    assert (is_freed(), told) == (None, [])
