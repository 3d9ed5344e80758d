"""The LightGBM model and the repository of several."""

import argparse
from collections.abc import Hashable
from typing import Any, Self

from kserve.artifact import find_artifact
from kserve.config import count, threads
from kserve.cpu import thread_count
from kserve.directory_repository import LoadedRepository
from kserve.model import PredictOptions, TensorModel
from kserve.model_repository import MODEL_MOUNT_DIRS
from kserve.signature import Tensors
from lgbserver.booster import METHODS, ServedBooster, describe
from lgbserver.iterations import Iterations
from lgbserver.loading import SUFFIXES, load_booster


class LightGBMModel(TensorModel):
    """A model of LightGBM's.

    Args:
        name: The name under which it is served.
        model_dir: The directory of the artifact, or a `file://` address of it.
        nthread: Threads of one prediction; -1 for one on each CPU that the process may use.
        booster: A `lightgbm.Booster` in the place of an artifact: the model is ready at once.
        method: The method that answers; one of `METHODS`.
        start_iteration: The first iteration of boosting that counts, from 0.
        num_iteration: How many count; -1 for all, None for those up to the best one that the
            booster knows of, which in a file are all.
        predict_disable_shape_check: Take rows of more or fewer features than the model has.

    Raises:
        ModelLoadError: The booster cannot be served.
    """

    platform = "lightgbm"
    artifact_suffixes = SUFFIXES

    def __init__(
        self,
        name: str,
        model_dir: str,
        nthread: int = 1,
        booster: Any = None,
        *,
        method: str = "predict",
        start_iteration: int = 0,
        num_iteration: int | None = None,
        predict_disable_shape_check: bool = False,
    ) -> None:
        super().__init__(name, model_dir)
        self._nthread = thread_count(nthread)
        self._given = booster
        self._method = method
        self._iterations = Iterations(start_iteration, num_iteration)
        self._takes_any_shape = predict_disable_shape_check
        self._served: ServedBooster | None = None
        if booster is not None:
            self._serve(booster, name)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags of `__init__`."""
        add = parser.add_argument
        add(
            "--nthread",
            type=threads,
            default=1,
            help="threads of one prediction, -1 for as many as there are CPUs (%(default)s)",
        )
        add(
            "--method",
            choices=METHODS,
            default="predict",
            help="the method that answers requests (%(default)s)",
        )
        add(
            "--start_iteration",
            type=count,
            default=0,
            help="the first iteration of boosting that counts (%(default)s)",
        )
        add("--num_iteration", type=threads, help="how many iterations count, -1 for all (all)")
        add(
            "--predict_disable_shape_check",
            action="store_true",
            help="take rows of more or fewer features than the model has",
        )

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> Self:
        """Make an unloaded model as the command line says."""
        return cls(
            name,
            model_dir,
            args.nthread,
            method=args.method,
            start_iteration=args.start_iteration,
            num_iteration=args.num_iteration,
            predict_disable_shape_check=args.predict_disable_shape_check,
        )

    def load(self) -> bool:
        """Load the artifact and look at the model.

        Raises:
            ModelMissingError: The directory holds no artifact.
            ModelLoadError: It holds several; the artifact cannot be loaded; or the model cannot be
                served.
        """
        if self._given is not None:
            return self._serve(self._given, self.name)
        assert self.model_dir is not None
        path = find_artifact(self.model_dir, self.artifact_suffixes)
        return self._serve(load_booster(path), str(path))

    def cost_kind(self, options: PredictOptions) -> Hashable:
        """Give the methods that are called: contributions cost many times a prediction."""
        assert self._served is not None
        return self._served.methods.cost_kind(options)

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Call the method, or that of the parameter `method`, and those of requested outputs.

        The parameters `start_iteration` and `num_iteration` are those of `Booster.predict`.

        Returns:
            "output-0", as many rows as the features have, and the requested outputs, each named as
            its method.

        Raises:
            InvalidInput: There is no such method, or no such iterations; text is not UTF-8; or
                LightGBM refuses the values.
        """
        served = self._served
        assert served is not None
        return served.methods.predict(served.rows(tensors, options.parameters), options)

    def explain_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Give the SHAP values of each feature, and the bias; their sum is the raw score.

        Raises:
            InvalidInput: As `predict_tensors`.
        """
        served = self._served
        assert served is not None
        return served.explain(served.rows(tensors, options.parameters))

    def _serve(self, booster: Any, owner: str) -> bool:
        self._served = describe(
            booster,
            method=self._method,
            iterations=self._iterations,
            num_threads=self._nthread,
            takes_any_shape=self._takes_any_shape,
            owner=owner,
        )
        self.signature = self._served.signature
        self.can_explain = self._served.can_explain
        self.ready = True
        return self.ready


class LightGBMModelRepository(LoadedRepository):
    """Models in the sub-directories of a directory, each loaded now.

    Args:
        model_dir: The directory, or a `file://` address of it. It may be empty, or not be there
            yet: models can be loaded later.
        nthread: Threads of one prediction.
    """

    def __init__(self, model_dir: str = MODEL_MOUNT_DIRS, nthread: int = 1) -> None:
        super().__init__(
            lambda name, directory: LightGBMModel(name, directory, nthread), model_dir, SUFFIXES
        )
