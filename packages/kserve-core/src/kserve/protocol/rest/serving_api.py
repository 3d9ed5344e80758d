"""What TensorFlow Serving answers about a model, for those of our servers that keep its contract.

Source: TensorFlow Serving, "RESTful API", "Model status API" and "Model Metadata API",
https://www.tensorflow.org/tfx/serving/api_rest
"""

from typing import Any, Final

from kserve.model import TensorModel
from kserve.model_repository import IndexEntry, ModelState
from kserve.protocol.dataplane import DataPlane

# To the states of a servable, and of the error codes those that say as much.
_STATES: Final = {
    ModelState.LOADING: ("LOADING", "OK"),
    ModelState.READY: ("AVAILABLE", "OK"),
    ModelState.UNAVAILABLE: ("END", "UNKNOWN"),
}


def metadata(dataplane: DataPlane, name: str, version: str | None) -> dict[str, Any] | None:
    """Give the answer of the metadata route; None for a model that TensorFlow Serving knows not."""
    model = dataplane.get_version(name, version)
    content = model.serving_metadata() if isinstance(model, TensorModel) else None
    if content is None:
        return None
    assert isinstance(model, TensorModel)
    spec = {"name": name, "signature_name": "", "version": version or _version(model)}
    return {"model_spec": spec, "metadata": content}


def version_status(dataplane: DataPlane, name: str, version: str | None) -> list[dict[str, Any]]:
    """Give the states of the versions of a model, the newest first, or of one of them.

    Empty for a model that TensorFlow Serving knows not.
    """
    model = dataplane.get_version(name, version)
    if not isinstance(model, TensorModel) or model.serving_metadata() is None:
        return []
    found = {
        entry.version or _version(model): _status(entry)
        for entry in dataplane.model_registry.entries(name)
    }
    return [
        {"version": key, **found[key]}
        for key in sorted(found, key=int, reverse=True)
        if not version or key == version
    ]


def _version(model: TensorModel) -> str:
    """Give the version that a model is, as a number: one without any is the first."""
    return model.version or (model.versions or ("1",))[-1]


def _status(entry: IndexEntry) -> dict[str, Any]:
    state, code = _STATES[entry.state]
    return {"state": state, "status": {"error_code": code, "error_message": entry.reason}}
