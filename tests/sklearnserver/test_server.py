import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import DBSCAN
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from kserve.testing import ServerProcess, request

ROWS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
FEATURES, SPECIES = load_iris(return_X_y=True, as_frame=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


def save(model_dir: Path, estimator: Any) -> Path:
    model_dir.mkdir(exist_ok=True)
    joblib.dump(estimator, model_dir / "model.joblib")
    return model_dir


def v2_output(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": None, "data": data}


def test_serves_iris_over_both_protocols(tmp_path: Path) -> None:
    classifier = LogisticRegression(max_iter=500).fit(FEATURES, SPECIES)
    save(tmp_path, classifier)
    v2_body = {
        "id": "7",
        "inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP64", "data": ROWS}],
        "outputs": [{"name": "output-0"}, {"name": "predict_proba"}],
    }

    with ServerProcess(
        "sklearnserver", "--model_dir", str(tmp_path), "--model_name", "iris"
    ) as server:
        v1 = request(server.port, "POST", "/v1/models/iris:predict", {"instances": ROWS})
        v2 = request(server.port, "POST", "/v2/models/iris/infer", v2_body)
        metadata = request(server.port, "GET", "/v2/models/iris").json()
        wrong = request(server.port, "POST", "/v1/models/iris:predict", {"instances": [[1.0] * 3]})

    proba = classifier.predict_proba(pd.DataFrame(ROWS, columns=FEATURES.columns))
    assert (v1.status, v1.json()) == (200, {"predictions": [1, 1]})
    assert (v2.status, v2.json()["outputs"]) == (
        200,
        [
            v2_output("output-0", [2], "INT64", [1, 1]),
            v2_output("predict_proba", [2, 3], "FP64", proba.ravel().tolist()),
        ],
    )
    assert metadata["platform"] == "sklearn"
    assert metadata["inputs"] == [
        {"name": name, "datatype": "FP64", "shape": [-1]} for name in FEATURES
    ]
    assert metadata["outputs"] == [{"name": "output-0", "datatype": "INT64", "shape": [-1]}]
    assert wrong.status == 400
    assert "expected 4 values" in wrong.json()["error"]
    assert "valid feature names" not in server.stderr


def test_serves_mixed_columns_with_the_method_of_the_command_line(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"age": [20.0, 40.0, 60.0, 80.0], "city": pd.Series(["a", "b", None, "b"], dtype=object)}
    )
    columns = ColumnTransformer(
        [("n", StandardScaler(), ["age"]), ("t", OneHotEncoder(), ["city"])]
    )
    estimator = make_pipeline(columns, LogisticRegression()).fit(frame, ["no", "yes", "no", "yes"])
    save(tmp_path, estimator)
    rows = [[20.0, "a"], [40.0, "b"], [60.0, None], [80.0, "b"]]
    v2_body = {
        "parameters": {"content_type": "pd", "method": "predict"},
        "inputs": [
            {"name": "city", "shape": [4], "datatype": "BYTES", "data": ["a", "b", "a", "b"]},
            {"name": "age", "shape": [4, 1], "datatype": "INT64", "data": [20, 40, 60, 80]},
        ],
    }

    with ServerProcess(
        "sklearnserver",
        *("--model_dir", str(tmp_path), "--model_name", "m", "--method", "predict_proba"),
    ) as server:
        v1 = request(server.port, "POST", "/v1/models/m:predict", {"instances": rows})
        v2 = request(server.port, "POST", "/v2/models/m/infer", v2_body)

    assert v1.json() == {"predictions": estimator.predict_proba(frame).tolist()}
    assert v2.json()["outputs"] == [v2_output("output-0", [4], "BYTES", ["no", "yes", "no", "yes"])]


