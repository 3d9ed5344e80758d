"""Keeps `uv.lock` free of download addresses, and completes it from this machine's own index.

`uv` writes each file's address into its lock. The committed lock has none: a file is known by its
name and hash, so that the same lock works behind any mirror. `fill` looks the addresses up and
writes them back in the working tree, and `clean`, a git filter, takes them out of every commit.
"""

import argparse
import ast
import functools
import hashlib
import json
import os
import re
import shlex
import ssl
import subprocess
import sys
import time
import tomllib
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = "uv.lock"
REGISTRY_NAME = "default"
# A required filter is one that no commit can do without; git then wants both directions.
FILTER = {"clean": "scripts/lock clean", "smudge": "cat", "required": "true"}

# Source: simple repository API, https://packaging.python.org/specifications/simple-repository-api
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.2"
N_FETCHERS = 8
FETCH_TIMEOUT_S = 60
RETRY_DELAYS_S = (1, 3, 9)

_PACKAGE = re.compile(r'^name = "([^"]+)"$')
_REGISTRY = re.compile(r'(?<=\{ registry = ")[^"]*')
_URL = re.compile(r'\{ url = "([^"]*)", hash = ')
_FILENAME = re.compile(r'\{ filename = "([^"]*)", hash = "([^"]*)"')
_OPTIONS = re.compile(r"^\[options\]\n((?:.+\n)*)\n", re.MULTILINE)
_EXCLUDE_NEWER = re.compile(r"^exclude-newer(?:-span)? = .*\n", re.MULTILINE)


class LockError(Exception):
    """The lock cannot be completed, or is not as it has to be; the text says why."""


@dataclass(frozen=True)
class IndexFile:
    """One file of a project, as an index lists it; `sha256` is empty where the index has none."""

    url: str
    sha256: str


Page = dict[str, IndexFile]
Fetch = Callable[[str], Page]


@dataclass(frozen=True)
class Settings:
    """Where this machine takes packages from.

    The first of `indexes` stands in the completed lock as the registry; the others are asked for
    what it does not have. `ca_file` is a certificate bundle, or empty.
    """

    indexes: tuple[str, ...]
    ca_file: str = ""


def clean(text: str) -> str:
    """Return the lock without addresses: what is committed."""
    text = _URL.sub(lambda match: f'{{ filename = "{_file_name(match[1])}", hash = ', text)
    text = _REGISTRY.sub(REGISTRY_NAME, text)
    return _OPTIONS.sub(_without_exclude_newer, text)


def fill(text: str, registry: str, fetch: Fetch, exclude_newer: str | None = None) -> str:
    """Return the cleaned lock `text` with an address for each file: what `uv sync` reads.

    Args:
        text: A lock that `clean` made.
        registry: The index to name as the registry, without a password.
        fetch: Gives a project's files by their names, for the project's normalized name.
        exclude_newer: The date to record, so that `uv` takes the lock for current.

    Raises:
        LockError: An index has none of a package's files, or one with another hash.
    """
    pages = _fetch_pages(_project_names(text), fetch)
    lines = []
    name = ""
    for line in text.splitlines(keepends=True):
        if match := _PACKAGE.match(line):
            name = match[1]
        lines.append(_FILENAME.sub(functools.partial(_with_url, pages.get(name, {})), line))
    filled = _REGISTRY.sub(lambda _: registry, "".join(lines))
    filled = _FILENAME.sub(functools.partial(_without_source, registry), filled)
    return _with_exclude_newer(filled, exclude_newer) if exclude_newer else filled


def read_page(url: str, content_type: str, body: bytes) -> Page:
    """Read an index page of one project, in JSON or HTML.

    Args:
        url: The page's own address, which its links may be relative to.
        content_type: The answer's Content-Type.
        body: The answer's bytes, UTF-8.
    """
    if "json" in content_type:
        files = json.loads(body)["files"]
        links = [
            (file["filename"], file["url"], file["hashes"].get("sha256", "")) for file in files
        ]
    else:
        parser = _Links()
        parser.feed(body.decode())
        links = [(_file_name(href), href, _fragment_hash(href)) for href in parser.hrefs]
    return {
        name: IndexFile(urllib.parse.urldefrag(urllib.parse.urljoin(url, href)).url, sha256)
        for name, href, sha256 in links
    }


