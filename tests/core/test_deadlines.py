"""Requests that take too long are cancelled."""

import asyncio
import contextlib

import pytest

from kserve.deadlines import Deadlines
from kserve.errors import DeadlineExceeded

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def forever(deadlines: Deadlines) -> None:
    with deadlines.limit():
        await asyncio.Event().wait()


async def test_work_that_takes_too_long_is_cancelled() -> None:
    deadlines = Deadlines(0.01)
    outcome = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            outcome.append("cancelled")

    with pytest.raises(DeadlineExceeded) as exceeded, deadlines.limit():
        await work()

    task = asyncio.current_task()
    assert str(exceeded.value) == "no answer within 0.01 s (--request_timeout_s)"
    assert (exceeded.value.http_status, exceeded.value.grpc_status) == (504, "DEADLINE_EXCEEDED")
    assert task is not None
    assert (outcome, task.cancelling()) == (["cancelled"], 0)
    assert (deadlines._limits, deadlines._timer) == ({}, None)


async def test_no_time_is_no_limit() -> None:
    deadlines = Deadlines(0)

    with deadlines.limit():
        await asyncio.sleep(0)

    assert (deadlines._limits, deadlines._timer) == ({}, None)


async def test_work_that_ends_in_time_is_left_alone_and_leaves_nothing() -> None:
    deadlines = Deadlines(3600)

    with deadlines.limit():
        await asyncio.sleep(0)
    with pytest.raises(KeyError), deadlines.limit():
        raise KeyError

    assert deadlines._limits == {}


async def test_requests_expire_in_the_order_in_which_they_came_by_one_timer() -> None:
    deadlines = Deadlines(3600)
    expired = []
    timers = []

    async def work(number: int) -> None:
        with contextlib.suppress(DeadlineExceeded):
            await forever(deadlines)
        expired.append(number)

    tasks = []
    for number in range(3):
        tasks.append(asyncio.ensure_future(work(number)))
        await asyncio.sleep(0)
        timers.append(deadlines._timer)
    for limit in deadlines._limits:
        limit.expires_at = 0.0
    deadlines._expire(asyncio.get_running_loop())
    await asyncio.gather(*tasks)

    assert expired == [0, 1, 2]
    assert timers[0] is timers[1] is timers[2] is not None


async def test_the_time_of_a_request_does_not_end_with_that_of_an_older_one() -> None:
    deadlines = Deadlines(3600)
    tasks = [asyncio.ensure_future(forever(deadlines)) for _ in range(2)]
    await asyncio.sleep(0)
    first, second = deadlines._limits
    assert deadlines._timer is not None

    deadlines._timer.cancel()
    first.expires_at = 0.0
    deadlines._expire(asyncio.get_running_loop())
    await asyncio.wait(tasks[:1])

    assert isinstance(tasks[0].exception(), DeadlineExceeded)
    assert (tasks[1].done(), list(deadlines._limits)) == (False, [second])
    assert deadlines._timer.when() == second.expires_at
    tasks[1].cancel()


async def test_a_caller_that_goes_is_cancelled_as_ever() -> None:
    deadlines = Deadlines(3600)
    task = asyncio.ensure_future(forever(deadlines))
    await asyncio.sleep(0)

    task.cancel()
    await asyncio.wait([task])

    assert (task.cancelled(), deadlines._limits) == (True, {})


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
async def test_a_caller_that_goes_as_its_time_ends_is_cancelled(is_first: bool) -> None:
    deadlines = Deadlines(3600)
    task = asyncio.ensure_future(forever(deadlines))
    await asyncio.sleep(0)
    (limit,) = deadlines._limits

    for cancel in (task.cancel, limit.expire) if is_first else (limit.expire, task.cancel):
        cancel()
    await asyncio.wait([task])

    assert task.cancelled()


async def test_work_that_ends_as_its_time_does_keeps_nothing_of_the_cancellation() -> None:
    deadlines = Deadlines(3600)
    done = asyncio.get_running_loop().create_future()

    async def work() -> int:
        with contextlib.suppress(DeadlineExceeded), deadlines.limit():
            await done
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    (limit,) = deadlines._limits
    done.set_result(None)
    limit.expire()

    assert await task == 0


async def test_work_that_answers_in_spite_of_its_cancellation_is_heard() -> None:
    deadlines = Deadlines(0.01)

    with deadlines.limit():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        answer = "in spite"

    task = asyncio.current_task()
    assert task is not None
    assert (answer, task.cancelling()) == ("in spite", 0)


async def test_what_work_raises_at_its_end_is_not_hidden() -> None:
    deadlines = Deadlines(0.01)

    with pytest.raises(KeyError), deadlines.limit():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError from None


async def test_an_outer_time_limit_stays_one() -> None:
    deadlines = Deadlines(3600)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await forever(deadlines)


def test_a_server_that_is_started_again_has_its_limits_again() -> None:
    deadlines = Deadlines(0.01)

    async def leave() -> None:
        asyncio.ensure_future(forever(deadlines))
        await asyncio.sleep(0)

    async def return_() -> str:
        try:
            await forever(deadlines)
        except DeadlineExceeded:
            return "exceeded"
        return ""

    asyncio.run(leave())

    assert asyncio.run(return_()) == "exceeded"
