"""Starts the examples that several tests ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve.testing import ServerProcess

MODEL_DIR = Path(__file__).parents[2] / "examples" / "sklearn-iris" / "model"


@pytest.fixture(scope="session")
def iris() -> Iterator[ServerProcess]:
    """Serve examples/sklearn-iris as `scripts/serve` does."""
    pytest.importorskip("sklearnserver", reason="sklearnserver is not installed")
    with ServerProcess(
        "sklearnserver", "--model_dir", str(MODEL_DIR), "--model_name", "iris"
    ) as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give time to whichever test is the one to start a server, and a busy machine to it."""
    for item in items:
        is_here = item.path.parent == Path(__file__).parent
        if is_here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(90))