def machine_settings(environ: Mapping[str, str], pip_config: str, pip_default: str) -> Settings:
    """Find the indexes that this machine is set up for: as uv is, else as pip is.

    Args:
        environ: The environment.
        pip_config: What `pip config list` prints.
        pip_default: The index that pip uses where nothing is set.
    """
    pip = _pip_options(pip_config)
    default = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    default = default or pip.get("index-url", pip_default)
    extra = [environ.get("UV_INDEX", ""), environ.get("UV_EXTRA_INDEX_URL", "")]
    extra.append(pip.get("extra-index-url", ""))
    named = [default, *" ".join(extra).split()]
    # UV_INDEX may give an index a name: `mirror=https://host/simple`.
    urls = [re.sub(r"^[\w-]+=", "", url).rstrip("/") for url in named]
    return Settings(tuple(dict.fromkeys(urls)), environ.get("SSL_CERT_FILE") or pip.get("cert", ""))


def addresses(text: str) -> list[str]:
    """Return the lines of a lock that hold an address."""
    return [line.strip() for line in text.splitlines() if "://" in line]


def _file_name(url: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])


def _fragment_hash(url: str) -> str:
    algorithm, _, value = urllib.parse.urlsplit(url).fragment.partition("=")
    return value if algorithm == "sha256" else ""


class _Links(HTMLParser):
    """Collects the targets of the links on an HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a link's target."""
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.hrefs.append(href)


def _without_exclude_newer(section: re.Match[str]) -> str:
    rest = _EXCLUDE_NEWER.sub("", section[1])
    return f"[options]\n{rest}\n" if rest else ""


def _with_exclude_newer(text: str, exclude_newer: str) -> str:
    line = f'exclude-newer = "{exclude_newer}"\n'
    if _OPTIONS.search(text):
        return text.replace("[options]\n", f"[options]\n{line}", 1)
    return re.sub(r"^\[", f"[options]\n{line}\n[", text, count=1, flags=re.MULTILINE)


def _project_names(text: str) -> list[str]:
    packages = tomllib.loads(text).get("package", [])
    return sorted({package["name"] for package in packages if "registry" in package["source"]})


def _fetch_pages(names: Sequence[str], fetch: Fetch) -> dict[str, Page]:
    with ThreadPoolExecutor(N_FETCHERS) as pool:
        return dict(zip(names, pool.map(fetch, names), strict=True))


def _with_url(page: Page, entry: re.Match[str]) -> str:
    file_name, digest = entry[1], entry[2]
    file = page.get(file_name)
    if file is None:
        return entry[0]
    if file.sha256 and digest != f"sha256:{file.sha256}":
        raise LockError(f"{file_name}: the lock says {digest}, the index sha256:{file.sha256}")
    return f'{{ url = "{file.url}", hash = "{digest}"'


def _without_source(registry: str, entry: re.Match[str]) -> str:
    # A mirror may lack the files of other platforms. uv wants an address for each of a package's
    # files, and asks for it only to download that file.
    return f'{{ url = "{registry}/{urllib.parse.quote(entry[1])}", hash = "{entry[2]}"'


def _pip_options(pip_config: str) -> dict[str, str]:
    options: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in pip_config.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in options:
            options[section][name] = str(ast.literal_eval(value))
    return {name: value for section in options.values() for name, value in section.items()}


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, cwd=ROOT, check=check, capture_output=True, text=True)
    return done.stdout


def _read_settings() -> Settings:
    # Only pip knows where pip looks when nothing is set.
    code = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    pip_default = _run(sys.executable, "-c", code).strip()
    pip_config = _run(sys.executable, "-m", "pip", "config", "list")
    return machine_settings(os.environ, pip_config, pip_default)


def _ssl_context(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file or None)
    if not ca_file and not context.get_ca_certs():
        # A slim image may have no certificates; pip carries its own.
        code = "from pip._vendor import certifi; print(certifi.where())"
        context.load_verify_locations(_run(sys.executable, "-c", code).strip())
    return context


def without_password(url: str) -> str:
    """Return the address without a user's name and password."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def make_fetch(settings: Settings) -> Fetch:
    """Make the function that reads a project's files from the indexes, the first one winning."""
    context = _ssl_context(settings.ca_file)

    def fetch(name: str) -> Page:
        page: Page = {}
        for index in reversed(settings.indexes):
            page |= _get_page(index, name, context)
        if not page:
            raise LockError(f"{name}: not found in the indexes of this machine")
        return page

    return fetch


def _get_page(index: str, name: str, context: ssl.SSLContext) -> Page:
    url = f"{without_password(index)}/{name}/"
    if index.startswith("file:"):
        url += "index.html"
    request = urllib.request.Request(url, headers={"Accept": ACCEPT, **_authorization(index)})
    for delay_s in (*RETRY_DELAYS_S, None):
        try:
            with urllib.request.urlopen(request, timeout=FETCH_TIMEOUT_S, context=context) as page:
                return read_page(page.url, page.headers.get("Content-Type", ""), page.read())
        except OSError as error:
            # The indexes of pip's configuration need not exist on every machine.
            if index.startswith("file:") or getattr(error, "code", None) in (404, 410):
                return {}
            if delay_s is None or getattr(error, "code", 500) < 500:
                raise LockError(f"{url}: {error}") from error
        time.sleep(delay_s)
    raise AssertionError("the last attempt returns or raises")


