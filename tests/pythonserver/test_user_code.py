"""Where user code runs, and what is shown of its errors."""

import asyncio
import os
import threading
import traceback
from pathlib import Path

import pytest

from kserve.errors import ModelLoadError, UserCodeError
from pythonserver import make_model
from pythonserver.user_code import UserCode


def fail(tmp_path: Path, **files: str) -> UserCodeError:
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(UserCodeError) as caught:
        make_model("m", str(tmp_path))
    return caught.value


def shown(error: UserCodeError) -> str:
    return "".join(traceback.format_exception(error.error))


def test_the_traceback_is_that_of_the_users_lines(tmp_path: Path) -> None:
    error = fail(
        tmp_path,
        model="import helpers\nhelpers.read()\n",
        helpers="import pathlib\ndef read():\n    return pathlib.Path('none').read_text()\n",
    )

    frames = traceback.extract_tb(error.error.__traceback__)
    assert [(Path(f.filename).name, f.lineno, f.name) for f in frames] == [
        ("model.py", 2, "<module>"),
        ("helpers.py", 3, "read"),
    ]
    assert str(error) == (
        f"{tmp_path}/helpers.py, line 3: FileNotFoundError: "
        "[Errno 2] No such file or directory: 'none'"
    )


def test_the_traceback_of_a_cause_is_trimmed_too(tmp_path: Path) -> None:
    error = fail(
        tmp_path,
        model="import json\ntry:\n    json.loads('{')\nexcept ValueError as e:\n"
        "    raise RuntimeError('bad settings') from e\n",
    )

    files = {line.strip() for line in shown(error).splitlines() if line.startswith("  File")}
    assert files == {
        f'File "{tmp_path}/model.py", line 3, in <module>',
        f'File "{tmp_path}/model.py", line 5, in <module>',
    }
    assert str(error) == f"{tmp_path}/model.py, line 5: RuntimeError: bad settings"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param("x = (", "line 1: SyntaxError: '(' was never closed", id="syntax"),
        pytest.param("\nimport not_there", "line 2: ModuleNotFoundError: No module", id="import"),
        pytest.param("import sys\nsys.exit(4)", "line 2: SystemExit: 4", id="exit"),
        pytest.param(
            "class OwnError(Exception): pass\nraise OwnError('no')",
            "line 2: model.OwnError: no",
            id="its own",
        ),
    ],
)
def test_the_reason_names_the_line(tmp_path: Path, code: str, reason: str) -> None:
    error = fail(tmp_path, model=code)

    assert str(error).startswith(f"{tmp_path}/model.py, {reason}")
    assert "/pythonserver/" not in shown(error)


def test_an_error_of_the_servers_kind_is_raised_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from kserve.errors import ModelLoadError\nraise ModelLoadError('weights are missing')"
    )

    with pytest.raises(ModelLoadError, match=r"^weights are missing$"):
        make_model("m", str(tmp_path))


def test_code_runs_in_its_directory_and_the_process_returns(tmp_path: Path) -> None:
    before = os.getcwd()
    code = UserCode(tmp_path, "package", is_alone=False)

    async def where() -> str:
        await asyncio.sleep(0)
        return os.getcwd()

    assert code.run(os.getcwd) == str(tmp_path)
    assert os.getcwd() == before
    assert asyncio.run(_await(code.run(where))) == str(tmp_path)
    assert os.getcwd() == before


def test_directories_take_turns(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    is_inside, may_leave = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        is_inside.set()
        may_leave.wait(10)
        order.append(os.path.basename(os.getcwd()))

    def second() -> None:
        order.append(os.path.basename(os.getcwd()))

    threads = [
        threading.Thread(target=UserCode(tmp_path / name, "p", is_alone=False).run, args=(run,))
        for name, run in (("a", first), ("b", second))
    ]
    threads[0].start()
    is_inside.wait(10)
    threads[1].start()
    may_leave.set()
    for thread in threads:
        thread.join()

    assert order == ["a", "b"]


def test_the_only_directory_stays_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")

    UserCode(tmp_path, "package", is_alone=True).run(lambda: None)

    assert os.getcwd() == str(tmp_path)


async def _await(awaitable: object) -> object:
    return await awaitable  # type: ignore[misc]
