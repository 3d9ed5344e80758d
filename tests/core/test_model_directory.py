"""What a model directory holds, and when it has changed."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kserve.errors import ModelLoadError, ModelMissingError
from kserve.model_directory import (
    Contents,
    classify,
    find_versions,
    fingerprint,
    wait_until_filled,
)

pytestmark = pytest.mark.anyio

SUFFIXES = (".num",)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def fill(directory: Path, *paths: str) -> Path:
    """Make files, and directories where a path ends in a slash."""
    for path in paths:
        target = directory / path
        if path.endswith("/"):
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("1")
    return directory


@pytest.mark.parametrize(
    ("paths", "contents"),
    [
        pytest.param(["m.num"], Contents.ARTIFACT, id="an artifact"),
        pytest.param(["m.num", "1/", "iris/"], Contents.ARTIFACT, id="an artifact hides the rest"),
        pytest.param(["1/", "02/", "README"], Contents.VERSIONS, id="numbers"),
        pytest.param(["iris/", "1b/"], Contents.MODELS, id="names"),
        pytest.param([".git/", "..data/", "lost+found/", "1/"], Contents.VERSIONS, id="hidden"),
    ],
)
def test_says_what_a_directory_holds(tmp_path: Path, paths: list[str], contents: Contents) -> None:
    assert classify(fill(tmp_path, *paths), SUFFIXES) is contents


@pytest.mark.parametrize(
    ("paths", "error", "text"),
    [
        pytest.param(
            ["1/", "iris/", "2/"],
            ModelLoadError,
            "expected versions (directories named by a number) or models (other names), "
            "found both: 1, 2, iris",
            id="mixture",
        ),
        pytest.param(
            [".1/"],
            ModelMissingError,
            "no model file, expected exactly one of *.num; found nothing",
            id="nothing",
        ),
        pytest.param(
            ["a.num", "b.num"],
            ModelLoadError,
            "More than one model file is detected, expected exactly one of *.num; "
            "found a.num, b.num",
            id="two artifacts",
        ),
    ],
)
def test_says_what_is_wrong_with_a_directory(
    tmp_path: Path, paths: list[str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        classify(fill(tmp_path, *paths), SUFFIXES)

    assert str(caught.value) == f"{tmp_path}: {text}"


def test_any_file_is_an_artifact_where_no_suffix_is_known(tmp_path: Path) -> None:
    fill(tmp_path, "a/any", "b/1/any")

    found = [classify(tmp_path / name, ()) for name in ("a", "b")]

    assert found == [Contents.ARTIFACT, Contents.VERSIONS]


def test_gives_versions_by_number_newest_first(tmp_path: Path) -> None:
    fill(tmp_path, "9/", "10/", "0002/")

    versions = find_versions(tmp_path, SUFFIXES)

    assert list(versions.items()) == [
        ("10", tmp_path / "10"),
        ("9", tmp_path / "9"),
        ("2", tmp_path / "0002"),
    ]


@pytest.mark.parametrize("paths", [["m.num", "1/"], ["README"], ["iris/"]])
def test_a_directory_without_versions_is_the_one_there_is(tmp_path: Path, paths: list[str]) -> None:
    assert find_versions(fill(tmp_path, *paths), SUFFIXES) == {"": tmp_path}


def test_one_number_in_two_spellings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        find_versions(fill(tmp_path, "1/", "01/"), SUFFIXES)

    assert str(caught.value) == f"{tmp_path}: found a version twice: 01, 1"


def link(target: Path, name: Path) -> None:
    name.symlink_to(target)


def relink(target: Path, name: Path) -> None:
    """Turn a link as the kubelet does: a new one, renamed over it."""
    fresh = name.with_name("..tmp")
    fresh.symlink_to(target)
    fresh.rename(name)


def touch_later(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def rewrite(directory: Path) -> None:
    (directory / "a" / "m.num").write_text("longer")


def replace_same(directory: Path) -> None:
    before = (directory / "a" / "m.num").stat()
    (directory / "fresh").write_text("1")
    os.utime(directory / "fresh", ns=(before.st_atime_ns, before.st_mtime_ns))
    (directory / "fresh").rename(directory / "a" / "m.num")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(rewrite, id="another size"),
        pytest.param(lambda root: touch_later(root / "a" / "m.num"), id="another time"),
        pytest.param(replace_same, id="another inode"),
        pytest.param(lambda root: fill(root, "a/more"), id="another file"),
        pytest.param(lambda root: (root / "a" / "m.num").unlink(), id="a file is gone"),
        pytest.param(
            lambda root: (root / "a" / "m.num").rename(root / "a" / "n.num"), id="another name"
        ),
    ],
)
def test_a_fingerprint_changes_with_the_files(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    fill(tmp_path, "a/m.num")
    before = fingerprint(tmp_path)

    change(tmp_path)

    assert fingerprint(tmp_path) != before


def test_a_fingerprint_follows_the_data_link_of_kubernetes(tmp_path: Path) -> None:
    fill(tmp_path, "..2026_01/m.num", "..2026_02/m.num")
    link(Path("..2026_01"), tmp_path / "..data")
    link(Path("..data/m.num"), tmp_path / "m.num")
    before = fingerprint(tmp_path)

    relink(Path("..2026_02"), tmp_path / "..data")

    assert [entry[0] for entry in before] == ["m.num"]
    assert fingerprint(tmp_path) != before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: None, id="nothing"),
        pytest.param(lambda root: fill(root, ".hidden"), id="a hidden file"),
        pytest.param(lambda root: fill(root, "a/__pycache__/m.pyc"), id="bytecode"),
        pytest.param(lambda root: link(root / "none", root / "broken"), id="a broken link"),
        pytest.param(lambda root: link(root, root / "circle"), id="a link to itself"),
    ],
)
def test_a_fingerprint_stays_while_nothing_counts(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    fill(tmp_path, "a/m.num")
    before = fingerprint(tmp_path)

    change(tmp_path)

    assert fingerprint(tmp_path) == before
    assert fingerprint(tmp_path / "none") == ()


async def test_waits_for_a_directory_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    monkeypatch.setattr("kserve.model_directory._WAIT_POLL_S", 0.01)
    monkeypatch.setattr("kserve.model_directory._WAIT_LOG_S", 0.0)
    models = tmp_path / "models"

    waiting = asyncio.ensure_future(wait_until_filled(models, 10))
    await said(caplog, f"Waiting for the model directory {models}: there is no such directory")
    models.mkdir()
    await said(caplog, f"Waiting for the model directory {models}: it is empty")
    was_done = waiting.done()
    fill(models, "m.num")
    await waiting

    assert not was_done


async def said(caplog: Any, start: str) -> None:
    async with asyncio.timeout(10):
        while not any(r.message.startswith(start) for r in caplog.records):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("timeout_s", [0, 0.02])
async def test_stops_waiting_when_the_time_is_over(tmp_path: Path, timeout_s: float) -> None:
    await wait_until_filled(tmp_path / "none", timeout_s)
