"""Serves scikit-learn models over KServe's protocols."""

from typing import TYPE_CHECKING

from kserve.exports import lazy_dir, lazy_exports

if TYPE_CHECKING:
    from sklearnserver.model import SKLearnModel, SKLearnModelRepository

__all__ = ["SKLearnModel", "SKLearnModelRepository"]

__getattr__ = lazy_exports(__name__, {"sklearnserver.model": __all__})

__dir__ = lazy_dir(__name__)
