import math

import pytest
from benchmarks.figures import growth, lowest, percentile, slope


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        pytest.param(50, 2.0, id="the median of four is the second"),
        pytest.param(99, 4.0, id="a high one of few is the largest"),
        pytest.param(0, 1.0, id="the lowest is the smallest"),
    ],
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 50))


def test_a_slope_does_not_follow_an_outlier() -> None:
    times = [0.0, 1.0, 2.0, 3.0, 4.0]

    assert slope(times, [0.0, 2.0, 400.0, 6.0, 8.0])[0] == 2.0


def test_a_slope_of_chance_is_at_least_less_than_nothing() -> None:
    times = [float(number) for number in range(10)]

    assert slope(times, [5, 1, 4, 2, 6, 1, 5, 3, 4, 2])[1] < 0


def test_a_straight_line_is_certain() -> None:
    times = [float(number) for number in range(10)]

    assert slope(times, [3 * time for time in times]) == (3, 3)


def test_one_point_has_no_slope() -> None:
    assert slope([1.0], [5.0]) == (0, 0)


def test_the_lowest_of_each_window_is_what_stays() -> None:
    times = [5.0, 7.0, 14.0, 15.0, 26.0, 41.0]
    values = [3.0, 2.0, 9.0, 4.0, 8.0, 1.0]

    assert lowest(times, values, 10) == ([7.0, 15.0, 26.0, 41.0], [2.0, 4.0, 8.0, 1.0])


def test_growth_is_from_the_first_quarter_to_the_last() -> None:
    assert growth([1, 1, 50, 50, 50, 50, 4, 4]) == 3


def test_less_than_four_values_do_not_grow() -> None:
    assert growth([1, 2, 300]) == 0
