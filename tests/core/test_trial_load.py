import os
import subprocess
import sys
from pathlib import Path

import pytest

from kserve import trial_child
from kserve.errors import ModelLoadError
from kserve.trial_load import TrialLoad, find_library

ADVICE = "save it again"


def trial(tmp_path: Path, body: str, timeout_s: float | None = None, **options: bool) -> TrialLoad:
    script, artifact = tmp_path / "script.py", tmp_path / "model.bin"
    script.write_text(f"import os, sys, time\n\ndef load(library, artifact):\n    {body}\n")
    artifact.touch()
    return TrialLoad(script, tmp_path / "library.so", artifact, timeout_s=timeout_s, **options)


def outcome(trial: TrialLoad) -> str:
    with trial, pytest.raises(ModelLoadError) as caught:
        trial.check(ADVICE)
    return str(caught.value)


def test_a_load_that_succeeds_says_nothing(tmp_path: Path) -> None:
    expected = [str(tmp_path / "library.so"), str(tmp_path / "model.bin")]

    with trial(tmp_path, f"print('noise'); assert [library, artifact] == {expected}") as running:
        running.check(ADVICE)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param("raise ValueError('no  such\\ntree')", "no such tree", id="an error"),
        pytest.param("os.abort()", "it ends its process with SIGABRT", id="an abort"),
        pytest.param("os._exit(3)", "a trial ended with exit code 3", id="an exit"),
        pytest.param(
            "os.kill(os.getpid(), 9)",
            "a trial was killed, as processes are when memory runs out",
            id="a kill",
        ),
    ],
)
def test_a_load_that_fails_is_a_load_error(tmp_path: Path, body: str, reason: str) -> None:
    assert outcome(trial(tmp_path, body)) == (
        f"{tmp_path / 'model.bin'}: cannot be loaded ({reason}): {ADVICE}"
    )


def test_a_load_that_hangs_is_a_load_error(tmp_path: Path) -> None:
    hanging = trial(tmp_path, "time.sleep(3600)", timeout_s=0.2)

    assert "a trial has not ended after 0 s" in outcome(hanging)
    assert hanging._process is not None and hanging._process.returncode == -9


def test_a_trial_that_nobody_asks_for_ends_with_its_block(tmp_path: Path) -> None:
    with trial(tmp_path, "time.sleep(3600)") as running:
        assert running._process is not None

    assert running._process.returncode == -9


@pytest.mark.parametrize(("is_bare", "expected"), [(True, False), (False, True)])
def test_a_bare_trial_has_no_packages(tmp_path: Path, is_bare: bool, expected: bool) -> None:
    body = (
        "import logging; logging.DEBUG; from importlib.util import find_spec; "
        "raise ValueError(bool(find_spec('numpy')))"
    )

    assert f"({expected})" in outcome(trial(tmp_path, body, is_bare=is_bare))


def test_without_another_process_a_model_is_loaded_without_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))

    with trial(tmp_path, "os.abort()") as running:
        running.check(ADVICE)

    assert "is loaded without a trial: no process can be started" in caplog.text


def test_a_trial_ends_before_the_server_does_where_memory_runs_out(tmp_path: Path) -> None:
    body = "raise ValueError(open('/proc/self/oom_score_adj').read())"

    assert "(1000)" in outcome(trial(tmp_path, body))


def test_a_trial_takes_no_more_memory_than_a_model_may(tmp_path: Path) -> None:
    assert "(MemoryError)" in outcome(trial(tmp_path, "bytearray(2 << 30)"))
    with trial(tmp_path, "bytearray(64 << 20)") as running:
        running.check(ADVICE)


def test_a_trial_ends_with_its_server(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, time\n\ndef load(*_):\n    os.write(3, b'x')\n    time.sleep(3600)\n"
    )
    code = (
        "import os, subprocess, sys\n"
        "os.dup2(1, 3)\n"
        "subprocess.Popen(sys.argv[1:], pass_fds=[3])\n"
        # Once the load has begun.
        "sys.stdin.read()"
    )
    script = str(tmp_path / "script.py")
    command = [sys.executable, "-I", "-S", trial_child.__file__, script]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *command, "library", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None and os.read(server.stdout.fileno(), 1) == b"x"

    server.kill()

    # The end of the pipe: the trial had it, too.
    assert server.communicate(timeout=20)[0] == b""


def test_a_library_is_found_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "fake" / "lib" / "libfake.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "fake" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)

    assert find_library("fake", "libfake") == library
    for package, name in (("fake", "libother"), ("no_such_package", "libfake")):
        with pytest.raises(ModelLoadError, match=f"{package} is not installed, or has no {name}"):
            find_library(package, name)
