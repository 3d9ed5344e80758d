"""Serves XGBoost models over KServe's protocols."""

from typing import TYPE_CHECKING

from kserve.exports import lazy_dir, lazy_exports

if TYPE_CHECKING:
    from xgbserver.model import XGBoostModel, XGBoostModelRepository

__all__ = ["XGBoostModel", "XGBoostModelRepository"]

__getattr__ = lazy_exports(__name__, {"xgbserver.model": __all__})

__dir__ = lazy_dir(__name__)
