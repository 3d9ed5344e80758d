"""The end of a server: who asks for it, how long it still takes work, what time is left."""

import asyncio
import contextlib
from time import perf_counter


class Shutdown:
    """One end of one server; for its event loop.

    Args:
        delay_s: Seconds for which new work is still taken where the end is asked for with a delay.
        grace_period_s: Seconds from the request to the end. The delay takes at most half of them,
            so that what comes last has time, too.

    Attributes:
        requested: Set once the server is to end.
    """

    def __init__(self, delay_s: float, grace_period_s: float) -> None:
        self._delay_s = min(delay_s, grace_period_s / 2)
        self._grace_period_s = grace_period_s
        self._deadline: float | None = None
        self._is_urgent = asyncio.Event()
        self.requested = asyncio.Event()

    def request(self, has_delay: bool = False) -> None:
        """Ask for the end; what is left of a delay is skipped if this request has none."""
        if self._deadline is None:
            self._deadline = perf_counter() + self._grace_period_s
        self.requested.set()
        if not has_delay:
            self._is_urgent.set()

    async def delay(self) -> None:
        """Wait for as long as new work is to be taken."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_urgent.wait(), self._delay_s)

    @property
    def remaining_s(self) -> float:
        """The seconds that are left, 0 or more; all of them while nobody has asked."""
        if self._deadline is None:
            return self._grace_period_s
        return max(self._deadline - perf_counter(), 0.0)
