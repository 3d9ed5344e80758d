import base64
import hashlib
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

# It starts processes.
pytestmark = pytest.mark.timeout(90)

ROOT = Path(__file__).parents[2]

COMPLETED = """\
version = 1
requires-python = ">=3.11"

[options]
exclude-newer = "2026-01-01T00:00:00Z"

[manifest]
members = ["app"]

[[package]]
name = "app"
version = "0.1.0"
source = { virtual = "." }

[[package]]
name = "tiny"
version = "1.0+cpu"
source = { registry = "https://index.test/simple" }
sdist = { url = "https://files.test/ab/tiny-1.0%2Bcpu.tar.gz", hash = "sha256:aa", size = 1 }
wheels = [
    { url = "https://files.test/cd/tiny-1.0%2Bcpu-py3-none-any.whl", hash = "sha256:bb" },
]
"""

CLEANED = """\
version = 1
requires-python = ">=3.11"

[manifest]
members = ["app"]

[[package]]
name = "app"
version = "0.1.0"
source = { virtual = "." }

[[package]]
name = "tiny"
version = "1.0+cpu"
source = { registry = "default" }
sdist = { filename = "tiny-1.0+cpu.tar.gz", hash = "sha256:aa", size = 1 }
wheels = [
    { filename = "tiny-1.0+cpu-py3-none-any.whl", hash = "sha256:bb" },
]
"""


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


lock = load_script("lock")
PAGE = {
    "tiny-1.0+cpu.tar.gz": lock.IndexFile("https://files.test/ab/tiny-1.0%2Bcpu.tar.gz", "aa"),
    "tiny-1.0+cpu-py3-none-any.whl": lock.IndexFile(
        "https://files.test/cd/tiny-1.0%2Bcpu-py3-none-any.whl", "bb"
    ),
}


@pytest.mark.parametrize(
    "text", [COMPLETED, CLEANED], ids=["a completed lock", "a lock that is clean"]
)
def test_clean_takes_out_addresses_and_the_date(text: str) -> None:
    assert lock.clean(text) == CLEANED


def test_clean_keeps_other_options() -> None:
    text = '[options]\nexclude-newer = "2026-01-01"\nprerelease-mode = "allow"\n\n[manifest]\n'

    assert lock.clean(text) == '[options]\nprerelease-mode = "allow"\n\n[manifest]\n'


def test_fill_undoes_clean() -> None:
    filled = lock.fill(CLEANED, "https://index.test/simple", lambda _: PAGE, "2026-01-01T00:00:00Z")

    assert filled == COMPLETED


def test_fill_asks_for_each_package_of_a_registry_once() -> None:
    asked = []

    def fetch(name: str) -> dict[str, object]:
        asked.append(name)
        return PAGE

    lock.fill(CLEANED, "https://index.test/simple", fetch)

    assert asked == ["tiny"]


def test_fill_refuses_a_file_with_another_hash() -> None:
    tampered = CLEANED.replace("sha256:bb", "sha256:cc")

    with pytest.raises(lock.LockError) as error:
        lock.fill(tampered, "https://index.test/simple", lambda _: PAGE)

    assert str(error.value) == (
        "tiny-1.0+cpu-py3-none-any.whl: the lock says sha256:cc, the index sha256:bb"
    )


def test_a_file_that_a_mirror_lacks_gets_an_address_and_stays_in_the_clean_lock() -> None:
    page = {name: file for name, file in PAGE.items() if name.endswith(".whl")}

    filled = lock.fill(CLEANED, "https://index.test/simple", lambda _: page)

    assert '{ url = "https://index.test/simple/tiny-1.0%2Bcpu.tar.gz", hash = "sha256:aa"' in filled
    assert lock.clean(filled) == CLEANED


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(
            "application/vnd.pypi.simple.v1+json",
            b'{"files": [{"filename": "a-1.whl", "url": "../../f/a-1.whl", '
            b'"hashes": {"sha256": "11"}}, '
            b'{"filename": "a-1.zip", "url": "a-1.zip", "hashes": {}}]}',
            id="JSON",
        ),
        pytest.param(
            "text/html",
            b'<a name="top"></a><a href="../../f/a-1.whl#sha256=11">a-1.whl</a>'
            b'<a href="a-1.zip">zip</a>',
            id="HTML",
        ),
    ],
)
def test_reads_an_index_page(content_type: str, body: bytes) -> None:
    page = lock.read_page("http://host/simple/a/", content_type, body)

    assert page == {
        "a-1.whl": lock.IndexFile("http://host/f/a-1.whl", "11"),
        "a-1.zip": lock.IndexFile("http://host/simple/a/a-1.zip", ""),
    }


