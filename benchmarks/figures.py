"""What lists of measurements come down to: percentiles, medians, slopes."""

import math
from collections.abc import Sequence
from statistics import median

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that so many percent of the values do not exceed; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Give the change per unit of time, by Theil and Sen; 0 of fewer than two points.

    The median of the slopes of all pairs does not follow a few outliers, such as a request of many
    megabytes that a sample happened to meet.
    """
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    first, second = np.triu_indices(len(x), k=1)
    if not len(first):
        return 0.0
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def growth(values: Sequence[float]) -> float:
    """Give the median of the last quarter less that of the first; 0 of fewer than four values."""
    quarter = len(values) // 4
    if not quarter:
        return 0.0
    return median(values[-quarter:]) - median(values[:quarter])
