"""Installs what `requirements.txt` asks for into a folder of the server's own.

The folder comes last on `sys.path`, and what the server runs on is never replaced: its versions are
constraints. So the installer is first asked for a plan, which leaves out what is there, and then
installs that, without looking for dependencies again.
"""

import atexit
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

import orjson
from packaging.utils import canonicalize_name

from kserve.errors import ModelLoadError
from kserve.logging import logger
from pythonserver.requirements import OWN_NAMES, Lack, Requirements, Wanted

# uv's plan: " + name==1.0", or " + name @ file:///...".
_PLANNED: Final = re.compile(r"^ [+~] ([\w.-]+)(==| @ )(\S+)")

# What an installer's last words are for an error.
_LAST_LINES: Final = 12

_running: "set[subprocess.Popen[str]]" = set()


def install(path: Path, requirements: Requirements, lacks: Sequence[Lack]) -> None:
    """Install what is not there, and make it importable; blocks.

    Args:
        path: The `requirements.txt`, for texts.
        requirements: What it says.
        lacks: What of it is not there.

    Raises:
        ModelLoadError: Another version is there; there is no installer; or it failed.
    """
    _refuse_conflicts(path, lacks)
    installer = _find_installer(path)
    logger.info(
        "%s: installing %s with %s",
        path,
        ", ".join(lack.wanted.line for lack in lacks),
        installer.name,
    )
    with tempfile.TemporaryDirectory(prefix="pythonserver-plan-") as folder:
        plan = installer.plan(path, requirements, Path(folder))
        planned = [line for name, line in plan.items() if name not in OWN_NAMES]
        if planned:
            lines = _lines(plan, requirements)
            installer.install(path, _write(Path(folder) / "plan.txt", lines), target_folder())
    importlib.invalidate_caches()
    logger.info("%s: installed %s", path, ", ".join(planned) or "nothing that was not there")


@cache
def target_folder() -> str:
    """Give the folder that packages are installed into; it is the last on `sys.path`."""
    folder = tempfile.mkdtemp(prefix="pythonserver-packages-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.path.append(folder)
    return folder


def _refuse_conflicts(path: Path, lacks: Sequence[Lack]) -> None:
    """Refuse what could only be met by replacing what is there."""
    conflicts = [lack for lack in lacks if lack.installed is not None]
    if not conflicts:
        return
    own = {canonicalize_name(d.name) for d in distributions(path=[target_folder()])}
    texts = []
    for lack in conflicts:
        where = (
            "was installed for a model of this process, which would have to start anew"
            if lack.wanted.name in own
            else "is what the server runs on"
        )
        texts.append(
            f"{lack.wanted.line} is asked for, {lack.wanted.name} {lack.installed} {where}"
        )
    raise ModelLoadError(f"{path}: versions conflict: {'; '.join(texts)}")


class _Installer:
    """A program that makes a plan, and installs it.

    Args:
        name: Its name, for the log.
        command: How it is told to install.
    """

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self._command = command

    def plan(self, path: Path, requirements: Requirements, folder: Path) -> dict[str, str]:
        """Give what would be installed beside what is there, as `name==version` by name."""
        wanted = _write(folder / "wanted.txt", _lines(None, requirements))
        limits = _write(folder / "limits.txt", _constraints(requirements))
        # Nothing is changed, so a Python that the system manages may be asked too.
        return self._plan(
            path,
            [*self._command, "--dry-run", "--break-system-packages", "-r", wanted, "-c", limits],
            folder / "report.json",
        )

    def install(self, path: Path, plan: str, target: str) -> None:
        """Install a plan, and no more, into a folder."""
        _run(path, [*self._command, "--no-deps", "--target", target, "-r", plan])

    def _plan(self, path: Path, command: list[str], report: Path) -> dict[str, str]:
        raise NotImplementedError


class _Uv(_Installer):
    def _plan(self, path: Path, command: list[str], report: Path) -> dict[str, str]:
        planned = filter(None, map(_PLANNED.match, _run(path, command)))
        return {canonicalize_name(m[1]): "".join(m.groups()) for m in planned}


class _Pip(_Installer):
    def _plan(self, path: Path, command: list[str], report: Path) -> dict[str, str]:
        _run(path, [*command, "--report", str(report)])
        planned = [item["metadata"] for item in orjson.loads(report.read_bytes())["install"]]
        return {
            canonicalize_name(item["name"]): f"{item['name']}=={item['version']}"
            for item in planned
        }


def find_uv() -> str | None:
    """Give the path of uv, on `PATH` or beside Python; None where it is not there."""
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if beside.is_file() else None)


def _find_installer(path: Path) -> _Installer:
    program = find_uv()
    if program is not None:
        return _Uv("uv", program, "pip", "install", "--python", sys.executable)
    if importlib.util.find_spec("pip") is not None:
        command = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
        return _Pip("pip", *command, "install")
    raise ModelLoadError(f"{path}: neither uv nor pip is there to install what it asks for")


def _constraints(requirements: Requirements) -> list[str]:
    """Give the versions that are there, and what the file's own constraints say."""
    there = {
        canonicalize_name(found.name): f"{found.name}=={found.version}" for found in distributions()
    }
    own = [limit.line for limit in requirements.constraints if limit.name not in there]
    return [line for name, line in there.items() if name not in OWN_NAMES] + own


def _lines(plan: dict[str, str] | None, requirements: Requirements) -> list[str]:
    """Give the lines of a file for the installer: all that is wanted, or what was planned of it."""
    by_name = {wanted.name: wanted for wanted in requirements.wanted}
    if plan is None:
        lines = [_with_hashes(wanted.line, wanted) for wanted in requirements.wanted]
    else:
        lines = [_planned(name, line, by_name.get(name)) for name, line in plan.items()]
        lines = [line for line in lines if line]
    return [*requirements.options, *lines]


def _planned(name: str, line: str, wanted: Wanted | None) -> str:
    if name in OWN_NAMES:
        return ""
    if wanted is None:
        return line
    is_placed = wanted.requirement is not None and wanted.requirement.url is not None
    is_file = "/" in wanted.line and not is_placed
    return _with_hashes(wanted.line if is_placed or is_file else line, wanted)


def _with_hashes(line: str, wanted: Wanted) -> str:
    return " ".join([line, *(f"--hash={each}" for each in wanted.hashes)])


def _write(path: Path, lines: Sequence[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def _run(path: Path, command: Sequence[str]) -> list[str]:
    """Run an installer, log what it says as it comes, and give it line by line.

    Raises:
        ModelLoadError: It failed; the text holds its last lines.
    """
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "PIP_PROGRESS_BAR": "off"},
    )
    _running.add(process)
    with process:
        assert process.stdout is not None
        for line in filter(None, map(str.rstrip, process.stdout)):
            logger.info("%s: %s", path.name, line.strip())
            lines.append(line)
    _running.discard(process)
    if process.returncode != 0:
        said = " ".join(line.strip() for line in lines[-_LAST_LINES:])
        raise ModelLoadError(f"{path}: installing failed: {said}")
    return lines


def _end_running() -> None:
    """End the installers whose server ends first."""
    for process in list(_running):
        process.kill()


atexit.register(_end_running)