@pytest.mark.parametrize(
    ("environ", "pip_config", "indexes", "ca_file"),
    [
        pytest.param({}, "", ("http://default/simple",), "", id="nothing set"),
        pytest.param(
            {},
            "global.index-url='http://pip/simple/'\nglobal.cert='/ca.pem'\n"
            "global.extra-index-url='\\nhttp://one/\\nhttp://two/'\nglobal.find-links='/wheels'",
            ("http://pip/simple", "http://one", "http://two"),
            "/ca.pem",
            id="pip's files",
        ),
        pytest.param(
            {},
            ":env:.index-url='http://env/simple'\nglobal.index-url='http://pip/simple'",
            ("http://env/simple",),
            "",
            id="pip's environment wins over its files",
        ),
        pytest.param(
            {"UV_DEFAULT_INDEX": "http://uv/simple", "UV_INDEX": "more=http://more/simple"},
            "global.index-url='http://pip/simple'",
            ("http://uv/simple", "http://more/simple"),
            "",
            id="uv's environment wins over pip",
        ),
    ],
)
def test_finds_the_indexes_of_the_machine(
    environ: dict[str, str], pip_config: str, indexes: tuple[str, ...], ca_file: str
) -> None:
    settings = lock.machine_settings(environ, pip_config, "http://default/simple")

    assert settings == lock.Settings(indexes, ca_file)


def test_tells_uv_what_only_pip_knows() -> None:
    settings = lock.Settings(("http://user:a'b@pip/simple",), "/ca.pem")

    lines = list(lock.shell_settings({"SSL_CERT_FILE": "/own.pem"}, settings))

    assert lines == ["export UV_DEFAULT_INDEX='http://user:a'\"'\"'b@pip/simple'"]


def test_no_address_carries_a_password() -> None:
    assert lock.without_password("https://user:secret@host:8/simple") == "https://host:8/simple"


def test_the_lock_of_the_repository_holds_no_address_once_clean() -> None:
    text = lock.clean((ROOT / "uv.lock").read_text())

    assert lock.addresses(text) == []
    assert "exclude-newer" not in text


Serve = Callable[[Path], str]


@pytest.fixture
def serve_folder() -> Iterator[Serve]:
    """Serve folders on free ports of this machine until the test ends."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    def serve(folder: Path) -> str:
        def handler(*args: object) -> Quiet:
            return Quiet(*args, directory=str(folder))  # type: ignore[arg-type]

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def make_wheel(folder: Path) -> str:
    """Write a wheel of one empty module, `tiny`, and return its SHA-256."""
    info = "tiny-1.0.dist-info"
    members = {
        "tiny.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(parents=True)
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in members))
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that needs `tiny`, whose committed lock has no address, and an index that has it.

    The index is plain HTML without dates, as simple mirrors are.
    """
    digest = make_wheel(tmp_path / "index" / "files")
    page = tmp_path / "index" / "simple" / "tiny" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<a href="../../files/tiny-1.0-py3-none-any.whl">tiny</a>')
    folder = tmp_path / "app"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "lock.py", folder / "scripts")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "app"\nversion = "0.1.0"\nrequires-python = ">=3.11"\n'
        'dependencies = ["tiny"]\n\n[tool.uv]\npackage = false\n'
    )
    (folder / "uv.lock").write_text(
        'version = 1\nrevision = 3\nrequires-python = ">=3.11"\n\n'
        '[[package]]\nname = "app"\nversion = "0.1.0"\nsource = { virtual = "." }\n'
        'dependencies = [\n    { name = "tiny" },\n]\n\n'
        '[package.metadata]\nrequires-dist = [{ name = "tiny" }]\n\n'
        '[[package]]\nname = "tiny"\nversion = "1.0"\nsource = { registry = "default" }\n'
        'wheels = [\n    { filename = "tiny-1.0-py3-none-any.whl", '
        f'hash = "sha256:{digest}" }},\n]\n'
    )
    return folder


