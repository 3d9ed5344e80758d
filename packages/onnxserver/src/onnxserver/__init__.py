"""Serves ONNX models over KServe's protocols."""

from typing import TYPE_CHECKING

from kserve.exports import lazy_dir, lazy_exports

if TYPE_CHECKING:
    from onnxserver.model import ONNXModel
    from onnxserver.settings import SessionSettings

__all__ = ["ONNXModel", "SessionSettings"]

__getattr__ = lazy_exports(
    __name__,
    {"onnxserver.model": ["ONNXModel"], "onnxserver.settings": ["SessionSettings"]},
)

__dir__ = lazy_dir(__name__)
