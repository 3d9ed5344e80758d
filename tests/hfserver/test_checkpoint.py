"""Models on a hub of the test's own: what is fetched, kept, and refused."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from hfserver.checkpoint import HubOptions, _progress_class, fetch, one_line, open_directory
from kserve.errors import ModelLoadError, ModelMissingError
from kserve.logging import logger

# Each starts a process that imports the hub's library, and may wait for a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "1_Pooling/config.json": b"{}",
    "onnx/model.onnx": b"graph",
    "onnx/config.json": b"{}",
    "own.py": b"print('code')",
    "README.md": b"text",
}
COMMITS = {"main": "a" * 40, "v2": "b" * 40}

# What runs in a process of its own, as the hub's library reads its settings when it is imported.
SCRIPT = """
import sys
import orjson
from hfserver.checkpoint import HubOptions, fetch
model_id, options = sys.argv[1], orjson.loads(sys.argv[2])
try:
    checkpoint = fetch(model_id, HubOptions(**options))
except Exception as exc:
    print(orjson.dumps({"error": type(exc).__name__, "text": str(exc)}).decode())
else:
    files = [str(path.relative_to(checkpoint.directory))
             for path in checkpoint.directory.rglob("*") if path.is_file()]
    print(orjson.dumps({"files": sorted(files), "name": checkpoint.name,
                        "commit": checkpoint.directory.name,
                        "tokenizer": checkpoint.tokenizer_directory.name,
                        "is_from_hub": checkpoint.is_from_hub}).decode())
"""


class Hub(ThreadingHTTPServer):
    """A hub on a free port of 127.0.0.1, with one model that all may read and others."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(FILES)
        self.asked: list[tuple[str, str]] = []
        self.tokens: dict[str, str | None] = {}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        self.server.tokens[path] = self.headers.get("Authorization")
        if "/secret/" in path:
            self._refuse(403, "GatedRepo")
        elif "/broken/" in path:
            self._refuse(418, "")
        elif "/tiny/model/" not in path:
            self._refuse(401, "RepoNotFound")
        elif "/revision/" in path:
            self._give_revision(path.rpartition("/")[2])
        elif "/tree/" in path:
            self._give_json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": name.encode().hex()}
                    for name, data in self.server.files.items()
                ]
            )
        else:
            commit, _, name = path.partition("/resolve/")[2].partition("/")
            self._give(self.server.files[name], name, commit)

    def _give_revision(self, revision: str) -> None:
        if revision not in COMMITS:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in self.server.files]
        self._give_json({"id": "tiny/model", "sha": COMMITS[revision], "siblings": siblings})

    def _give_json(self, value: Any) -> None:
        self._give(orjson.dumps(value), "json", "")

    def _give(self, data: bytes, name: str, commit: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{name.encode().hex()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


class Fetch:
    """Fetches in a process of its own."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def __call__(self, model_id: str, env: dict[str, str] | None = None, **options: Any) -> Any:
        command = [sys.executable, "-c", SCRIPT, model_id, orjson.dumps(options).decode()]
        done = subprocess.run(
            command, env={**self._env, **(env or {})}, capture_output=True, text=True, check=True
        )
        return orjson.loads(done.stdout)


@pytest.fixture
def fetched(hub: Hub, tmp_path: Path) -> Fetch:
    return Fetch(hub, tmp_path / "home")


WANTED = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]


def test_what_the_model_needs_is_fetched_and_nothing_else(hub: Hub, fetched: Fetch) -> None:
    checkpoint = fetched("tiny/model", token="T")

    assert checkpoint == {
        "files": WANTED,
        "name": "tiny/model",
        "commit": COMMITS["main"],
        "tokenizer": COMMITS["main"],
        "is_from_hub": True,
    }
    assert {token for path, token in hub.tokens.items() if "tiny/model" in path} == {"Bearer T"}


def test_revisions_of_the_model_and_of_its_tokenizer(fetched: Fetch) -> None:
    checkpoint = fetched("tiny/model", revision="v2", tokenizer_revision="main")

    assert (checkpoint["commit"], checkpoint["tokenizer"]) == (COMMITS["v2"], COMMITS["main"])


def test_code_is_fetched_where_it_may_run(fetched: Fetch) -> None:
    assert "own.py" in fetched("tiny/model", trust_remote_code=True)["files"]


def test_pickles_are_fetched_where_they_are_trusted_and_there_is_nothing_else(
    hub: Hub, fetched: Fetch
) -> None:
    del hub.files["model.safetensors"]

    refused = fetched("tiny/model")
    trusted = fetched("tiny/model", allow_pickle=True)

    assert refused["error"] == "ModelLoadError"
    assert "tiny/model: expected *.safetensors, the hub has none of it" in refused["text"]
    assert "--allow_pickle" in refused["text"]
    assert "pytorch_model.bin" in trusted["files"]


def test_a_model_without_weights_is_refused(hub: Hub, fetched: Fetch) -> None:
    del hub.files["model.safetensors"], hub.files["pytorch_model.bin"]

    refused = fetched("tiny/model", allow_pickle=True)

    assert refused["text"] == ("tiny/model: expected *.safetensors or *.bin, the hub has neither")


@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_the_cache_is_enough_where_the_hub_is_not_reached(
    hub: Hub, fetched: Fetch, env: dict[str, str]
) -> None:
    fetched("tiny/model")
    n_asked = len(hub.asked)

    assert fetched("tiny/model", env)["files"] == WANTED
    other = fetched("tiny/other", env)

    assert other == {
        "error": "ModelLoadError",
        "text": "tiny/other, revision main: the hub cannot be reached, and the cache does not "
        "hold all of it",
    }
    assert len(hub.asked) == n_asked


@pytest.mark.parametrize(
    ("model_id", "options", "reason"),
    [
        ("secret/model", {}, "secret/model: its owner has to grant access; give the token"),
        ("no/model", {}, "no/model: the hub has no such model, or one that needs a token"),
        ("tiny/model", {"revision": "v3"}, "tiny/model: the hub has no revision v3 of it"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(
    fetched: Fetch, model_id: str, options: dict[str, Any], reason: str
) -> None:
    refused = fetched(model_id, **options)

    assert refused["error"] == "ModelLoadError"
    assert refused["text"].startswith(reason)
    assert "\n" not in refused["text"]


@pytest.mark.parametrize("model_id", ["", "a/b/c", "../model", "/mnt/models", "a b"])
def test_what_is_no_name_is_not_asked_for(model_id: str) -> None:
    with pytest.raises(ModelLoadError, match="model id: expected OWNER/NAME of the hub, got"):
        fetch(model_id, HubOptions())


def test_a_directory_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="no such directory"):
        open_directory(tmp_path / "none")
    with pytest.raises(ModelLoadError, match="Not a directory"):
        (tmp_path / "file").write_text("")
        open_directory(tmp_path / "file")


def test_the_log_tells_how_far_a_download_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level("INFO", logger.name)
    progress_class = _progress_class("tiny/model")
    with progress_class(total=4_000_000, unit="B", unit_scale=True, name="n") as progress:
        progress.n = 1_000_000
        progress_class.logged_at -= 60
        progress.refresh()
        progress.refresh()

    assert [record.getMessage() for record in caplog.records] == [
        "Model tiny/model: 1 of 4 MB are there"
    ]


def test_pages_of_text_become_one_line() -> None:
    assert one_line(ValueError("a\n\n  b\n")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 1000))) == 300