def test_serves_every_directory_as_a_model(tmp_path: Path) -> None:
    features = FEATURES.to_numpy()
    save(tmp_path / "numbers", SVC().fit(features, SPECIES))
    save(tmp_path / "names", SVC().fit(features, np.array(["a", "b", "c"])[SPECIES]))

    with ServerProcess("sklearnserver", "--model_dir", str(tmp_path)) as server:
        answers = [
            request(server.port, "POST", f"/v1/models/{name}:predict", {"instances": ROWS}).json()
            for name in ("numbers", "names")
        ]

    assert answers == [{"predictions": [1, 1]}, {"predictions": ["b", "b"]}]


def test_serves_versions_and_follows_their_directory(tmp_path: Path) -> None:
    features = FEATURES.to_numpy()
    for version, classes in (("1", ["a", "b", "c"]), ("2", ["d", "e", "f"])):
        (tmp_path / version).mkdir()
        save(tmp_path / version, SVC().fit(features, np.array(classes)[SPECIES]))
    arguments = ("--model_dir", str(tmp_path), "--max_versions", "all")

    def predict(port: int, version: str = "") -> Any:
        path = f"/v1/models/model{version}:predict"
        return request(port, "POST", path, {"instances": ROWS}).json()

    with ServerProcess(
        "sklearnserver", *arguments, "--watch", "--watch_interval_s", "0.05"
    ) as server:
        answers = [predict(server.port, version) for version in ("/versions/1", "/versions/2", "")]
        save(tmp_path / ".new", SVC().fit(features, np.array(["g", "h", "i"])[SPECIES]))
        (tmp_path / ".new").rename(tmp_path / "3")
        while (followed := predict(server.port)) == answers[-1]:
            pass

    assert answers == [{"predictions": [letter] * 2} for letter in "bee"]
    assert followed == {"predictions": ["h", "h"]}


@pytest.mark.parametrize(
    ("estimator", "flags", "reason"),
    [
        pytest.param(None, [], "no model file, expected exactly one of", id="no artifact"),
        pytest.param(DBSCAN().fit(FEATURES), [], "DBSCAN has only fit_predict", id="fit_predict"),
        pytest.param(
            SVC().fit(FEATURES, SPECIES),
            ["--method", "transform"],
            "has no method transform; it has predict, decision_function",
            id="lacks the method",
        ),
    ],
)
def test_a_failed_start_ends_with_the_reason(
    tmp_path: Path, estimator: Any, flags: list[str], reason: str
) -> None:
    if estimator is not None:
        save(tmp_path, estimator)

    done = subprocess.run(
        [
            *(sys.executable, "-m", "sklearnserver", "--host", "127.0.0.1", "--http_port", "0"),
            *("--model_dir", str(tmp_path), "--model_dir_wait_s", "0", *flags),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert reason in done.stderr.splitlines()[-1]


def test_help_imports_no_framework() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['sklearnserver', '--help']\n"
        "try:\n"
        "    runpy.run_module('sklearnserver', run_name='__main__')\n"
        "except SystemExit:\n"
        "    print(sorted({'sklearn', 'pandas', 'joblib', 'scipy', 'skops'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert any("--method" in line for line in lines)
    assert any("--allow_pickle" in line for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_several_jobs_start_no_processes(tmp_path: Path) -> None:
    halves = [("a", StandardScaler(), [0, 1]), ("b", StandardScaler(), [2, 3])]
    features = FEATURES.to_numpy()
    estimator = make_pipeline(ColumnTransformer(halves), SVC()).fit(features, SPECIES)
    arguments = ("--model_dir", str(save(tmp_path, estimator)), "--n_jobs", "2")

    with ServerProcess("sklearnserver", *arguments) as server:
        response = server.request("POST", "/v1/models/model:predict", {"instances": ROWS})
        tasks = Path(f"/proc/{server.process.pid}/task")
        children = [(task / "children").read_text() for task in tasks.iterdir()]

    assert (response.status, response.json()) == (200, {"predictions": [1, 1]})
    assert set(children) == {""}
