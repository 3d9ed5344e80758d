"""The model of a route: its name, and its version where the route has one."""

from typing import Final

from kserve.errors import ModelNotFound

# Between the name of a model and its version.
VERSIONS: Final = "/versions/"


def split_version(model: str) -> tuple[str, str | None]:
    """Split `NAME` or `NAME/versions/VERSION`.

    Returns:
        The name, and the version or None.

    Raises:
        ModelNotFound: The version is empty.
    """
    if VERSIONS not in model:
        return model, None
    name, _, version = model.rpartition(VERSIONS)
    if not version:
        raise ModelNotFound(model)
    return name, version
