"""Models of every kind that LightGBM trains, small and trained once."""

from collections.abc import Callable
from functools import cache
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

N_ROWS = 300


def _features() -> NDArray[np.float64]:
    random = np.random.default_rng(7)
    features = random.normal(size=(N_ROWS, 4))
    features[random.random(features.shape) < 0.1] = np.nan
    return features


FEATURES = _features()
NUMBERS = np.nan_to_num(FEATURES[:, 0]) - 2 * np.nan_to_num(FEATURES[:, 2])
CLASSES = np.digitize(NUMBERS, [-1, 1])
NAMES = ["age", "height", "bias", "x y"]


def frame() -> pd.DataFrame:
    """Give numbers beside categories that are texts, numbers and booleans, some missing."""
    colours = np.array(["blue", "green", "red"])[CLASSES].astype(object)
    colours[::9] = None
    return pd.DataFrame(
        {
            "age": FEATURES[:, 0],
            "colour": pd.Categorical(colours),
            "size": pd.Categorical((CLASSES[::-1] * 10 + 10).tolist()),
            "sold": pd.Categorical((NUMBERS > 0).tolist()),
        }
    )


def _train(data: Any, labels: Any, **parameters: Any) -> Any:
    settings = {"verbosity": -1, "num_threads": 1, "num_leaves": 7, "min_data_per_group": 5}
    return lightgbm.train({**settings, **parameters}, lightgbm.Dataset(data, labels), 6)


_MAKERS: dict[str, Callable[[], Any]] = {
    "number": lambda: _train(FEATURES, NUMBERS),
    "named": lambda: _train(pd.DataFrame(FEATURES, columns=NAMES), NUMBERS > 0, objective="binary"),
    "classes": lambda: _train(FEATURES, CLASSES, objective="multiclass", num_class=3),
    "dart": lambda: _train(FEATURES, NUMBERS > 0, objective="binary", boosting="dart"),
    "forest": lambda: _train(
        FEATURES, NUMBERS, boosting="rf", bagging_freq=1, bagging_fraction=0.5
    ),
    "linear tree": lambda: _train(FEATURES, NUMBERS, linear_tree=True),
    "categories": lambda: _train(frame(), NUMBERS),
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
def features() -> NDArray[np.float64]:
    """Give rows of four features, some of them missing."""
    return FEATURES


@pytest.fixture
def categorical() -> pd.DataFrame:
    """Give rows with categories, some of them missing."""
    return frame()
