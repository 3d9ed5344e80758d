"""The default pool knows what has not returned."""

import threading

import pytest

from kserve.default_pool import DefaultPool

WAIT_S = 15


def test_a_pool_in_which_nothing_runs_has_ended() -> None:
    with DefaultPool() as pool:
        assert pool.ends_within(0)


def test_a_call_that_returns_is_waited_for() -> None:
    released = threading.Event()

    with DefaultPool(1) as pool:
        future = pool.submit(released.wait, WAIT_S)
        while_it_runs = pool.ends_within(0)
        released.set()
        after = pool.ends_within(WAIT_S)

    assert (while_it_runs, after, future.result()) == (False, True, True)


def test_a_call_that_raises_has_ended() -> None:
    with DefaultPool(1) as pool:
        future = pool.submit(int, "no number")
        has_ended = pool.ends_within(WAIT_S)

    assert has_ended
    with pytest.raises(ValueError, match="no number"):
        future.result()
