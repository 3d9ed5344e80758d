"""What a batch of so many rows will take."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve.cost_estimate import CostEstimate


def learnt(*batches: tuple[int, float], n_times: int = 1) -> CostEstimate:
    """Give an estimate that has seen batches of (rows, seconds), computed all the time."""
    estimate = CostEstimate()
    for _ in range(n_times):
        for n_rows, seconds in batches:
            estimate.add(n_rows, seconds, seconds, on_loop=False)
    return estimate


def test_knows_nothing_before_the_third_batch() -> None:
    estimate = CostEstimate()

    seen = []
    for _ in range(3):
        seen.append(estimate.seconds(1))
        estimate.add(1, 0.5, 0.5, on_loop=False)

    assert seen == [math.inf] * 3
    assert estimate.seconds(1) == pytest.approx(0.5)


def test_learns_what_a_call_and_what_a_row_costs() -> None:
    estimate = learnt((1, 0.0102), (10, 0.012), (50, 0.02), (100, 0.03), n_times=5)

    assert [estimate.seconds(n) for n in (1, 20, 100)] == pytest.approx([0.0102, 0.014, 0.03])


def test_takes_sizes_that_it_has_not_seen_to_be_dear() -> None:
    estimate = learnt((4, 0.01), n_times=3)

    assert [estimate.seconds(n) for n in (1, 4, 8, 80)] == pytest.approx([0.01, 0.01, 0.02, 0.2])


def test_takes_much_larger_batches_to_cost_in_proportion() -> None:
    estimate = learnt((1, 0.01), (2, 0.01), n_times=10)

    assert estimate.seconds(4) == pytest.approx(0.01)
    assert estimate.seconds(4000) > 20


def test_a_large_batch_of_long_ago_vouches_for_no_other() -> None:
    estimate = learnt((10_000, 10.0))
    # The slope of these is 0.
    for n in range(300):
        estimate.add(1 + n % 3, 1e-4, 1e-4, on_loop=False)

    assert estimate.seconds(10_000) > 0.1


def test_one_batch_that_was_held_up_changes_little() -> None:
    estimate = learnt((1, 1e-4), n_times=20)

    estimate.add(1, 1.0, 1.0, on_loop=False)

    assert estimate.seconds(1) < 1.2e-4


@pytest.mark.parametrize("slow_s", [0.002, 0.005, 1.0])
def test_a_model_that_has_become_slow_is_known_by_the_second_batch(slow_s: float) -> None:
    estimate = learnt((1, 1e-4), (8, 2e-4), n_times=50)

    for _ in range(2):
        estimate.add(4, slow_s, slow_s, on_loop=True)

    assert estimate.seconds(4) == pytest.approx(slow_s)


def test_a_model_that_has_become_fast_is_known_after_20_batches() -> None:
    estimate = learnt((1, 0.5), n_times=50)

    for _ in range(20):
        estimate.add(1, 1e-4, 1e-4, on_loop=False)

    assert estimate.seconds(1) < 2e-4


def test_a_model_that_computes_is_measured_by_the_processor() -> None:
    estimate = learnt((1, 1e-4), n_times=3)

    # The machine is busy: the thread waits for its turn.
    for _ in range(10):
        estimate.add(1, 0.05, 1e-4, on_loop=False)

    assert estimate.seconds(1) == pytest.approx(1e-4)


def test_a_model_that_waits_is_measured_by_the_clock() -> None:
    estimate = CostEstimate()

    for _ in range(3):
        estimate.add(1, 0.05, 1e-4, on_loop=False)

    assert estimate.seconds(1) == pytest.approx(0.05)


def test_a_model_that_begins_to_wait_on_the_loop_is_measured_by_the_clock() -> None:
    estimate = learnt((1, 1e-4), n_times=20)

    for _ in range(2):
        estimate.add(1, 0.05, 1e-4, on_loop=True)

    assert estimate.seconds(1) == pytest.approx(0.05)


def test_a_clock_that_stands_still_gives_nothing() -> None:
    estimate = learnt((1, 0.0), (7, 0.0), n_times=5)

    assert [estimate.seconds(n) for n in (1, 7, 700)] == [0, 0, 0]


seconds = st.floats(0, 1e4)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 1 << 20), seconds, seconds, st.booleans()),
        min_size=3,
        max_size=40,
    ),
    st.integers(1, 1 << 20),
)
def test_an_estimate_is_a_number_of_seconds_and_grows_with_the_rows(
    batches: list[tuple[int, float, float, bool]], n_rows: int
) -> None:
    estimate = CostEstimate()

    for n, wall_s, cpu_s, on_loop in batches:
        estimate.add(n, wall_s, cpu_s, on_loop=on_loop)
    given_s, double_s = estimate.seconds(n_rows), estimate.seconds(2 * n_rows)

    assert 0 <= given_s <= double_s < math.inf
