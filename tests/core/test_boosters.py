import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kserve.boosters import BoosterModel
from kserve.errors import ModelLoadError, ModelMissingError
from kserve.methods import Methods, try_methods
from kserve.model import PredictOptions
from kserve.signature import Signature, Tensors
from kserve.tables import as_matrix, by_feature, table_inputs


@dataclass
class Served:
    weights: list[float]
    signature: Signature
    methods: Methods
    can_explain: bool = True

    def rows(self, tensors: Tensors, parameters: Mapping[str, Any]) -> Any:
        return as_matrix(tensors) * parameters.get("times", 1)

    def explain(self, rows: Any, parameters: Mapping[str, Any]) -> Tensors:
        bias = np.zeros((len(rows), 1))
        return by_feature(np.column_stack([rows * self.weights, bias]), ["a", "b"])


class Weights(BoosterModel):
    artifact_suffixes = (".w",)

    def read(self, path: Path) -> Any:
        return [float(word) for word in path.read_text().split()]

    def look_at(self, booster: Any, owner: str) -> Served:
        if len(booster) != 2:
            raise ModelLoadError(f"{owner}: expected 2 weights, got {len(booster)}")
        calls = {"predict": lambda rows: rows @ booster, "leaf": lambda rows: rows}
        tried = try_methods(calls, np.zeros((2, 2)), "predict", KeyError, owner)
        inputs = table_inputs([("FP64", True)] * 2, ["a", "b"])
        signature = Signature(inputs, tried.outputs, tried.optional_outputs, is_table=True)
        return Served(booster, signature, tried.methods)


def test_a_booster_is_read_predicts_and_explains(tmp_path: Path) -> None:
    (tmp_path / "model.w").write_text("2 3")
    model = Weights("m", str(tmp_path), 3)

    assert (model.ready, model.load(), model.ready) == (False, True, True)
    body = {"instances": [[1, 1], [0, 2]]}
    assert model.nthread == 3
    assert model.predict(body) == {"predictions": [5.0, 6.0]}
    assert model.predict({**body, "parameters": {"times": 2}}) == {"predictions": [10.0, 12.0]}
    assert model.explain(body) == {
        "explanations": [{"a": 2.0, "b": 3.0, "bias": 0.0}, {"a": 0.0, "b": 6.0, "bias": 0.0}]
    }
    assert model.cost_kind(PredictOptions({"method": "leaf"})) == "leaf"


def test_a_booster_may_be_given(tmp_path: Path) -> None:
    model = Weights("m", str(tmp_path / "nowhere"), booster=[1.0, 2.0])

    assert model.ready and model.load()
    assert model.predict({"instances": [[1, 1]]}) == {"predictions": [3.0]}
    with pytest.raises(ModelLoadError, match="^m: expected 2 weights, got 1$"):
        Weights("m", str(tmp_path), booster=[1.0])


def test_a_booster_that_is_missing_or_cannot_be_served_is_not_ready(tmp_path: Path) -> None:
    model = Weights("m", str(tmp_path))

    with pytest.raises(ModelMissingError):
        model.load()
    (tmp_path / "model.w").write_text("1")
    with pytest.raises(ModelLoadError, match=r"model\.w: expected 2 weights, got 1$"):
        model.load()
    assert not model.ready


def test_the_command_line_says_how_many_threads() -> None:
    parser = argparse.ArgumentParser()
    Weights.add_arguments(parser)

    assert parser.parse_args(["--nthread", "-1"]).nthread == -1
    assert parser.parse_args([]).nthread == 1


def test_a_server_has_to_say_how_boosters_are_read_and_looked_at(tmp_path: Path) -> None:
    model = BoosterModel("m", str(tmp_path))

    with pytest.raises(NotImplementedError, match="^BoosterModel defines no read$"):
        model.read(tmp_path)
    with pytest.raises(NotImplementedError, match="^BoosterModel defines no look_at$"):
        model.look_at(None, "m")
