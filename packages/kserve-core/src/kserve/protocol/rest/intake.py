"""What all connections of a server share: the limits on requests, and the bytes they hold."""

from dataclasses import dataclass, field
from typing import Final

from kserve.config import (
    DEFAULT_BODY_TIMEOUT_S,
    DEFAULT_HEADER_TIMEOUT_S,
    DEFAULT_MAX_REQUEST_BYTES,
    DEFAULT_SEND_TIMEOUT_S,
    ServerConfig,
)
from kserve.errors import RequestTooLarge, TooManyRequests
from kserve.memory import memory_limit
from kserve.protocol.rest.refusals import QuickRefusals

# The part of the memory that request bodies may take: a body is there beside the tensors that are
# made of it, and beside the answer.
_MEMORY_SHARE: Final = 4


@dataclass(slots=True, kw_only=True)
class Intake:
    """Admits the bodies of requests by their bytes, those of all connections together.

    Attributes:
        max_request_bytes: What one body may have.
        max_inflight_bytes: What all bodies in flight may have; 0 is a quarter of the memory limit.
        header_timeout_s: In how many seconds after its first byte a head is complete.
        body_timeout_s: For how many seconds a body may not come on.
        send_timeout_s: For how many seconds a client may read nothing of an answer.
        refusals: What is refused without being looked at.
        n_inflight_bytes: What all bodies in flight have.
    """

    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    max_inflight_bytes: int = 0
    header_timeout_s: float = DEFAULT_HEADER_TIMEOUT_S
    body_timeout_s: float = DEFAULT_BODY_TIMEOUT_S
    send_timeout_s: float = DEFAULT_SEND_TIMEOUT_S
    refusals: QuickRefusals = field(default_factory=QuickRefusals)
    n_inflight_bytes: int = 0

    def __post_init__(self) -> None:
        """Find the default."""
        self.max_inflight_bytes = self.max_inflight_bytes or memory_limit() // _MEMORY_SHARE

    @classmethod
    def from_config(cls, config: ServerConfig) -> "Intake":
        """Give one with the limits of a server."""
        return cls(
            max_request_bytes=config.max_request_bytes,
            max_inflight_bytes=config.max_inflight_bytes or 0,
            header_timeout_s=config.header_timeout_s,
            body_timeout_s=config.body_timeout_s,
            send_timeout_s=config.send_timeout_s,
            refusals=QuickRefusals(log_requests=config.enable_latency_logging),
        )

    def check(self, n_bytes: int) -> None:
        """Compare the length of one body with what it may have.

        Raises:
            RequestTooLarge: It has more.
        """
        if n_bytes > self.max_request_bytes:
            raise RequestTooLarge(
                f"the body is larger than {self.max_request_bytes} bytes (--max_request_bytes)"
            )

    def take(self, n_bytes: int, n_held: int = 0) -> None:
        """Count bytes of a body as in flight, before they are read where that is known.

        Args:
            n_bytes: How many more.
            n_held: How many the request has taken already.

        Raises:
            RequestTooLarge: The request would not fit if it were the only one.
            TooManyRequests: There is no room for it now.
        """
        limit = self.max_inflight_bytes
        if n_held + n_bytes > limit:
            raise RequestTooLarge(
                f"the body is larger than the {limit} bytes that all requests in flight may hold "
                "(--max_inflight_bytes)"
            )
        if self.n_inflight_bytes + n_bytes > limit:
            raise self.no_room()
        self.n_inflight_bytes += n_bytes

    @property
    def room(self) -> int:
        """The bytes that may still be taken."""
        return max(self.max_inflight_bytes - self.n_inflight_bytes, 0)

    def no_room(self) -> TooManyRequests:
        """Give the refusal of a body that would fit at another time."""
        return TooManyRequests(
            f"there is no room for the body in the {self.max_inflight_bytes} bytes that all "
            "requests in flight may hold (--max_inflight_bytes)"
        )

    def give_back(self, n_bytes: int) -> None:
        """Count bytes as in flight no longer."""
        self.n_inflight_bytes -= n_bytes
