"""The XGBoost model and the repository of several."""

import argparse
from pathlib import Path
from typing import Any, Self

from kserve.boosters import BoosterModel
from kserve.directory_repository import LoadedRepository
from kserve.model_repository import MODEL_MOUNT_DIRS
from kserve.pickles import add_allow_pickle, is_pickle_allowed
from xgbserver.booster import METHODS, ServedBooster, describe
from xgbserver.loading import SUFFIXES, load_model


class XGBoostModel(BoosterModel):
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
        self._method = method
        self._iteration_range = iteration_range
        self._allow_pickle = allow_pickle
        super().__init__(name, model_dir, nthread, booster)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add `--nthread`, `--method`, `--iteration_range` and `--allow_pickle`."""
        super().add_arguments(parser)
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

    def read(self, path: Path) -> Any:
        """Read a Booster, or an XGBModel that was pickled; see `load_model`."""
        allow_pickle = is_pickle_allowed(self._allow_pickle)
        return load_model(path, nthread=self.nthread, allow_pickle=allow_pickle)

    def look_at(self, booster: Any, owner: str) -> ServedBooster:
        """Set the threads, and look at the booster; see `describe`."""
        if hasattr(booster, "set_param"):
            booster.set_param({"nthread": self.nthread})
        else:
            booster.n_jobs = self.nthread
        return describe(
            booster, method=self._method, iteration_range=self._iteration_range, owner=owner
        )


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
