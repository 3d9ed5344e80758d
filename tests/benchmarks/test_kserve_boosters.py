"""What stands in for KServe's servers of boosters, here on the core in the place of its SDK."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks import kserve_boosters
from benchmarks.artifacts import train

from kserve import InferInput, InferRequest, InferResponse
from kserve.errors import InferenceError


@pytest.mark.parametrize("framework", ["xgboost", "lightgbm"])
def test_answers_v1_and_v2(tmp_path: Path, framework: str) -> None:
    artifact = train(framework, tmp_path)
    model = kserve_boosters.BoosterModel("m", str(artifact.directory), framework, 1)
    model.load()
    rows = artifact.rows(2)
    request = InferRequest("m", [InferInput("x", list(rows.shape), "FP64", rows)])

    v1 = model.predict({"instances": rows.tolist()})
    v2 = model.predict(request)

    expected = artifact.estimator.predict(rows)
    assert v1 == {"predictions": expected.tolist()}
    assert isinstance(v2, InferResponse)
    np.testing.assert_array_equal(v2.outputs[0].as_numpy(), expected)
    with pytest.raises(InferenceError):
        model.predict({"instances": [["one"]]})
