"""Checks of the repository as a whole, which no linter knows."""

import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
LOCK = "uv.lock"


def versions_apart(projects: Iterable[Path]) -> list[str]:
    """Return one line per `pyproject.toml` if their versions are not all the same."""
    versions = {path: tomllib.loads(path.read_text())["project"]["version"] for path in projects}
    if len(set(versions.values())) == 1:
        return []
    return [
        f"{path}: version {version}, and not all are the same" for path, version in versions.items()
    ]


def find_words(files: Iterable[Path], words: Iterable[str]) -> Iterator[str]:
    """Yield a line for each of the words in each of the files that are text."""
    wanted = sorted(words)
    for path in files:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        yield from (f"{path}: names {word}" for word in wanted if word in text)


def index_hosts(lock: str) -> set[str]:
    """Return the hosts that a completed lock takes files from."""
    packages = tomllib.loads(lock)["package"]
    urls = [wheel.get("url", "") for package in packages for wheel in package.get("wheels", [])]
    urls += [package["source"].get("registry", "") for package in packages]
    hosts = {urlsplit(url).hostname or "" for url in urls}
    return hosts - {"", "localhost", "127.0.0.1"}


def _files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    names = sorted(set(done.stdout.split("\0")) - {"", LOCK})
    return [path for name in names if (path := ROOT / name).is_file()]


def main() -> None:
    """Check the versions, and that nothing names this machine or the index that it uses."""
    words = index_hosts((ROOT / LOCK).read_text()) | {str(ROOT)}
    problems = versions_apart(
        [ROOT / "pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]
    )
    problems += find_words(_files(), words)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
