"""Serves LightGBM models over KServe's protocols."""

from typing import TYPE_CHECKING

from kserve.exports import lazy_dir, lazy_exports

if TYPE_CHECKING:
    from lgbserver.model import LightGBMModel, LightGBMModelRepository

__all__ = ["LightGBMModel", "LightGBMModelRepository"]

__getattr__ = lazy_exports(__name__, {"lgbserver.model": __all__})

__dir__ = lazy_dir(__name__)
