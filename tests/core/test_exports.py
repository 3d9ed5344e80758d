"""A package whose names are imported when they are first used."""

import subprocess
import sys
from pathlib import Path

import pytest

# It starts processes.
pytestmark = pytest.mark.timeout(90)

INIT = """\
from kserve.exports import lazy_dir, lazy_exports

__all__ = ["Model", "Other"]
__getattr__ = lazy_exports(__name__, {"lazy.model": ["Model"], "lazy.other": ["Other"]})
__dir__ = lazy_dir(__name__)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "lazy").mkdir()
    (tmp_path / "lazy" / "__init__.py").write_text(INIT)
    (tmp_path / "lazy" / "model.py").write_text("print('model')\nclass Model: ...\n")
    (tmp_path / "lazy" / "other.py").write_text("print('other')\nclass Other: ...\n")
    (tmp_path / "lazy" / "__main__.py").write_text("print('runs')\n")
    (tmp_path / "lazy" / "broken.py").write_text("import no_such_library\n")
    return str(tmp_path)


def run(package: str, code: str) -> list[str]:
    """Give what a fresh interpreter prints."""
    start = f"import sys; sys.path.insert(0, {package!r})\n"
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (completed.returncode, completed.stderr) == (0, "")
    return completed.stdout.splitlines()


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        pytest.param("import lazy", [], id="the package alone"),
        pytest.param("from lazy import Model; print(Model)", ["model", "<M>"], id="one name"),
        pytest.param("import lazy; lazy.Model; print(lazy.Model)", ["model", "<M>"], id="twice"),
        pytest.param("from lazy import *; print(Model)", ["model", "other", "<M>"], id="a star"),
        pytest.param("import lazy; lazy.other.Other", ["other"], id="a submodule"),
        pytest.param(
            "import lazy; print([n for n in dir(lazy) if n[0] != '_'])",
            ["['Model', 'Other', 'lazy_dir', 'lazy_exports']"],
            id="the names, before any is used",
        ),
        pytest.param("import lazy; print(hasattr(lazy, 'nothing'))", ["False"], id="no such name"),
        pytest.param(
            "import lazy; print(hasattr(lazy, '__main__'))", ["False"], id="what would run"
        ),
        pytest.param(
            "import lazy\ntry: lazy.broken\nexcept ModuleNotFoundError as exc: print(exc.name)",
            ["no_such_library"],
            id="a submodule that cannot be imported",
        ),
        pytest.param(
            "import lazy\ntry: lazy.nothing\nexcept AttributeError as exc: print(exc)",
            ["module 'lazy' has no attribute 'nothing'"],
            id="the error",
        ),
    ],
)
def test_imports_what_is_used_when_it_is_used(package: str, code: str, printed: list[str]) -> None:
    lines = run(package, code)

    assert [line.replace("<class 'lazy.model.Model'>", "<M>") for line in lines] == printed
