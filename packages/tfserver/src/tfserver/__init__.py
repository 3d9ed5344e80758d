"""Serves TensorFlow models over KServe's protocols."""

from typing import TYPE_CHECKING

from kserve.exports import lazy_dir, lazy_exports

if TYPE_CHECKING:
    from tfserver.model import TensorFlowModel
    from tfserver.settings import Settings

__all__ = ["Settings", "TensorFlowModel"]

__getattr__ = lazy_exports(
    __name__,
    {"tfserver.model": ["TensorFlowModel"], "tfserver.settings": ["Settings"]},
)

__dir__ = lazy_dir(__name__)
