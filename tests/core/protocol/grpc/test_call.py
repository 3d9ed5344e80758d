"""How one request over gRPC is counted."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import REGISTRY

from kserve.metrics import AnswerMetrics
from kserve.protocol.grpc.call import Call


def cancelled(context: Any, name: str) -> dict[str, float | None]:
    """Cancel a call, and give how many of each status are counted."""
    with pytest.raises(asyncio.CancelledError), Call(context, AnswerMetrics(name), log=False):
        raise asyncio.CancelledError
    labels = {"model_name": name, "protocol": "grpc"}
    return {
        status: REGISTRY.get_sample_value("kserve_requests_total", {**labels, "status": status})
        for status in ("CANCELLED", "DEADLINE_EXCEEDED")
    }


@pytest.mark.parametrize(
    ("started_s", "now_s", "left_s", "is_late"),
    [
        pytest.param(0.0, 5.0, None, False, id="no deadline"),
        pytest.param(0.0, 5.0, 4.0, False, id="half of the time left"),
        pytest.param(0.0, 9.5, 0.5, False, id="a twentieth left"),
        pytest.param(0.0, 9.9, 0.1, True, id="less than the rounding left"),
        pytest.param(0.0, 0.1, 0.01, True, id="a moment left"),
        pytest.param(0.0, 0.1, 0.05, False, id="more than a moment left"),
        pytest.param(0.0, 5.0, 0.0, True, id="none left"),
    ],
)
def test_a_call_that_its_client_takes_back_at_its_deadline_has_exceeded_it(
    started_s: float,
    now_s: float,
    left_s: float | None,
    is_late: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    times = iter([started_s, now_s])
    monkeypatch.setattr("kserve.protocol.grpc.call.perf_counter", lambda: next(times))
    context = Mock(time_remaining=Mock(return_value=left_s))

    counted = cancelled(context, request.node.name)

    expected = "DEADLINE_EXCEEDED" if is_late else "CANCELLED"
    assert {status for status, n in counted.items() if n} == {expected}