def _authorization(index: str) -> dict[str, str]:
    parts = urllib.parse.urlsplit(index)
    if parts.username is None:
        return {}
    user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return {"Authorization": f"Basic {b64encode(user.encode()).decode()}"}


def _exclude_newer() -> str | None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        value: str | None = tomllib.load(file)["tool"]["uv"].get("exclude-newer")
    return value


def _stamp(text: str, settings: Settings) -> str:
    return hashlib.sha256("\n".join([text, *settings.indexes]).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    # Another script may be reading: the new content appears at once.
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def fill_working_tree() -> None:
    """Complete the lock in the working tree; do nothing if it is as the last call left it."""
    lock, stamp_file = ROOT / LOCK, ROOT / ".uv" / "filled"
    settings = _read_settings()
    text = lock.read_text()
    if stamp_file.exists() and stamp_file.read_text() == _stamp(text, settings):
        return
    registry = without_password(settings.indexes[0])
    filled = fill(clean(text), registry, make_fetch(settings), _exclude_newer())
    _write(lock, filled)
    stamp_file.parent.mkdir(exist_ok=True)
    _write(stamp_file, _stamp(filled, settings))
    _refresh_index(clean(text))


def _refresh_index(cleaned: str) -> None:
    # git compares sizes before contents: unless its index learns the new size, it shows the filled
    # lock as modified. A lock that really differs is left for its author to add.
    if _staged() == cleaned:
        _run("git", "update-index", LOCK, check=False)


def _staged() -> str | None:
    return _blob(f":{LOCK}")


def _blob(name: str) -> str | None:
    command = ["git", "cat-file", "blob", name]
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def register_filter() -> None:
    """Set the git filter of `.gitattributes` in this clone; without a repository, do nothing."""
    if not (ROOT / ".git").exists():
        return
    for key, value in FILTER.items():
        name = f"filter.uv-lock.{key}"
        if _run("git", "config", "--get", name, check=False).strip() != value:
            _run("git", "config", name, value)


def make_lock(uv: str, arguments: Sequence[str]) -> None:
    """Resolve with `uv lock`, and leave the lock without addresses.

    Args:
        uv: The path of uv.
        arguments: More arguments of `uv lock`, such as `--upgrade`.
    """
    if (ROOT / LOCK).exists():
        fill_working_tree()
    subprocess.run([uv, "lock", *arguments], cwd=ROOT, check=True)
    _write(ROOT / LOCK, clean((ROOT / LOCK).read_text()))


def check_lock(uv: str) -> None:
    """Check that no commit can hold an address, and that the lock fits the `pyproject.toml` files.

    Raises:
        LockError: It does not.
    """
    for name in (f":{LOCK}", f"HEAD:{LOCK}"):
        if found := addresses(_blob(name) or ""):
            raise LockError(f"git's {name} holds {len(found)} addresses, such as {found[0]}")
    fill_working_tree()
    command = [uv, "lock", "--check"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise LockError(f"uv.lock is out of date, run scripts/lock: {done.stderr.strip()}")


def shell_settings(environ: Mapping[str, str], settings: Settings) -> Iterator[str]:
    """Yield the shell lines that tell uv what pip knows: uv reads no configuration of pip's."""
    values = {"UV_DEFAULT_INDEX": settings.indexes[0], "SSL_CERT_FILE": settings.ca_file}
    for name, value in values.items():
        if value and not environ.get(name):
            yield f"export {name}={shlex.quote(value)}"


def _write_lines(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _clean_stream() -> None:
    text = sys.stdin.buffer.read().decode()
    sys.stdout.buffer.write(clean(text).encode())


def main() -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the path of uv")
    choices = ["make", "fill", "check", "clean", "register", "settings"]
    parser.add_argument("command", nargs="?", default="make", choices=choices)
    arguments, rest = parser.parse_known_args()
    commands: dict[str, Callable[[], None]] = {
        "make": lambda: make_lock(arguments.uv, rest),
        "fill": fill_working_tree,
        "check": lambda: check_lock(arguments.uv),
        "clean": _clean_stream,
        "register": register_filter,
        "settings": lambda: _write_lines(shell_settings(os.environ, _read_settings())),
    }
    try:
        commands[arguments.command]()
    except LockError as error:
        sys.exit(f"lock: {error}")


if __name__ == "__main__":
    main()
