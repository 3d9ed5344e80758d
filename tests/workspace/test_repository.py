import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


repository = load_script("repository")


@pytest.fixture
def projects(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.toml", tmp_path / "two.toml"]
    for path in paths:
        path.write_text('[project]\nversion = "0.1.0"\n')
    return paths


def test_equal_versions_are_no_problem(projects: list[Path]) -> None:
    assert repository.versions_apart(projects) == []


def test_names_the_versions_that_are_apart(projects: list[Path]) -> None:
    one, two = projects
    two.write_text('[project]\nversion = "0.2.0"\n')

    problems = repository.versions_apart(projects)

    assert problems == [
        f"{one}: version 0.1.0, and not all are the same",
        f"{two}: version 0.2.0, and not all are the same",
    ]


def test_finds_words_in_text_and_skips_other_files(tmp_path: Path) -> None:
    text, binary = tmp_path / "a.md", tmp_path / "b.bin"
    text.write_text("see https://index.test/simple")
    binary.write_bytes(b"\xff index.test")

    problems = list(repository.find_words([text, binary], {"index.test", "files.test"}))

    assert problems == [f"{text}: names index.test"]


def test_the_hosts_are_those_that_a_completed_lock_names() -> None:
    lock = """
[[package]]
name = "a"
source = { registry = "https://index.test/simple" }
wheels = [{ url = "https://files.test/a-1.whl", hash = "sha256:aa" }]

[[package]]
name = "b"
source = { editable = "packages/b" }
"""

    assert repository.index_hosts(lock) == {"index.test", "files.test"}
