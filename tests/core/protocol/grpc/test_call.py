"""What is counted of one call over gRPC."""

import asyncio
from dataclasses import dataclass

import pytest
from prometheus_client import REGISTRY

from kserve.metrics import AnswerMetrics
from kserve.protocol.grpc.call import Call


@dataclass
class Context:
    """Has so many seconds left."""

    left_s: float | None

    def time_remaining(self) -> float | None:
        return self.left_s


def _counted(status: str) -> float:
    labels = {"model_name": "call", "protocol": "grpc", "status": status}
    return REGISTRY.get_sample_value("kserve_requests_total", labels) or 0


@pytest.mark.parametrize(
    ("left_s", "status"),
    [
        pytest.param(-1, "DEADLINE_EXCEEDED", id="our deadline has passed"),
        pytest.param(0.04, "DEADLINE_EXCEEDED", id="the clients clock is ahead by its way"),
        pytest.param(0.06, "CANCELLED", id="before the deadline"),
        pytest.param(None, "CANCELLED", id="no deadline"),
    ],
)
def test_a_cancelled_call_is_late_if_its_deadline_is_at_hand(
    left_s: float | None, status: str
) -> None:
    before = _counted(status)

    with pytest.raises(asyncio.CancelledError), Call(Context(left_s), AnswerMetrics("call"), False):
        raise asyncio.CancelledError

    assert _counted(status) == before + 1
