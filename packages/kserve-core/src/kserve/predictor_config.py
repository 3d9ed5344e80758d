"""Where a transformer's or explainer's predictor is, and how to talk to it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PredictorConfig:
    """The predictor behind a transformer, as KServe's controller passes it.

    Attributes:
        predictor_host: Host, with port where it is not the scheme's; None without a predictor.
        predictor_protocol: `v1`, `v2` or `grpc-v2`.
        predictor_use_ssl: Whether to use https or a secure channel.
        predictor_request_timeout_seconds: Seconds until a call is given up.
        predictor_request_retries: How often a failed call is repeated.
        predictor_health_check: Whether readiness asks the predictor too.
    """

    predictor_host: str | None
    predictor_protocol: str = "v1"
    predictor_use_ssl: bool = False
    predictor_request_timeout_seconds: int = 600
    predictor_request_retries: int = 0
    predictor_health_check: bool = False

    @property
    def protocol(self) -> str:
        """The predictor's protocol."""
        return self.predictor_protocol

    @property
    def timeout(self) -> int:
        """Seconds until a call is given up."""
        return self.predictor_request_timeout_seconds

    @property
    def retries(self) -> int:
        """How often a failed call is repeated."""
        return self.predictor_request_retries

    @property
    def use_ssl(self) -> bool:
        """Whether the connection is secure."""
        return self.predictor_use_ssl

    @property
    def predictor_base_url(self) -> str:
        """Scheme and host."""
        scheme = "https" if self.predictor_use_ssl else "http"
        return f"{scheme}://{self.predictor_host}"
