"""`requirements.txt`: what it asks for, what of it is there, and what is not."""

import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from kserve.errors import ModelLoadError

REQUIREMENTS_FILE: Final = "requirements.txt"

# What serves is there, whatever version of KServe's own SDK a file asks for.
OWN_NAMES: Final = frozenset({"kserve", "kserve-core", "pythonserver"})

# A requirement's own options follow it on its line.
_OPTION: Final = re.compile(r"\s+--[\w-]+(?:[=\s]\s*\S+)?")
_HASH: Final = re.compile(r"--hash[=\s]\s*(\S+)")
_COMMENT: Final = re.compile(r"(^|\s+)#.*$")
_VARIABLE: Final = re.compile(r"\$\{([A-Z0-9_]+)\}")

# Options of a whole file that name a file or a folder.
_PATH_OPTIONS: Final = ("-f", "--find-links")
_INCLUDES: Final = ("-r", "--requirement")
_CONSTRAINTS: Final = ("-c", "--constraint")

# One after the other: models of one process may ask for the same.
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One requirement of a file.

    Attributes:
        line: What an installer reads: the requirement, or an absolute path or an address.
        requirement: The requirement; None where the line does not name a package.
        hashes: `sha256:...`, those that its file may have.
        source: The file and the line that it stands in.
    """

    line: str
    requirement: Requirement | None
    hashes: tuple[str, ...]
    source: str

    @property
    def name(self) -> str:
        """The normalised name of the package; empty where the line does not tell."""
        return canonicalize_name(self.requirement.name) if self.requirement else ""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a file asks for, those that it includes read in.

    Attributes:
        wanted: Its requirements, without those for other machines and those of the server itself.
        constraints: What limits versions without asking for a package.
        options: Its options for the installer, such as `--index-url`, a line each.
    """

    wanted: tuple[Wanted, ...]
    constraints: tuple[Wanted, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lack:
    """A requirement that is not met.

    Attributes:
        wanted: The requirement.
        installed: The version that is there instead; None if there is none.
        reason: What is wrong.
    """

    wanted: Wanted
    installed: str | None
    reason: str


def ensure_installed(path: Path, *, may_install: bool) -> None:
    """See to it that what a file asks for can be imported.

    Args:
        path: The `requirements.txt`.
        may_install: Install what is not there.

    Raises:
        ModelLoadError: The file cannot be read; something is not there and may not be installed;
            there is another version that the server runs on; or the installer failed.
    """
    with _lock:
        requirements = read(path)
        lacks = find_lacks(requirements)
        if not lacks:
            return
        if not may_install:
            listed = "; ".join(f"{lack.wanted.line} ({lack.reason})" for lack in lacks)
            raise ModelLoadError(
                f"{path}: not there: {listed}. Start with --install_requirements, or install them "
                f"where the server runs: pip install -r {path}"
            )
        from pythonserver.installing import install

        install(path, requirements, lacks)
        lacks = [lack for lack in find_lacks(requirements) if lack.wanted.requirement is not None]
        if lacks:
            listed = "; ".join(f"{lack.wanted.line} ({lack.reason})" for lack in lacks)
            raise ModelLoadError(f"{path}: still not there after installing: {listed}")


def read(path: Path) -> Requirements:
    """Read a file as pip and uv do, with the files that it includes.

    Raises:
        ModelLoadError: A file cannot be read, or a line is no requirement.
    """
    reader = _Reader()
    reader.read(path)
    return Requirements(tuple(reader.wanted), tuple(reader.constraints), tuple(reader.options))


def find_lacks(requirements: Requirements) -> list[Lack]:
    """Give what is not met: packages of another version, extras and constraints included."""
    limits = {wanted.name: wanted for wanted in requirements.constraints}
    lacks = []
    for wanted in requirements.wanted:
        lack = _find_lack(wanted, limits.get(wanted.name))
        if lack is not None:
            lacks.append(lack)
    return lacks


def installed(name: str) -> Distribution | None:
    """Give the distribution of a name that can be imported, or None."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _find_lack(wanted: Wanted, limit: Wanted | None) -> Lack | None:
    if wanted.requirement is None:
        return Lack(wanted, None, "whether it is there cannot be told")
    found = installed(wanted.name)
    if found is None:
        return Lack(wanted, None, "not installed")
    for each in (wanted, limit):
        if each and each.requirement and not _fits(each.requirement, found):
            origin = "" if each is wanted else f", {each.source} asks for {each.line}"
            return Lack(wanted, found.version, f"installed: {found.version}{origin}")
    missing = _missing_of_extras(wanted.requirement, found)
    if missing:
        return Lack(wanted, None, f"its extra needs {missing}")
    return None


def _fits(requirement: Requirement, found: Distribution) -> bool:
    return requirement.specifier.contains(found.version, prereleases=True)


def _missing_of_extras(requirement: Requirement, found: Distribution) -> str:
    """Give the first dependency of the extras that is not there, or an empty text."""
    for text in found.requires or ():
        dependency = Requirement(text)
        if dependency.marker is None or dependency.marker.evaluate({"extra": ""}):
            continue
        if any(dependency.marker.evaluate({"extra": extra}) for extra in requirement.extras):
            there = installed(canonicalize_name(dependency.name))
            if there is None or not _fits(dependency, there):
                return str(dependency)
    return ""


class _Reader:
    def __init__(self) -> None:
        self.wanted: list[Wanted] = []
        self.constraints: list[Wanted] = []
        self.options: list[str] = []
        self._read: set[tuple[Path, bool]] = set()

    def read(self, path: Path, *, is_constraints: bool = False) -> None:
        """Read a file, once."""
        key = (path.resolve(), is_constraints)
        if key in self._read:
            return
        self._read.add(key)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as exc:
            raise ModelLoadError(f"{path}: cannot be read: {exc}") from exc
        for number, line in _lines(text):
            if line.startswith("-"):
                self._read_option(path, number, line, is_constraints)
            else:
                self._read_requirement(path, number, line, is_constraints)

    def _read_option(self, path: Path, number: int, line: str, is_constraints: bool) -> None:
        name, value = _split_option(line)
        if name in _INCLUDES or name in _CONSTRAINTS:
            included = path.parent / value
            self.read(included, is_constraints=is_constraints or name in _CONSTRAINTS)
        elif name in ("-e", "--editable"):
            self.wanted.append(Wanted(_located(value, path.parent), None, (), f"{path}:{number}"))
        elif name in _PATH_OPTIONS:
            self.options.append(f"--find-links {_located(value, path.parent)}")
        else:
            self.options.append(line)

    def _read_requirement(self, path: Path, number: int, line: str, is_constraints: bool) -> None:
        hashes = tuple(_HASH.findall(line))
        text = _OPTION.sub("", line).strip()
        source = f"{path}:{number}"
        wanted = _parse(text, hashes, source, path.parent)
        if wanted.requirement is not None:
            marker = wanted.requirement.marker
            if wanted.name in OWN_NAMES or (marker and not marker.evaluate({"extra": ""})):
                return
        (self.constraints if is_constraints else self.wanted).append(wanted)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Give the lines that say something, with their numbers; a backslash joins two."""
    joined, first = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        first = first if joined else number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            joined += line[:-1] + " "
            continue
        said = _COMMENT.sub("", joined + line).strip()
        joined = ""
        if said:
            yield first, _VARIABLE.sub(_value, said)
    if joined.strip():
        yield first, _VARIABLE.sub(_value, joined.strip())


def _value(match: re.Match[str]) -> str:
    # As pip: a variable that is not set stays as it is written.
    return os.environ.get(match[1], match[0])


def _split_option(line: str) -> tuple[str, str]:
    if re.match(r"-[a-z]\S", line):
        return line[:2], line[2:].strip()
    name, _, value = re.sub(r"[=\s]", " ", line, count=1).partition(" ")
    return name, value.strip()


def _parse(text: str, hashes: Sequence[str], source: str, directory: Path) -> Wanted:
    if _is_place(text, directory):
        path = _located(text, directory)
        return Wanted(path, _of_wheel(path), tuple(hashes), source)
    try:
        requirement = Requirement(text)
    except InvalidRequirement as exc:
        reason = str(exc).splitlines()[0]
        raise ModelLoadError(f"{source}: {text!r} is no requirement: {reason}") from exc
    return Wanted(text, requirement, tuple(hashes), source)


def _is_place(text: str, directory: Path) -> bool:
    """Say whether a line is a path or an address, which name no package by themselves."""
    if re.match(r"[A-Za-z][\w.+-]*://", text) or text.startswith(("./", "../", "/")):
        return True
    return text.endswith((".whl", ".tar.gz", ".zip")) and (directory / text).exists()


def _located(value: str, directory: Path) -> str:
    """Give an absolute path; an address is as it is."""
    return value if "://" in value else os.path.abspath(directory / value)


def _of_wheel(path: str) -> Requirement | None:
    """Give what the file name of a wheel says."""
    try:
        name, version, _, _ = parse_wheel_filename(path.partition("#")[0].rpartition("/")[2])
    except InvalidWheelFilename:
        return None
    return Requirement(f"{name}=={version}")
