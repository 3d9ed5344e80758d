"""What stands in for KServe's scikit-learn server, here on the core in the place of its SDK."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks import kserve_sklearn
from benchmarks.artifacts import train

from kserve import InferInput, InferRequest, InferResponse
from kserve.errors import InferenceError


@pytest.fixture
def model(tmp_path: Path) -> kserve_sklearn.SKLearnModel:
    model = kserve_sklearn.SKLearnModel("iris", str(train("iris", tmp_path).directory))
    model.load()
    return model


def test_answers_v1_and_v2(model: kserve_sklearn.SKLearnModel) -> None:
    rows = [[6.8, 2.8, 4.8, 1.4], [5.1, 3.5, 1.4, 0.2]]
    request = InferRequest("iris", [InferInput("x", [2, 4], "FP64", np.array(rows))])

    answers = [model.predict({"instances": rows}), model.predict(request)]

    assert model.ready
    assert answers[0] == {"predictions": [1, 0]}
    assert isinstance(answers[1], InferResponse)
    assert answers[1].outputs[0].as_numpy().tolist() == [1, 0]


def test_any_failure_is_an_inference_error(model: kserve_sklearn.SKLearnModel) -> None:
    with pytest.raises(InferenceError, match="4 features"):
        model.predict({"instances": [[1.0]]})


def test_answers_probabilities_where_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREDICT_PROBA", "true")
    artifact = train("linear", tmp_path)
    model = kserve_sklearn.SKLearnModel("linear", str(artifact.directory))
    model.load()

    answer = model.predict({"instances": artifact.rows(1).tolist()})

    assert answer == {"predictions": artifact.estimator.predict_proba(artifact.rows(1)).tolist()}
