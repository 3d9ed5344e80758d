"""The XGBoost model and the repository of several."""

import argparse
from collections.abc import Hashable
from typing import Any, Final, Self

from kserve.artifact import find_artifact
from kserve.config import threads
from kserve.cpu import thread_count
from kserve.directory_repository import LoadedRepository
from kserve.errors import InvalidInput
from kserve.model import PredictOptions, TensorModel
from kserve.model_repository import MODEL_MOUNT_DIRS
from kserve.pickles import add_allow_pickle, is_pickle_allowed
from kserve.signature import Tensors
from kserve.tables import as_matrix
from xgbserver.booster import (
    APPROXIMATE_CONTRIBUTIONS,
    CONTRIBUTIONS,
    METHODS,
    Rows,
    ServedBooster,
    describe,
)
from xgbserver.iterations import PARAMETER
from xgbserver.loading import SUFFIXES, load_model

_EXPLANATIONS: Final = (CONTRIBUTIONS, APPROXIMATE_CONTRIBUTIONS)


class XGBoostModel(TensorModel):
    """A model of XGBoost's.

    Args:
        name: The name under which it is served.
        model_dir: The directory of the artifact, or a `file://` address of it.
        nthread: Threads of one prediction; -1 for one on each CPU that the process may use.
        booster: An `xgboost.Booster`, or a fitted `xgboost.XGBModel`, in the place of an artifact:
            the model is ready at once.
        method: The method that answers; one of `METHODS`. If None, `predict`.
        iteration_range: The rounds of boosting that count: `all`, `best` or `BEGIN:END`. If None,
            all of a Booster, and those up to the best one of an XGBModel with early stopping.
        allow_pickle: Load a pickle, which can run any code. If None, only where the environment
            says `KSERVE_ALLOW_PICKLE=true`.

    Raises:
        ModelLoadError: The booster cannot be served.
    """

    platform = "xgboost"
    artifact_suffixes = SUFFIXES

    def __init__(
        self,
        name: str,
        model_dir: str,
        nthread: int = 1,
        booster: Any = None,
        *,
        method: str | None = None,
        iteration_range: str | None = None,
        allow_pickle: bool | None = None,
    ) -> None:
        super().__init__(name, model_dir)
        self._nthread = thread_count(nthread)
        self._given = booster
        self._method = method
        self._iteration_range = iteration_range
        self._allow_pickle = allow_pickle
        self._served: ServedBooster | None = None
        if booster is not None:
            self._serve(booster, name)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add `--nthread`, `--method`, `--iteration_range` and `--allow_pickle`."""
        parser.add_argument(
            "--nthread",
            type=threads,
            default=1,
            help="threads of one prediction, -1 for as many as there are CPUs (%(default)s)",
        )
        parser.add_argument(
            "--method", choices=METHODS, help="the method that answers requests (predict)"
        )
        parser.add_argument(
            "--iteration_range",
            metavar="RANGE",
            help="the rounds of boosting that count: all, best or BEGIN:END (all; of a pickled "
            "model with early stopping, best)",
        )
        add_allow_pickle(parser)

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> Self:
        """Make an unloaded model as the command line says."""
        return cls(
            name,
            model_dir,
            args.nthread,
            method=args.method,
            iteration_range=args.iteration_range,
            allow_pickle=args.allow_pickle or None,
        )

    def load(self) -> bool:
        """Load the artifact and look at the model.

        Raises:
            ModelMissingError: The directory holds no artifact.
            ModelLoadError: It holds several; the artifact cannot be loaded, or is refused; or the
                model cannot be served.
        """
        if self._given is not None:
            return self._serve(self._given, self.name)
        assert self.model_dir is not None
        path = find_artifact(self.model_dir, self.artifact_suffixes)
        allow_pickle = is_pickle_allowed(self._allow_pickle)
        model = load_model(path, nthread=self._nthread, allow_pickle=allow_pickle)
        return self._serve(model, str(path))

    def cost_kind(self, options: PredictOptions) -> Hashable:
        """Give the methods that are called: contributions cost many times a prediction."""
        assert self._served is not None
        return self._served.methods.cost_kind(options)

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Call the method, or that of the parameter `method`, and those of requested outputs.

        The parameter `iteration_range` is `all`, `best` or `BEGIN:END`.

        Returns:
            "output-0", as many rows as the features have, and the requested outputs, each named as
            its method.

        Raises:
            InvalidInput: There is no such method, or no such rounds; or XGBoost refuses the values.
        """
        served = self._served
        assert served is not None
        return served.methods.predict(self._rows(served, tensors, options), options)

    def explain_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Give the SHAP values of each feature, and the bias; their sum is the margin.

        The parameter `method` may be `approximate_contributions`.

        Raises:
            InvalidInput: The method is another one, or there are no such rounds; or XGBoost refuses
                the values.
        """
        served = self._served
        assert served is not None
        method = options.parameters.get("method", CONTRIBUTIONS)
        if method not in _EXPLANATIONS:
            raise InvalidInput(
                f"parameter 'method': expected {' or '.join(_EXPLANATIONS)}, got {method!r}"
            )
        return served.explain(self._rows(served, tensors, options), method)

    def _serve(self, model: Any, owner: str) -> bool:
        if hasattr(model, "set_param"):
            model.set_param({"nthread": self._nthread})
        else:
            model.n_jobs = self._nthread
        self._served = describe(
            model, method=self._method, iteration_range=self._iteration_range, owner=owner
        )
        self.signature = self._served.signature
        self.can_explain = self._served.can_explain
        self.ready = True
        return self.ready

    @staticmethod
    def _rows(served: ServedBooster, tensors: Tensors, options: PredictOptions) -> Rows:
        iterations = served.iterations
        if PARAMETER in options.parameters:
            value = options.parameters[PARAMETER]
            iterations = served.rounds.parse(value, f"parameter {PARAMETER!r}")
        return Rows(as_matrix(tensors), iterations)


class XGBoostModelRepository(LoadedRepository):
    """Models in the sub-directories of a directory, each loaded now.

    Args:
        model_dir: The directory, or a `file://` address of it. It may be empty, or not be there
            yet: models can be loaded later.
        nthread: Threads of one prediction.
    """

    def __init__(self, model_dir: str = MODEL_MOUNT_DIRS, nthread: int = 1) -> None:
        super().__init__(
            lambda name, directory: XGBoostModel(name, directory, nthread), model_dir, SUFFIXES
        )
