"""What the tests of faults share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.rollout import Rollout


def _load(name: str) -> ModuleType:
    # Test folders are no packages and cannot import from one another.
    qualified = f"kserve_faults_{name}"
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(qualified, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[qualified] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rollout_class() -> "type[Rollout]":
    """Give two servers behind a proxy; see `rollout.py`."""
    given: type[Rollout] = _load("rollout").Rollout
    return given


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio."""
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give time to whichever test is the one to start a server, and a busy machine to it."""
    for item in items:
        is_here = item.path.parent == Path(__file__).parent
        if is_here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(90))
