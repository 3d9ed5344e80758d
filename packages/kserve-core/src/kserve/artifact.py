"""Find exactly one artifact in a model directory, or say what was found and expected."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from kserve.errors import ModelLoadError, ModelMissingError
from kserve.listing import listing

# A V2 request as JSON, beside the artifact and never one itself.
WARMUP_FILE: Final = "warmup.json"

# Never artifacts either: what stands beside one, whatever its suffix says.
_BESIDE: Final = frozenset({WARMUP_FILE, "requirements.txt"})

# The file system's own, at the top of a volume.
_LOST_AND_FOUND = "lost+found"


def local_path(model_dir: str | os.PathLike[str]) -> Path:
    """Give the path of a model directory, which may be a `file://` address.

    Raises:
        ModelLoadError: The address has another scheme, or a host.
    """
    address = os.fspath(model_dir)
    if "://" not in address:
        return Path(address)
    parts = urlsplit(address)
    if parts.scheme != "file":
        raise ModelLoadError(
            f"model directory {address}: expected a local directory, got {parts.scheme}://"
        )
    if parts.netloc not in ("", "localhost"):
        # `file://mnt/models` for `file:///mnt/models`: the first directory reads as a host.
        raise ModelLoadError(
            f"model directory {address}: expected file:///PATH, got the host {parts.netloc}"
        )
    return Path(unquote(parts.path))


def find_artifact(
    model_dir: str | os.PathLike[str], suffixes: Sequence[str], preferred: str = ""
) -> Path:
    """Give the one file at the top of `model_dir` that has one of the suffixes or names.

    Hidden files do not count: Kubernetes mounts put `..data` links beside the files. Nor do the
    warm-up request and `requirements.txt`.

    Args:
        model_dir: A directory, or a `file://` address of one.
        suffixes: Lower-case suffixes with their dots; without one it is the whole name of a file,
            which wins over files with a suffix.
        preferred: Of several such files, the name of the one that is meant.

    Raises:
        ModelMissingError: The directory does not exist or holds no such file.
        ModelLoadError: It holds several, or cannot be read.
    """
    directory = local_path(model_dir)
    names = list_directory(directory)
    found = [
        name for name in names if is_artifact_name(name, suffixes) and (directory / name).is_file()
    ]
    expected = f"expected exactly one of {patterns(suffixes)}"
    if preferred:
        expected += f", or one named {preferred}"
    if not found:
        raise ModelMissingError(directory, f"no model file, {expected}; found {listing(names)}")
    if preferred in found:
        found = [preferred]
    named = [name for name in found if name in suffixes]
    if len(named) == 1:
        # A whole name says more than a suffix: `config.json` beside the weights of one.
        found = named
    if len(found) > 1:
        raise ModelLoadError(
            f"{directory}: More than one model file is detected, {expected}; found {listing(found)}"
        )
    return directory / found[0]


def is_artifact_name(name: str, suffixes: Sequence[str]) -> bool:
    """Say whether a file has one of the suffixes, in any case, or one of the whole names."""
    if name in _BESIDE:
        return False
    lowered = name.lower()
    return any(
        lowered.endswith(suffix) if suffix.startswith(".") else name == suffix
        for suffix in suffixes
    )


def patterns(suffixes: Sequence[str]) -> str:
    """Name the suffixes, and the whole names, as a shell writes them."""
    return ", ".join(f"*{suffix}" if suffix.startswith(".") else suffix for suffix in suffixes)


def list_model_directories(models_dir: str | os.PathLike[str]) -> list[str]:
    """Give the sorted names of the visible sub-directories, without `lost+found`.

    Raises:
        ModelMissingError: The directory does not exist.
        ModelLoadError: It cannot be read.
    """
    directory = local_path(models_dir)
    return [
        name
        for name in list_directory(directory)
        if name != _LOST_AND_FOUND and (directory / name).is_dir()
    ]


def list_directory(directory: Path) -> list[str]:
    """Give the sorted names of the visible entries of a directory.

    Raises:
        ModelMissingError: The directory does not exist.
        ModelLoadError: It is no directory or cannot be read.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError as exc:
        raise ModelMissingError(directory, "no such directory") from exc
    except OSError as exc:
        raise ModelLoadError(f"{directory}: {exc.strerror}") from exc
    return sorted(name for name in names if not name.startswith("."))
