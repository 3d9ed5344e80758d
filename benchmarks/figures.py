"""What lists of measurements come down to: percentiles, medians, slopes."""

import math
from collections.abc import Sequence
from statistics import median

from scipy.stats import theilslopes


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that so many percent of the values do not exceed; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Give the change per unit of time, by Theil and Sen: the median of the slopes of all pairs.

    A few outliers do not move it.

    Returns:
        The slope, and what it is at least with 97.5 % confidence; zeros of fewer than two points.
    """
    if len(times) < 2:
        return 0.0, 0.0
    # Two-sided: 2.5 % are left on either side.
    fitted = theilslopes(values, times, alpha=0.95)
    return float(fitted.slope), float(fitted.low_slope)


def lowest(
    times: Sequence[float], values: Sequence[float], window: float
) -> tuple[list[float], list[float]]:
    """Give the lowest value of each window of time, and when it was.

    What is only there for a moment, such as the body of a large request, is not what stays.
    """
    numbers = [int((time - times[0]) // window) for time in times]
    points = sorted(zip(numbers, values, times, strict=True))
    firsts = {number: (time, value) for number, value, time in reversed(points)}
    pairs = [firsts[number] for number in sorted(firsts)]
    return [time for time, _ in pairs], [value for _, value in pairs]


def growth(values: Sequence[float]) -> float:
    """Give the median of the last quarter less that of the first; 0 of fewer than four values."""
    quarter = len(values) // 4
    if not quarter:
        return 0.0
    return median(values[-quarter:]) - median(values[:quarter])
