"""Models of every kind that XGBoost trains, small and trained once."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from numpy.typing import NDArray

N_ROWS = 200


def _features() -> NDArray[np.float32]:
    random = np.random.default_rng(7)
    features = random.normal(size=(N_ROWS, 4)).astype(np.float32)
    features[random.random(features.shape) < 0.1] = np.nan
    return features


FEATURES = _features()
NUMBERS = np.nan_to_num(FEATURES[:, 0]) - 2 * np.nan_to_num(FEATURES[:, 2])
CLASSES = np.digitize(NUMBERS, [-1, 1])
TARGETS = np.column_stack([NUMBERS, -NUMBERS + np.nan_to_num(FEATURES[:, 1])])
NAMES = ["age", "height", "bias", "x y"]


def _train(labels: Any, n_rounds: int = 6, names: Any = None, **parameters: Any) -> Any:
    data = xgboost.DMatrix(FEATURES, labels, feature_names=names)
    return xgboost.train({"nthread": 1, "max_depth": 3, **parameters}, data, n_rounds)


def _stopped_early() -> Any:
    data = xgboost.DMatrix(FEATURES[:150], NUMBERS[:150])
    # The other way round, so that more rounds are worse.
    unlike = xgboost.DMatrix(FEATURES[150:], -NUMBERS[150:])
    booster = xgboost.train(
        {"nthread": 1, "base_score": 0.5},
        data,
        20,
        evals=[(unlike, "unlike")],
        early_stopping_rounds=3,
        verbose_eval=False,
    )
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()
    return booster


def frame() -> pd.DataFrame:
    """Give numbers beside two columns of categories, with missing ones."""
    colours = np.array(["blue", "green", "red"])[CLASSES].astype(object)
    colours[::9] = None
    return pd.DataFrame(
        {
            "age": FEATURES[:, 0],
            "colour": pd.Categorical(colours),
            "size": pd.Categorical((CLASSES * 10 + 10).tolist()),
        }
    )


def _with_categories() -> Any:
    data = xgboost.DMatrix(frame(), NUMBERS, enable_categorical=True)
    return xgboost.train({"nthread": 1, "max_cat_to_onehot": 1, "tree_method": "hist"}, data, 6)


_MAKERS: dict[str, Callable[[], Any]] = {
    "number": lambda: _train(NUMBERS),
    "named": lambda: _train(NUMBERS > 0, names=NAMES, objective="binary:logistic"),
    "classes": lambda: _train(CLASSES, objective="multi:softprob", num_class=3),
    "labels": lambda: _train(CLASSES, objective="multi:softmax", num_class=3),
    "targets": lambda: _train(TARGETS),
    "vectors": lambda: _train(TARGETS, multi_strategy="multi_output_tree", tree_method="hist"),
    "dart": lambda: _train(NUMBERS > 0, 12, booster="dart", rate_drop=0.5),
    "linear": lambda: xgboost.train(
        {"nthread": 1, "booster": "gblinear"}, xgboost.DMatrix(FEATURES, NUMBERS), 6
    ),
    "one tree": lambda: _train(NUMBERS, 1),
    "forest": lambda: _train(NUMBERS, 2, num_parallel_tree=3, subsample=0.5),
    "quantiles": lambda: _train(
        NUMBERS, objective="reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9]
    ),
    "stopped early": _stopped_early,
    "categories": _with_categories,
}


@cache
def trained(kind: str) -> Any:
    """Give a trained booster."""
    return _MAKERS[kind]()


@pytest.fixture(params=_MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Give every kind of model in turn."""
    return str(request.param)


@pytest.fixture
def booster() -> Callable[[str], Any]:
    """Give the trained booster of a kind; shared, so nothing may change it."""
    return trained


@pytest.fixture
def features() -> NDArray[np.float32]:
    """Give rows of four features, some of them missing."""
    return FEATURES


@pytest.fixture
def labels() -> dict[str, NDArray[Any]]:
    """Give what the models learn."""
    return {"numbers": NUMBERS, "classes": CLASSES, "targets": TARGETS}


@pytest.fixture
def categorical() -> pd.DataFrame:
    """Give rows with categories, some of them missing."""
    return frame()
