from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kserve.trial_load import find_library
from lgbserver.trial import load

LIBRARY = str(find_library("lightgbm", "lib_lightgbm"))


def test_every_model_is_loaded_and_looked_at(
    tmp_path: Path, kind: str, booster: Callable[[str], Any]
) -> None:
    booster(kind).save_model(tmp_path / "model.txt")

    load(LIBRARY, str(tmp_path / "model.txt"))


def test_what_lightgbm_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("no model")

    with pytest.raises(ValueError, match="^Unknown model format or submodel type in model file"):
        load(LIBRARY, str(tmp_path / "model.txt"))
