"""What servers of gradient boosting share: a native booster, threads, methods, explanations."""

import argparse
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Protocol

from kserve.artifact import find_artifact
from kserve.config import threads
from kserve.cpu import thread_count
from kserve.methods import Methods
from kserve.model import PredictOptions, TensorModel
from kserve.signature import Signature, Tensors


class ServedBooster(Protocol):
    """A booster that was looked at: what a server needs to know of it."""

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""

    @property
    def methods(self) -> Methods:
        """The methods that it has; they take what `rows` gives."""

    @property
    def can_explain(self) -> bool:
        """Whether it tells what each feature contributes."""

    def rows(self, tensors: Tensors, parameters: Mapping[str, Any]) -> Any:
        """Give what methods take.

        Raises:
            InvalidInput: A parameter or a value does not suit the booster.
        """

    def explain(self, rows: Any, parameters: Mapping[str, Any]) -> Tensors:
        """Give the SHAP values of each feature, and the bias.

        Raises:
            InvalidInput: A parameter or a value does not suit the booster.
        """


class BoosterModel(TensorModel):
    """A model of one booster; a subclass says how it is read and looked at.

    Args:
        name: The name under which it is served.
        model_dir: The directory of the artifact, or a `file://` address of it.
        nthread: Threads of one prediction; -1 for one on each CPU that the process may use.
        booster: A booster in the place of an artifact: the model is ready at once. So what
            `look_at` needs must be set before.

    Raises:
        ModelLoadError: The booster cannot be served.
    """

    def __init__(self, name: str, model_dir: str, nthread: int = 1, booster: Any = None) -> None:
        super().__init__(name, model_dir)
        self.nthread = thread_count(nthread)
        self._given = booster
        self._served: ServedBooster | None = None
        if booster is not None:
            self._serve(booster, name)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add `--nthread`."""
        parser.add_argument(
            "--nthread",
            type=threads,
            default=1,
            help="threads of one prediction, -1 for as many as there are CPUs (%(default)s)",
        )

    def read(self, path: Path) -> Any:
        """Read the booster that an artifact holds.

        Raises:
            ModelLoadError: The artifact cannot be loaded, or is refused.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no read")

    def look_at(self, booster: Any, owner: str) -> ServedBooster:
        """Look at a booster, once.

        Args:
            booster: What `read` gave, or what the constructor got.
            owner: What errors call it.

        Raises:
            ModelLoadError: It cannot be served.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no look_at")

    def load(self) -> bool:
        """Load the artifact and look at the booster.

        Raises:
            ModelMissingError: The directory holds no artifact.
            ModelLoadError: It holds several; the artifact cannot be loaded, or is refused; or the
                booster cannot be served.
        """
        if self._given is not None:
            return self._serve(self._given, self.name)
        assert self.model_dir is not None
        path = find_artifact(self.model_dir, self.artifact_suffixes)
        return self._serve(self.read(path), str(path))

    def cost_kind(self, options: PredictOptions) -> Hashable:
        """Give the methods that are called: contributions cost many times a prediction."""
        assert self._served is not None
        return self._served.methods.cost_kind(options)

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Call the method, or that of the parameter `method`, and those of requested outputs.

        Returns:
            "output-0", as many rows as the features have, and the requested outputs, each named as
            its method.

        Raises:
            InvalidInput: There is no such method; a parameter or a value does not suit the booster.
        """
        assert self._served is not None
        rows = self._served.rows(tensors, options.parameters)
        return self._served.methods.predict(rows, options)

    def explain_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Give the SHAP values of each feature, and the bias; their sum is the raw prediction.

        Raises:
            InvalidInput: A parameter or a value does not suit the booster.
        """
        assert self._served is not None
        rows = self._served.rows(tensors, options.parameters)
        return self._served.explain(rows, options.parameters)

    def _serve(self, booster: Any, owner: str) -> bool:
        served = self._served = self.look_at(booster, owner)
        self.signature = served.signature
        self.can_explain = served.can_explain
        self.ready = True
        return self.ready
