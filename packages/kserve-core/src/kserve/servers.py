"""The model servers that are installed, and which of them serves a directory.

A server's package declares what it finds in a directory, so that nothing of it need be imported:

    [project.entry-points."kserve.servers"]
    ".npz" = "linserver.model:LinearModel"
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from kserve.artifact import (
    is_artifact_name,
    list_directory,
    list_model_directories,
    patterns,
)

GROUP: Final = "kserve.servers"

# Models, and versions of each.
_MAX_DEPTH: Final = 2


@dataclass(frozen=True, slots=True)
class InstalledServer:
    """A server, as its package declares it.

    Attributes:
        name: Its import name: `python -m NAME` starts it.
        model: Its model, as `package.module:Class`.
        version: That of its distribution.
        suffixes: What it finds in a directory, as the `artifact_suffixes` of its model.
    """

    name: str
    model: str
    version: str
    suffixes: tuple[str, ...]


def installed_servers(entries: Iterable[EntryPoint] | None = None) -> dict[str, InstalledServer]:
    """Give the installed servers by name.

    Args:
        entries: The entry points of the group; those of the environment if None.
    """
    by_server: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP) if entries is None else entries:
        by_server.setdefault(entry.module.partition(".")[0], []).append(entry)
    return {
        name: InstalledServer(
            name,
            found[0].value,
            found[0].dist.version if found[0].dist else "",
            tuple(sorted({entry.name for entry in found})),
        )
        for name, found in sorted(by_server.items())
    }


def fitting_servers(directory: Path, servers: Iterable[InstalledServer]) -> Mapping[str, str]:
    """Give the servers that find something of theirs in a directory, and what that is.

    A file that a server knows by its whole name tells what all others beside it are for, so it
    counts alone. Where there is nothing at the top, models and versions in sub-directories count.

    Returns:
        By the name of the server, the path of the first file below the directory.

    Raises:
        ModelMissingError: The directory is not there.
        ModelLoadError: It cannot be read.
    """
    return _search(directory, "", list(servers), _MAX_DEPTH)


def _search(
    directory: Path, prefix: str, servers: list[InstalledServer], depth: int
) -> dict[str, str]:
    files = [name for name in list_directory(directory) if (directory / name).is_file()]
    whole = {server.name: name for server in servers for name in files if name in server.suffixes}
    found = whole or {
        server.name: name
        for server in servers
        for name in reversed(files)
        if is_artifact_name(name, server.suffixes)
    }
    if found or depth == 0:
        return {server: prefix + name for server, name in found.items()}
    for name in reversed(list_model_directories(directory)):
        found |= _search(directory / name, f"{prefix}{name}/", servers, depth - 1)
    return found


def needs(servers: Iterable[InstalledServer]) -> str:
    """Say what each server needs to see in a directory, one per line."""
    return "".join(f"\n  {server.name}: {patterns(server.suffixes)}" for server in servers)
