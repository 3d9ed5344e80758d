"""What a model directory holds: an artifact, versions of a model, or models; how it changes."""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from stat import S_ISDIR
from time import perf_counter
from typing import Final

from kserve.artifact import find_artifact, list_directory, list_model_directories, local_path
from kserve.errors import ModelLoadError, ModelMissingError
from kserve.executor import run_in_new_thread
from kserve.listing import listing
from kserve.logging import logger

# The version of a model that has none.
UNVERSIONED: Final = ""

# Seconds between two looks at a directory that is not there yet, and between two lines about it.
_WAIT_POLL_S: Final = 0.5
_WAIT_LOG_S: Final = 5.0

# Path below the directory, modification time in ns, bytes, device and inode of every file.
Fingerprint = tuple[tuple[str, int, int, int, int], ...]


class Contents(StrEnum):
    """What is in a directory."""

    ARTIFACT = "artifact"
    VERSIONS = "versions"
    MODELS = "models"


def classify(
    directory: str | os.PathLike[str], suffixes: Sequence[str], preferred: str = ""
) -> Contents:
    """Say what a directory holds; an artifact at the top hides all directories beside it.

    Args:
        directory: A path, or a `file://` address.
        suffixes: Those of the artifacts, lower-case with dots; with none, any file is an artifact.
        preferred: Of several artifacts, the name of the one that is meant.

    Raises:
        ModelMissingError: It is not there, or holds nothing that can be served.
        ModelLoadError: It holds several artifacts, or versions beside models.
    """
    path = local_path(directory)
    missing = _find_artifact(path, suffixes, preferred)
    if missing is None:
        return Contents.ARTIFACT
    names = list_model_directories(path)
    versions = [name for name in names if _is_version(name)]
    if not names:
        raise missing
    if not versions:
        return Contents.MODELS
    if len(versions) < len(names):
        raise ModelLoadError(
            f"{path}: expected versions (directories named by a number) or models (other names), "
            f"found both: {listing(names)}"
        )
    return Contents.VERSIONS


def find_versions(
    directory: str | os.PathLike[str], suffixes: Sequence[str], preferred: str = ""
) -> dict[str, Path]:
    """Give the directories of one model by version, the newest (highest number) first.

    The arguments are those of `classify`.

    Returns:
        The directory itself, as `UNVERSIONED`, where it holds no versions.

    Raises:
        ModelMissingError: The directory is not there.
        ModelLoadError: It holds several artifacts, versions beside other directories, or one
            number in two spellings.
    """
    path = local_path(directory)
    names = list_model_directories(path)
    is_versioned = any(map(_is_version, names))
    if not is_versioned or classify(path, suffixes, preferred) is not Contents.VERSIONS:
        # What is wrong with it, the load says best.
        return {UNVERSIONED: path}
    # TensorFlow's exporters pad the number with zeros: it counts, not its spelling.
    versions = {str(int(name)): path / name for name in sorted(names, key=int, reverse=True)}
    if len(versions) < len(names):
        raise ModelLoadError(f"{path}: found a version twice: {listing(names)}")
    return versions


async def wait_until_filled(directory: str | os.PathLike[str], timeout_s: float) -> None:
    """Wait until a directory is there and holds something visible; says so in the log.

    A sidecar may link or fill the directory only after this process has started. Nothing is raised
    when the time is over: whoever reads the directory then says what is wrong.

    Args:
        directory: A path, or a `file://` address.
        timeout_s: Seconds; 0 does not wait.
    """
    path = local_path(directory)
    started = perf_counter()
    next_line_s = 0.0
    while state := await run_in_new_thread(_emptiness, path):
        waited_s = perf_counter() - started
        if waited_s >= timeout_s:
            return
        if waited_s >= next_line_s:
            next_line_s += _WAIT_LOG_S
            logger.warning(
                "Waiting for the model directory %s: %s (%.0f s more, see --model_dir_wait_s)",
                path,
                state,
                timeout_s - waited_s,
            )
        await asyncio.sleep(min(_WAIT_POLL_S, timeout_s - waited_s))


def fingerprint(directory: Path) -> Fingerprint:
    """Give what changes when a file below a directory is written, replaced or linked elsewhere.

    Links are followed, so a volume of Kubernetes that turns its `..data` link to a new directory
    changes it. Hidden names and Python's bytecode do not count; what disappears meanwhile is left
    out.
    """
    return tuple(sorted(_walk(directory, "", set())))


def fingerprints(directories: Mapping[str, Path]) -> dict[str, Fingerprint]:
    """Give the fingerprint of each of several directories."""
    return {key: fingerprint(directory) for key, directory in directories.items()}


def _find_artifact(path: Path, suffixes: Sequence[str], preferred: str) -> ModelMissingError | None:
    """Give None where there is an artifact, else the error that says that there is none."""
    try:
        find_artifact(path, suffixes, preferred)
    except ModelMissingError as exc:
        is_any_file = not suffixes and any((path / name).is_file() for name in _visible(path))
        return None if is_any_file else exc
    return None


def _visible(path: Path) -> list[str]:
    try:
        return list_directory(path)
    except ModelMissingError:
        return []


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _emptiness(path: Path) -> str:
    """Say that a directory is not there or empty; the empty string if it is neither."""
    try:
        return "" if list_directory(path) else "it is empty"
    except ModelMissingError:
        return "there is no such directory"


def _is_ignored(name: str) -> bool:
    # Python writes there what it reads: a load would look like a change.
    return name.startswith(".") or name == "__pycache__"


def _walk(
    directory: Path, prefix: str, above: set[tuple[int, int]]
) -> Iterator[tuple[str, int, int, int, int]]:
    try:
        status = directory.stat()
        names = [name for name in os.listdir(directory) if not _is_ignored(name)]
    except OSError:
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return  # A link to a directory above: a circle.
    for name in names:
        path = directory / name
        try:
            found = path.stat()
        except OSError:
            continue
        if S_ISDIR(found.st_mode):
            yield from _walk(path, f"{prefix}{name}/", above | {here})
        else:
            identity = (found.st_dev, found.st_ino)
            yield (prefix + name, found.st_mtime_ns, found.st_size, *identity)
