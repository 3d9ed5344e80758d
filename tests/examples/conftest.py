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
