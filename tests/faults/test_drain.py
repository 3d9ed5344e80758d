"""Servers are replaced under load, and no request fails."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.rollout import Rollout

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("args", "poll_s"),
    [
        pytest.param(["--drain_delay_s", "2"], 0.2, id="times shortened"),
        # The default, and what Kubernetes and proxies poll at the most often.
        pytest.param(["--drain_delay_s", "5"], 1.0, id="real times", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(240)
async def test_no_request_fails_while_two_servers_are_replaced_five_times(
    rollout_class: "type[Rollout]", args: list[str], poll_s: float
) -> None:
    rollout = rollout_class(args, poll_s)

    async with rollout.running():
        for _ in range(5):
            await rollout.replace()

    assert rollout.failures == []
    assert rollout.exit_codes == [0] * 7


async def test_without_a_delay_requests_fail(rollout_class: "type[Rollout]") -> None:
    rollout = rollout_class(["--drain_delay_s", "0"], 0.2)

    async with rollout.running():
        # Each wire's requests take turns: of two in a row one finds the server gone.
        await rollout.end_unseen(4)

    failed = {failure.split(": ")[0] for failure in rollout.failures}
    assert {wire for wire in ("rest", "grpc") if any(wire in kind for kind in failed)} == {
        "rest",
        "grpc",
    }
