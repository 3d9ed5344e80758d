"""What all connections of a server share: the limits on requests."""

from dataclasses import dataclass, field

import orjson

from kserve.config import (
    DEFAULT_BODY_TIMEOUT_S,
    DEFAULT_HEADER_TIMEOUT_S,
    DEFAULT_MAX_REQUEST_BYTES,
    DEFAULT_SEND_TIMEOUT_S,
    ServerConfig,
)
from kserve.errors import RequestTooLarge
from kserve.protocol.inflight_bytes import InflightBytes
from kserve.protocol.rest.openai.error_object import error_body
from kserve.protocol.rest.openai.paths import OpenAIPaths
from kserve.protocol.rest.refusals import QuickRefusals


@dataclass(slots=True, kw_only=True)
class Intake:
    """Admits requests, those of all connections together.

    Attributes:
        max_request_bytes: What one body may have.
        header_timeout_s: In how many seconds after its first byte a head is complete.
        body_timeout_s: For how many seconds a body may not come on.
        send_timeout_s: For how many seconds a client may read nothing of an answer.
        refusals: What is refused without being looked at.
        inflight: What the bodies in flight have.
        openai_paths: Whose errors are OpenAI's.
    """

    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    header_timeout_s: float = DEFAULT_HEADER_TIMEOUT_S
    body_timeout_s: float = DEFAULT_BODY_TIMEOUT_S
    send_timeout_s: float = DEFAULT_SEND_TIMEOUT_S
    refusals: QuickRefusals = field(default_factory=QuickRefusals)
    inflight: InflightBytes = field(default_factory=InflightBytes)
    openai_paths: OpenAIPaths = field(default_factory=OpenAIPaths.from_env)

    @classmethod
    def from_config(cls, config: ServerConfig, inflight: InflightBytes) -> "Intake":
        """Give one with the limits of a server.

        Args:
            config: The limits.
            inflight: What the requests of all wires have.
        """
        return cls(
            max_request_bytes=config.max_request_bytes,
            header_timeout_s=config.header_timeout_s,
            body_timeout_s=config.body_timeout_s,
            send_timeout_s=config.send_timeout_s,
            refusals=QuickRefusals(log_requests=config.enable_latency_logging),
            inflight=inflight,
        )

    def error_body(self, target: bytes, status: int, error: str) -> bytes:
        """Give the body of the answer to a request that a connection refuses.

        Args:
            target: Of the request; empty where it has not come.
            status: The status.
            error: What is wrong.
        """
        if self.openai_paths.include(target):
            return error_body(status, error)
        return orjson.dumps({"error": error})

    def check(self, n_bytes: int) -> None:
        """Compare the length of one body with what it may have.

        Raises:
            RequestTooLarge: It has more.
        """
        if n_bytes > self.max_request_bytes:
            raise RequestTooLarge(
                f"the body is larger than {self.max_request_bytes} bytes (--max_request_bytes)"
            )
