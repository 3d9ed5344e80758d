"""Imports the packages that the arguments name, as they are installed, and looks at what they hold.

It runs in an environment made from wheels: a file that a wheel forgot is missing here.
"""

import importlib
import sys
from pathlib import Path


def check(name: str) -> None:
    """Import a package from site-packages, with its marker for type checkers."""
    module = importlib.import_module(name)
    assert module.__file__
    folder = Path(module.__file__).parent
    assert "site-packages" in folder.parts, f"{name} comes from {folder}"
    assert (folder / "py.typed").exists(), f"{name} has no py.typed"
    # What a package exports it imports only now.
    for exported in module.__all__:
        getattr(module, exported)


if __name__ == "__main__":
    for package in sys.argv[1:]:
        check(package)
