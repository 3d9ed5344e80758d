"""The bytes that requests in flight hold, those of all wires and connections together."""

from typing import Final

from kserve.errors import RequestTooLarge, TooManyRequests
from kserve.memory import memory_limit

# The part of the memory that requests may take: what was sent is there beside the tensors that are
# made of it, and beside the answer.
_MEMORY_SHARE: Final = 4


class InflightBytes:
    """Admits requests by their bytes.

    Args:
        limit: What all of them may have; 0 is a quarter of the memory limit.

    Attributes:
        limit: As above.
        n_bytes: What they have.
    """

    __slots__ = ("limit", "n_bytes")

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit or memory_limit() // _MEMORY_SHARE
        self.n_bytes = 0

    def take(self, n_bytes: int, n_held: int = 0) -> None:
        """Count bytes of a request as in flight, before they are read where that is known.

        Args:
            n_bytes: How many more.
            n_held: How many the request has taken already.

        Raises:
            RequestTooLarge: The request would not fit if it were the only one.
            TooManyRequests: There is no room for it now.
        """
        if n_held + n_bytes > self.limit:
            raise RequestTooLarge(
                f"the body is larger than the {self.limit} bytes that all requests in flight may "
                "hold (--max_inflight_bytes)"
            )
        if self.n_bytes + n_bytes > self.limit:
            raise self.no_room()
        self.n_bytes += n_bytes

    def hold(self, n_bytes: int) -> None:
        """Count bytes that are there already, whether there is room for them or not."""
        self.n_bytes += n_bytes

    @property
    def room(self) -> int:
        """The bytes that may still be taken."""
        return max(self.limit - self.n_bytes, 0)

    def no_room(self) -> TooManyRequests:
        """Give the refusal of a body that would fit at another time."""
        return TooManyRequests(
            f"there is no room for the body in the {self.limit} bytes that all requests in flight "
            "may hold (--max_inflight_bytes)"
        )

    def give_back(self, n_bytes: int) -> None:
        """Count bytes as in flight no longer."""
        self.n_bytes -= n_bytes