def run(folder: Path, index: str, *command: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    environ |= {
        "UV_DEFAULT_INDEX": f"{index}/simple",
        "UV_CACHE_DIR": str(folder.parent / "cache"),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    environ.pop("VIRTUAL_ENV", None)
    return subprocess.run(
        command, cwd=folder, env=environ, check=False, capture_output=True, text=True
    )


@pytest.fixture
def uv() -> str:
    path = os.environ.get("UV") or shutil.which("uv")
    assert path, "set UV to the path of uv, as scripts/test does"
    return path


@pytest.fixture
def python() -> str:
    """A Python with pip, as the environment is in which the scripts run lock.py."""
    return str(ROOT / ".uv" / "tool" / "bin" / "python")


def test_uv_installs_from_a_filled_lock(
    project: Path, serve_folder: Serve, uv: str, python: str
) -> None:
    index = serve_folder(project.parent / "index")

    filled = run(project, index, python, "scripts/lock.py", "fill")
    synced = run(project, index, uv, "sync", "--frozen", "--python", sys.executable)

    assert (filled.returncode, filled.stderr) == (0, "")
    assert synced.returncode == 0, synced.stderr
    assert list(project.glob(".venv/lib/*/site-packages/tiny.py"))


def test_uv_refuses_a_tampered_hash(
    project: Path, serve_folder: Serve, uv: str, python: str
) -> None:
    index = serve_folder(project.parent / "index")
    lock_file = project / "uv.lock"
    digest = hashlib.sha256(
        (project.parent / "index/files/tiny-1.0-py3-none-any.whl").read_bytes()
    ).hexdigest()
    lock_file.write_text(lock_file.read_text().replace(digest, "0" * 64))

    run(project, index, python, "scripts/lock.py", "fill")
    synced = run(project, index, uv, "sync", "--frozen", "--python", sys.executable)

    assert synced.returncode != 0
    assert "Hash mismatch for `tiny==1.0`" in synced.stderr


def test_git_does_not_see_the_addresses(project: Path, serve_folder: Serve, python: str) -> None:
    index = serve_folder(project.parent / "index")
    committed = (project / "uv.lock").read_text()
    lock_script = project / "scripts" / "lock"
    lock_script.write_text(f'#!/bin/sh\nexec "{python}" scripts/lock.py "$@"\n')
    lock_script.chmod(0o755)
    shutil.copy(ROOT / ".gitattributes", project)
    run(project, index, "git", "init", "--quiet")
    run(project, index, python, "scripts/lock.py", "register")
    run(project, index, "git", "add", "uv.lock")

    run(project, index, python, "scripts/lock.py", "fill")
    modified = run(project, index, "git", "diff-files", "--name-only")
    run(project, index, "git", "add", "uv.lock")
    staged = run(project, index, "git", "cat-file", "blob", ":uv.lock")

    assert "http://" in (project / "uv.lock").read_text()
    assert modified.stdout == ""
    assert staged.stdout == committed


def test_git_can_check_the_lock_out(project: Path, serve_folder: Serve, python: str) -> None:
    index = serve_folder(project.parent / "index")
    committed = (project / "uv.lock").read_text()
    shutil.copy(ROOT / ".gitattributes", project)
    run(project, index, "git", "init", "--quiet")
    run(project, index, "git", "add", "uv.lock")
    run(project, index, python, "scripts/lock.py", "register")
    (project / "uv.lock").unlink()

    done = run(project, index, "git", "checkout", "--", "uv.lock")

    assert (done.returncode, done.stderr) == (0, "")
    assert (project / "uv.lock").read_text() == committed


def test_check_refuses_a_staged_address(
    project: Path, serve_folder: Serve, uv: str, python: str
) -> None:
    index = serve_folder(project.parent / "index")
    run(project, index, "git", "init", "--quiet")
    run(project, index, python, "scripts/lock.py", "fill")
    run(project, index, "git", "add", "uv.lock")

    checked = run(project, index, python, "scripts/lock.py", "--uv", uv, "check")

    assert checked.returncode == 1
    assert checked.stderr.startswith("lock: git's :uv.lock holds 2 addresses")


def test_check_refuses_a_lock_that_is_out_of_date(
    project: Path, serve_folder: Serve, uv: str, python: str
) -> None:
    index = serve_folder(project.parent / "index")
    pyproject = project / "pyproject.toml"

    current = run(project, index, python, "scripts/lock.py", "--uv", uv, "check")
    pyproject.write_text(pyproject.read_text().replace('["tiny"]', '["tiny<1"]'))
    outdated = run(project, index, python, "scripts/lock.py", "--uv", uv, "check")

    assert (current.returncode, current.stderr) == (0, "")
    assert outdated.returncode == 1
    assert outdated.stderr.startswith("lock: uv.lock is out of date, run scripts/lock")


def test_a_password_of_the_index_is_sent_and_not_written(tmp_path: Path) -> None:
    header = lock._authorization("https://user:p%40ss@host/simple")

    assert header == {"Authorization": f"Basic {base64.b64encode(b'user:p@ss').decode()}"}
