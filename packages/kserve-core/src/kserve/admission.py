"""How many requests of one model may be in flight."""

from kserve.config import DEFAULT_MAX_INFLIGHT_REQUESTS
from kserve.errors import TooManyRequests


class Admission:
    """Counts the requests of one model in flight; for the event loop.

    Args:
        limit: How many there may be, 1 or more.

    Attributes:
        n_in_flight: How many there are.
    """

    __slots__ = ("_limit", "n_in_flight")

    def __init__(self, limit: int = DEFAULT_MAX_INFLIGHT_REQUESTS) -> None:
        self._limit = limit
        self.n_in_flight = 0

    @property
    def is_full(self) -> bool:
        """Whether `enter` would refuse now."""
        return self.n_in_flight >= self._limit

    def refusal(self) -> TooManyRequests:
        """Give what a client is told while there is no room."""
        return TooManyRequests(
            f"{self._limit} requests for this model are in flight, which is as many as it takes "
            "(--max_inflight_requests)"
        )

    def enter(self) -> None:
        """Count a request in; `leave` counts it out.

        Raises:
            TooManyRequests: There is no room.
        """
        if self.n_in_flight >= self._limit:
            raise self.refusal()
        self.n_in_flight += 1

    def leave(self) -> None:
        """Count a request out that was counted in."""
        self.n_in_flight -= 1
