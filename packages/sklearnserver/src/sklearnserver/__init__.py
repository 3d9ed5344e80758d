"""Serves scikit-learn models over KServe's protocols."""

from sklearnserver.model import SKLearnModel, SKLearnModelRepository

__all__ = ["SKLearnModel", "SKLearnModelRepository"]
