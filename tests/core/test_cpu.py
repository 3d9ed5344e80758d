"""The number of CPUs, by affinity and by cgroup quota."""

from pathlib import Path

import pytest

from kserve import cpu


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


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
    write(tmp_path, files)

    assert cpu.cpu_count(tmp_path, tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        pytest.param(
            "0::/system.slice/a.service\n",
            {"system.slice/a.service/cpu.max": "200000 100000\n"},
            2,
            id="v2 its own",
        ),
        pytest.param(
            "0::/pod/container\n",
            {"pod/cpu.max": "300000 100000\n", "pod/container/cpu.max": "max 100000\n"},
            3,
            id="v2 that around it",
        ),
        pytest.param(
            "0::/pod/container\n",
            {"pod/cpu.max": "300000 100000\n", "pod/container/cpu.max": "200000 100000\n"},
            2,
            id="v2 the least of both",
        ),
        pytest.param(
            "0::/pod/container\n",
            {"pod/cpu.max": "200000 100000\n", "pod/container/cpu.max": "300000 100000\n"},
            2,
            id="v2 the least is outside",
        ),
        pytest.param(
            "0::/pod\n",
            {"pod/cpu.max": "max 100000\n", "other/cpu.max": "100000 100000\n"},
            8,
            id="v2 of another process",
        ),
        pytest.param("0::/\n", {"cpu.max": "200000 100000\n"}, 2, id="v2 a namespace's root"),
        pytest.param(
            "0::/../other\n",
            {"cpu.max": "200000 100000\n", "../other/cpu.max": "100000 100000\n"},
            2,
            id="v2 outside of the namespace",
        ),
        pytest.param(
            "0::/host/pod\n", {"cpu.max": "200000 100000\n"}, 2, id="v2 a path that is not there"
        ),
        pytest.param(
            "12:cpuset:/\n4:cpu,cpuacct:/pod/a\n1:name=systemd:/b\n0::/b\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/pod/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/pod/a/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/pod/a/cpu.cfs_period_us": "100000\n",
            },
            3,
            id="v1 that around it",
        ),
        pytest.param(
            "1:cpu:/a\n",
            {
                "cpu/a/cpu.cfs_quota_us": "200000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
            },
            2,
            id="v1 its own",
        ),
        pytest.param(
            "1:cpu:/kubepods/pod/a\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
            id="v1 a path of the host",
        ),
        pytest.param(
            "1:cpuset:/a\n",
            {
                "cpu/a/cpu.cfs_quota_us": "200000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
            },
            8,
            id="v1 another controller's path",
        ),
        pytest.param(
            "no cgroups\n", {"cpu.max": "200000 100000\n"}, 2, id="paths that cannot be read"
        ),
    ],
)
def test_count_knows_the_cgroup_of_the_process_and_those_around_it(
    tmp_path: Path, own: str, files: dict[str, str], expected: int
) -> None:
    write(tmp_path, {"own": own, **{f"cgroup/{name}": text for name, text in files.items()}})

    assert cpu.cpu_count(tmp_path / "cgroup", tmp_path / "own") == expected


def test_count_does_without_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 5)

    assert cpu.cpu_count(tmp_path, tmp_path / "own") == 5


def test_as_many_threads_as_cpus_are_asked_for_by_minus_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "cpu_count", lambda: 5)

    assert [cpu.thread_count(n) for n in (1, 3, -1)] == [1, 3, 5]
