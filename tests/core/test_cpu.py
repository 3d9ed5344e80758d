"""The number of CPUs, by affinity and by cgroup quota."""

from pathlib import Path

import pytest

from kserve import cpu


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8, id="no cgroup"),
        pytest.param({"cpu.max": "max 100000\n"}, 8, id="v2 without a quota"),
        pytest.param({"cpu.max": "200000 100000\n"}, 2, id="v2"),
        pytest.param({"cpu.max": "250000 100000\n"}, 2, id="v2 part of a cpu"),
        pytest.param({"cpu.max": "50000 100000\n"}, 1, id="v2 less than one cpu"),
        pytest.param({"cpu.max": "1600000 100000\n"}, 8, id="v2 more than the affinity"),
        pytest.param({"cpu.max": "100000 0\n"}, 8, id="v2 without a period"),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3, id="v1"
        ),
        pytest.param(
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
            id="v1 joint controller",
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            8,
            id="v1 without a quota",
        ),
    ],
)
def test_count_is_the_least_of_affinity_and_quota(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    assert cpu.cpu_count(tmp_path) == expected


def test_count_does_without_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 5)

    assert cpu.cpu_count(tmp_path) == 5
