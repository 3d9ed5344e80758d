"""What a batch of such a size will take, learnt from what batches took."""

import math
from typing import Final

# An estimate of fewer batches is none.
_MIN_BATCHES: Final = 3

# What a batch still counts for after the next one: the last 20 or so make the estimate.
_DECAY: Final = 0.95

# A batch counts as no more than so many times its estimate, unless the one before it was such a
# surprise, too: one that was held up by a collection of garbage or by the machine changes little.
# The second in a row is the new beginning of what is known: the model has become slow.
_MAX_SURPRISE: Final = 2.0

# Sizes that differ less from their mean, as a share of it, tell nothing of what an element costs.
_MIN_SPREAD: Final = 0.05

# A run whose thread was on a CPU for this share of it did not wait for anything.
_COMPUTING_SHARE: Final = 0.8
# What a thread may have lost to its switch, in seconds.
_SWITCH_S: Final = 20e-6
# An uncontended run that waited longer than that, in seconds, waits for something of its own.
_MAX_WAIT_S: Final = 1e-3


class CostEstimate:
    """The seconds of a batch as a + b * size, by least squares over the latest ones.

    Errors count relative to the duration, so that large batches do not drown small ones. Sizes that
    were not seen lately are taken to be dear: much larger ones, and while all batches have the same
    size any larger one, to cost in proportion, smaller ones as much.

    A model that only computes is measured by the CPU time of its thread: on a machine with other
    work the time on the clock says more about that work. A model that waits (for a device, another
    process, the network) is measured by the clock.
    """

    __slots__ = (
        "_a",
        "_b",
        "_is_computing",
        "_largest",
        "_least",
        "_n_batches",
        "_sum_1",
        "_sum_n",
        "_sum_nn",
        "_sum_ny",
        "_sum_y",
        "_was_surprised",
    )

    def __init__(self) -> None:
        self._n_batches = 0
        self._is_computing = False
        self._sum_1 = self._sum_n = self._sum_nn = self._sum_y = self._sum_ny = 0.0
        self._a = self._b = self._least = 0.0
        self._largest = 0.0
        self._was_surprised = False

    def seconds(self, size: int) -> float:
        """Give the estimate for a batch; infinity while too little is known."""
        if self._n_batches < _MIN_BATCHES:
            return math.inf
        if size > 2 * self._largest:
            return self._sum_y / self._sum_n * size
        return max(self._a + self._b * size, self._least)

    def add(self, size: int, seconds: float, cpu_seconds: float, *, on_loop: bool) -> None:
        """Learn from a batch.

        Args:
            size: Its size, 1 or more: its rows, or elements, but always the same.
            seconds: What it took on the clock.
            cpu_seconds: What it took of the CPU, of the thread that called the model.
            on_loop: It ran on the event loop, where nothing of this process held it up.
        """
        if cpu_seconds + _SWITCH_S >= _COMPUTING_SHARE * seconds:
            self._is_computing = True
        elif on_loop and seconds - cpu_seconds > _MAX_WAIT_S:
            self._is_computing = False
        took = cpu_seconds if self._is_computing else seconds
        expected = self.seconds(size)
        is_surprise = took > _MAX_SURPRISE * expected
        if is_surprise and self._was_surprised:
            self._sum_1 = self._sum_n = self._sum_nn = self._sum_y = self._sum_ny = 0.0
            self._largest = 0.0
            expected = took
        elif is_surprise:
            took = _MAX_SURPRISE * expected
        self._was_surprised = is_surprise
        # It fades as the batches do: the slope of small ones says little of a large one.
        self._largest = max(self._largest * _DECAY, size)
        self._n_batches += 1
        # A clock that stands still must not divide by zero.
        self._fit(size, took, max(took if math.isinf(expected) else expected, 1e-7))

    def _fit(self, size: int, took: float, scale: float) -> None:
        weight = 1 / (scale * scale)
        self._sum_1 = self._sum_1 * _DECAY + weight
        self._sum_n = self._sum_n * _DECAY + weight * size
        self._sum_nn = self._sum_nn * _DECAY + weight * size * size
        self._sum_y = self._sum_y * _DECAY + weight * took
        self._sum_ny = self._sum_ny * _DECAY + weight * size * took
        mean_n, mean_y = self._sum_n / self._sum_1, self._sum_y / self._sum_1
        variance = self._sum_nn / self._sum_1 - mean_n * mean_n
        if variance <= (_MIN_SPREAD * mean_n) ** 2:
            self._a, self._b, self._least = 0.0, mean_y / mean_n, mean_y
            return
        covariance = self._sum_ny / self._sum_1 - mean_n * mean_y
        self._b = min(max(covariance / variance, 0.0), mean_y / mean_n)
        self._a, self._least = mean_y - self._b * mean_n, 0.0
