"""The bound models of a server, and the end of their last request."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from kserve.endpoints import Endpoints
from kserve.model import BaseKServeModel, Model

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Keep the collector from running by itself."""
    gc.disable()
    yield
    gc.enable()


def test_names_and_versions_of_one_model_share_its_threads() -> None:
    endpoints = Endpoints()
    first, second = Model("m"), Model("m")

    bound = [endpoints.bind(first, "m"), endpoints.bind(first, "m", "1")]
    other = endpoints.bind(second, "m", "2")

    assert endpoints.bound == {"m": bound[0], ("m", "1"): bound[1], ("m", "2"): other}
    assert bound[0].resources.threads is bound[1].resources.threads
    assert other.resources.threads is not bound[0].resources.threads


def test_a_name_is_dropped_with_its_versions_and_no_other() -> None:
    endpoints = Endpoints()
    for name, version in (("m", None), ("m", "1"), ("m1", None), ("m1", "1")):
        endpoints.bind(Model(name), name, version)

    endpoints.drop_name("m")

    assert list(endpoints.bound) == ["m1", ("m1", "1")]


def test_a_model_that_takes_no_requests_is_not_bound() -> None:
    endpoints = Endpoints()

    with pytest.raises(ValueError, match="does not support inference"):
        endpoints.bind(BaseKServeModel("m"), "m")

    assert endpoints.bound == {}


async def test_a_model_that_nobody_asked_is_over_at_once() -> None:
    await Endpoints().last_use(Model("m"))


async def test_the_last_use_ends_when_the_last_endpoint_is_let_go() -> None:
    endpoints = Endpoints()
    model = Model("m")
    held = [endpoints.bind(model, "m"), endpoints.bind(model, "m", "1")]

    waiting = asyncio.ensure_future(endpoints.last_use(model))
    seen = []
    while held:
        held.pop()
        seen.append(waiting.done())
    await waiting

    assert seen == [False, False]
    assert endpoints.bound == {}


async def test_an_endpoint_that_a_circle_holds_is_found(
    without_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kserve.endpoints._COLLECT_AFTER_S", 0.01)
    endpoints = Endpoints()
    model = Model("m")
    circle: list[Any] = [endpoints.bind(model, "m")]
    circle.append(circle)
    del circle

    async with asyncio.timeout(10):
        await endpoints.last_use(model)


def test_models_that_user_code_took_out_leave_nothing() -> None:
    endpoints = Endpoints()

    for n in range(10):
        endpoints.bind(Model(f"m{n}"), f"m{n}")
        endpoints.drop_name(f"m{n}")

    assert len(endpoints._uses) == 1
