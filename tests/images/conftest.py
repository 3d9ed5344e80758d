"""Builds the image that the tests of containers run."""

from collections.abc import Iterator
from pathlib import Path

import images
import pytest


@pytest.fixture(scope="session")
def engine() -> None:
    """Have buildah, podman and the base image; skip with the reason where that cannot be."""
    try:
        images.prepare()
    except images.ImageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def sklearn_image(engine: None) -> str:
    """Build the image of sklearnserver; give its name."""
    return images.build(images.read_rows()["sklearnserver"])


@pytest.fixture(scope="session")
def model_dir(sklearn_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder with a model of one feature, which anyone may read."""
    folder = tmp_path_factory.mktemp("model")
    images.make_model(sklearn_image, "sklearnserver", folder)
    # Folders above it are for their owner alone, but podman mounts this one.
    yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give time to the tests of containers: whichever comes first builds the image."""
    for item in items:
        if item.path.name in ("test_containers.py", "test_versions.py"):
            item.add_marker(pytest.mark.timeout(600))
