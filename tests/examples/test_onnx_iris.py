"""The ONNX example starts as its README says, and answers as the estimator it was made of."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris

from kserve.testing import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "onnx-iris"
ARTIFACT = EXAMPLE / "model" / "model.onnx"
ESTIMATOR = EXAMPLES / "sklearn-iris" / "model" / "model.joblib"

pytest.importorskip("onnxserver", reason="onnxserver is not installed")


def test_model_folder_holds_one_small_artifact() -> None:
    assert list(ARTIFACT.parent.iterdir()) == [ARTIFACT]
    assert ARTIFACT.stat().st_size < 2_000


def test_converting_makes_the_committed_artifact(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")

    subprocess.run([sys.executable, EXAMPLE / "convert.py", tmp_path], check=True)

    assert (tmp_path / "model.onnx").read_bytes() == ARTIFACT.read_bytes()


def test_it_answers_as_its_readme_says_and_as_the_estimator() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    started = re.search(r"^python -m onnxserver --model_dir (\S+) --model_name iris$", readme, re.M)
    commands = re.findall(r"^curl localhost:8080(\S+)(?: \\\n  -d ('.+'))?$", readme, re.M)
    assert started is not None
    rows = load_iris().data
    estimator = joblib.load(ESTIMATOR)
    arguments = ("--model_dir", str(EXAMPLES.parent / started[1]), "--model_name", "iris")

    with ServerProcess("onnxserver", *arguments) as server:
        answers = [
            server.request("POST", path, shlex.split(body)[0].encode())
            if body
            else server.request("GET", path)
            for path, body in commands
        ]
        everything = server.request(
            "POST", "/v1/models/iris:predict", {"instances": rows.tolist()}
        ).json()["predictions"]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[0].json()["predictions"][0]["species"] == "setosa"
    assert answers[1].json()["outputs"][0]["data"] == ["setosa"]
    assert [output["name"] for output in answers[2].json()["outputs"]] == list(everything[0])
    species = ["setosa", "versicolor", "virginica"]
    odds = np.array([[row[f"probability-{name}"] for name in species] for row in everything])
    with_names = load_iris(as_frame=True).data
    np.testing.assert_allclose(odds, estimator.predict_proba(with_names), atol=1e-5)
    assert [row["species"] for row in everything] == [
        species[i] for i in estimator.predict(with_names)
    ]
