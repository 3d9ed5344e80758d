"""The LightGBM model and the repository of several."""

import argparse
from pathlib import Path
from typing import Any, Self

from kserve.boosters import BoosterModel
from kserve.config import count, threads
from kserve.directory_repository import LoadedRepository
from kserve.model_repository import MODEL_MOUNT_DIRS
from lgbserver.booster import METHODS, ServedBooster, describe
from lgbserver.iterations import Iterations
from lgbserver.loading import SUFFIXES, load_booster


class LightGBMModel(BoosterModel):
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
        self._method = method
        self._iterations = Iterations(start_iteration, num_iteration)
        self._takes_any_shape = predict_disable_shape_check
        super().__init__(name, model_dir, nthread, booster)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add `--nthread`, and what else the constructor takes."""
        super().add_arguments(parser)
        add = parser.add_argument
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

    def read(self, path: Path) -> Any:
        """Read a Booster; see `load_booster`."""
        return load_booster(path)

    def look_at(self, booster: Any, owner: str) -> ServedBooster:
        """Look at the booster; see `describe`."""
        return describe(
            booster,
            method=self._method,
            iterations=self._iterations,
            num_threads=self.nthread,
            takes_any_shape=self._takes_any_shape,
            owner=owner,
        )


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
