from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest
import xgboost

from kserve.trial_load import find_library
from xgbserver.trial import load, plain

LIBRARY = str(find_library("xgboost", "libxgboost"))


def test_every_model_is_loaded_and_looked_at(
    tmp_path: Path, kind: str, booster: Callable[[str], Any]
) -> None:
    booster(kind).save_model(tmp_path / "model.ubj")

    load(LIBRARY, str(tmp_path / "model.ubj"))


def test_a_pickle_is_loaded(tmp_path: Path, booster: Callable[[str], Any]) -> None:
    joblib.dump(booster("number"), tmp_path / "model.joblib")

    load(LIBRARY, str(tmp_path / "model.joblib"))


def test_what_xgboost_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"learner": 3}')

    with pytest.raises(ValueError, match=r"^(?!\[|/).*Object"):
        load(LIBRARY, str(tmp_path / "model.json"))


def test_a_message_is_told_without_its_places() -> None:
    error = xgboost.core.XGBoostError(
        "[12:34:56] /workspace/src/common/json.cc:416: Expecting:\n  a value\nStack trace:\n  [bt]"
    )

    assert plain(error) == "Expecting: a value"
