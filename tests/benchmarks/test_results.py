from collections import Counter

from benchmarks.closed_loop import Result
from benchmarks.footprint import Footprint
from benchmarks.results import Row, footprints, machine, our_versions, page, table


def result(rate: float, latencies_s: list[float], failures: dict[str, int] | None = None) -> Result:
    return Result(rate, latencies_s, Counter(failures or {}), server_cpu=0.5, client_cpu=0.25)


def test_a_row_is_the_median_of_its_runs() -> None:
    runs = [result(90, [0.001]), result(1200, [0.002], {"500": 2}), result(1000, [0.003, 0.004])]

    lines = table([Row("SVC", "ours", runs, ratio=8.25, wanted=8)]).splitlines()

    assert lines[2] == (
        "| SVC | ours | 1,000 | 90.0 to 1,200 | 2.0 | 2.0 | 2 500 | 0.50 | 2,000 | 0.25 | 8.2 | 8 |"
    )


def test_what_is_not_compared_has_no_ratio() -> None:
    lines = table([Row("SVC", "floor", [result(50, [0.001])])]).splitlines()

    assert lines[2] == (
        "| SVC | floor | 50.0 | 50.0 to 50.0 | 1.0 | 1.0 | 0 | 0.50 | 100 | 0.25 |  |  |"
    )


def test_a_busy_machine_shows_where_neither_side_had_a_cpu() -> None:
    quiet = Result(50, [0.001], Counter(), server_cpu=0.9, client_cpu=0.25)
    at_the_clients_limit = Result(50, [0.001], Counter(), server_cpu=0.6, client_cpu=0.95)

    assert Row("SVC", "ours", [quiet, result(50, [0.001])]).was_disturbed
    assert not Row("SVC", "ours", [quiet, quiet]).was_disturbed
    assert not Row("SVC", "ours", [at_the_clients_limit]).was_disturbed


def test_the_page_has_the_table_and_the_notes() -> None:
    rows = [Row("SVC", "floor", [result(50, [0.001])])]

    sizes = [Footprint("xgbserver", 1234, 0.5, 1.25)]

    text = page(rows, sizes, ["64 connections", "machine: one"])

    assert text.startswith("# Results\n\nWritten by `benchmarks/compare`")
    assert f"\n{table(rows)}\n" in text
    assert text.endswith(f"\n{footprints(sizes)}\n- 64 connections\n- machine: one\n")
    assert footprints(sizes).endswith("| xgbserver | 1,234 | 0.50 | 1.25 | 0.75 |\n")


def test_the_notes_know_the_machine_and_the_versions() -> None:
    assert " CPUs, " in machine()
    assert set(our_versions()) == {
        *("Python", "scikit-learn", "xgboost-cpu", "lightgbm", "onnxruntime", "tensorflow-cpu"),
        *("numpy", "uvicorn", "uvloop", "grpcio"),
    }
