"""When a server ends that was asked to."""

import asyncio

import pytest

from kserve.shutdown import Shutdown

pytestmark = pytest.mark.anyio

# Nothing here waits for so long.
LONG_S = 1e6


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_all_of_the_time_is_left_until_the_end_is_asked_for() -> None:
    shutdown = Shutdown(5, LONG_S)

    before = shutdown.remaining_s
    shutdown.request()
    after = shutdown.remaining_s

    assert before == LONG_S
    assert 0 < after < LONG_S


async def test_a_later_request_gives_no_more_time() -> None:
    shutdown = Shutdown(5, LONG_S)
    shutdown.request()
    first = shutdown.remaining_s

    shutdown.request()

    assert shutdown.remaining_s < first


async def test_no_time_is_left_rather_than_less_than_none() -> None:
    shutdown = Shutdown(5, 0)

    shutdown.request()

    assert shutdown.remaining_s == 0


async def test_a_request_without_a_delay_ends_one_that_has_begun() -> None:
    shutdown = Shutdown(LONG_S, LONG_S)
    shutdown.request(has_delay=True)
    delay = asyncio.create_task(shutdown.delay())
    await asyncio.sleep(0)
    was_done = delay.done()

    shutdown.request()
    await delay

    assert (was_done, shutdown.requested.is_set()) == (False, True)


@pytest.mark.parametrize(("delay_s", "grace_period_s"), [(0, LONG_S), (LONG_S, 0), (LONG_S, 0.02)])
async def test_the_delay_takes_no_more_than_half_of_the_grace_period(
    delay_s: float, grace_period_s: float
) -> None:
    shutdown = Shutdown(delay_s, grace_period_s)
    shutdown.request(has_delay=True)

    await shutdown.delay()

    assert shutdown.requested.is_set()
