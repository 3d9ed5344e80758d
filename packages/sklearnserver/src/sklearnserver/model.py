"""The scikit-learn model and the repository of several."""

import argparse
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Self

from kserve.artifact import find_artifact
from kserve.config import is_set, threads
from kserve.cpu import thread_count
from kserve.directory_repository import LoadedRepository
from kserve.model import PredictOptions, TensorModel
from kserve.model_repository import MODEL_MOUNT_DIRS
from kserve.pickles import add_allow_pickle, is_pickle_allowed
from kserve.signature import Tensors
from sklearnserver.estimator import METHODS, ServedEstimator, describe
from sklearnserver.loading import load_estimator
from sklearnserver.parts import set_jobs

# Upstream's switch.
_PREDICT_PROBA_VARIABLE: Final = "PREDICT_PROBA"


class SKLearnModel(TensorModel):
    """A fitted estimator of scikit-learn's kind.

    Args:
        name: The name under which it is served.
        model_dir: The directory of the artifact, or a `file://` address of it.
        method: The method that answers; one of `METHODS`. If None, `predict`, or `predict_proba`
            where the environment says `PREDICT_PROBA=true` and the estimator has it, or `transform`
            where it has no `predict`.
        allow_pickle: Load any pickle, which can run any code. If None, only where the environment
            says `KSERVE_ALLOW_PICKLE=true`.
        n_jobs: Threads of one prediction, for the estimators that can use several; -1 for one on
            each CPU that the process may use.
    """

    platform = "sklearn"
    artifact_suffixes = (".joblib", ".pkl", ".pickle", ".skops")

    def __init__(
        self,
        name: str,
        model_dir: str,
        *,
        method: str | None = None,
        allow_pickle: bool | None = None,
        n_jobs: int = 1,
    ) -> None:
        super().__init__(name, model_dir)
        self._method = method
        self._allow_pickle = allow_pickle
        self._n_jobs = thread_count(n_jobs)
        self._served: ServedEstimator | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add `--method`, `--allow_pickle` and `--n_jobs`."""
        parser.add_argument(
            "--method",
            choices=METHODS,
            help="the method that answers requests (predict, or transform without a predict)",
        )
        add_allow_pickle(parser)
        parser.add_argument(
            "--n_jobs",
            type=threads,
            default=1,
            help="threads of one prediction, -1 for as many as there are CPUs (%(default)s)",
        )

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> Self:
        """Make an unloaded model as the command line says."""
        return cls(
            name,
            model_dir,
            method=args.method,
            allow_pickle=args.allow_pickle or None,
            n_jobs=args.n_jobs,
        )

    def load(self) -> bool:
        """Load the artifact and look at the estimator.

        Raises:
            ModelMissingError: The directory holds no artifact.
            ModelLoadError: It holds several; the artifact cannot be loaded, or is refused; or the
                estimator cannot be served.
        """
        assert self.model_dir is not None
        path = find_artifact(self.model_dir, self.artifact_suffixes)
        estimator = load_estimator(path, allow_pickle=is_pickle_allowed(self._allow_pickle))
        set_jobs(estimator, self._n_jobs)
        with self._in_threads():
            self._served = describe(estimator, self._method or _preferred(estimator), str(path))
        self.signature = self._served.signature
        self.ready = True
        return self.ready

    def example_row(self) -> Tensors | None:
        """Give a row of categories that the encoders know."""
        return None if self._served is None else self._served.example_row

    def cost_kind(self, options: PredictOptions) -> Hashable:
        """Give the methods that are called."""
        assert self._served is not None
        return self._served.methods.cost_kind(options)

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Call the method, or that of the parameter `method`, and those of requested outputs.

        Returns:
            "output-0", as many rows as the features have, and the requested outputs; more than one
            array for several targets, and one for each column of a DataFrame.

        Raises:
            InvalidInput: The estimator has no such method, or text is not UTF-8.
            ValueError, TypeError: The estimator refuses the values.
        """
        served = self._served
        assert served is not None
        with self._in_threads():
            return served.methods.predict(served.make_features(tensors), options)

    def _in_threads(self) -> AbstractContextManager[object]:
        """Run the jobs of the block in threads: some estimators start processes otherwise."""
        if self._n_jobs == 1:
            return nullcontext()
        import joblib

        context: AbstractContextManager[object] = joblib.parallel_config(backend="threading")
        return context


class SKLearnModelRepository(LoadedRepository):
    """Models in the sub-directories of a directory, each loaded now.

    Args:
        model_dir: The directory, or a `file://` address of it. It may be empty, or not be there
            yet: models can be loaded later.
    """

    def __init__(self, model_dir: str = MODEL_MOUNT_DIRS) -> None:
        super().__init__(SKLearnModel, model_dir)


def _preferred(estimator: Any) -> str | None:
    is_wanted = is_set(_PREDICT_PROBA_VARIABLE) and hasattr(estimator, "predict_proba")
    return "predict_proba" if is_wanted else None
