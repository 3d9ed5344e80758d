"""The one line that an inference request leaves in the log."""

from kserve.listing import shortened
from kserve.logging import trace_logger


def log_request(
    request_id: str, model_name: str, protocol: str, status: int, duration_s: float
) -> None:
    """Write the line.

    Args:
        request_id: As in the answer's `x-request-id`.
        model_name: As in the route.
        protocol: `v1` or `v2`.
        status: What is counted.
        duration_s: From the head of the request to the end of the answer.
    """
    fields = {
        "request_id": request_id,
        "model": shortened(model_name),
        "protocol": protocol,
        "status": status,
        "duration_ms": round(duration_s * 1000, 3),
    }
    trace_logger.info("request", extra={"fields": fields})
