"""Calls a model in a loop: what there is without a server."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.closed_loop import Result


def run_in_loop(call: Callable[[], Any], warm_up_s: float, duration_s: float) -> Result:
    """Call one thing again and again, and measure as a load on a server does.

    Args:
        call: What is called.
        warm_up_s: Seconds that are not counted.
        duration_s: Seconds that are.
    """
    _call_for(call, warm_up_s)
    cpu_s = time.process_time()
    latencies_s = _call_for(call, duration_s)
    elapsed_s = sum(latencies_s)
    return Result(
        rate=len(latencies_s) / elapsed_s,
        latencies_s=sorted(latencies_s),
        failures=Counter(),
        server_cpu=(time.process_time() - cpu_s) / elapsed_s,
        client_cpu=0.0,
    )


def _call_for(call: Callable[[], Any], duration_s: float) -> list[float]:
    """Give the seconds of each call, one after the other."""
    latencies_s = []
    started = now = time.perf_counter()
    while now - started < duration_s:
        call()
        before, now = now, time.perf_counter()
        latencies_s.append(now - before)
    return latencies_s
