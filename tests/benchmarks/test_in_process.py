from benchmarks.in_process import run_in_loop


def test_counts_the_calls_of_a_loop_after_its_warm_up() -> None:
    calls = []

    result = run_in_loop(lambda: calls.append(sum(range(1000))), 0.01, 0.05)

    assert 0 < len(result.latencies_s) < len(calls)
    assert result.latencies_s == sorted(result.latencies_s)
    assert sum(result.latencies_s) >= 0.05
    assert result.rate == len(result.latencies_s) / sum(result.latencies_s)
    assert (result.failures, result.client_cpu) == ({}, 0.0)
    assert result.server_cpu > 0
