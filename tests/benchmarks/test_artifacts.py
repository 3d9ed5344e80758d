from pathlib import Path

import joblib
import numpy as np
import pytest
from benchmarks.artifacts import MODELS, train

WIDTHS = {"iris": 4, "forest": 100, "linear": 100}
NETS = ("net", "wide-net")
BOOSTERS = ("xgboost", "lightgbm")
MODULES = ("tf-net", "wide-tf-net")


@pytest.mark.parametrize("name", WIDTHS)
def test_an_artifact_is_the_estimator_alone_in_its_directory(name: str, tmp_path: Path) -> None:
    artifact = train(name, tmp_path)

    (file,) = artifact.directory.iterdir()
    rows = artifact.rows(3)
    assert rows.shape == (3, WIDTHS[name])
    loaded = joblib.load(file).predict(rows)
    assert loaded.tolist() == artifact.estimator.predict(rows).tolist()


@pytest.mark.parametrize("name", NETS)
def test_a_net_is_a_file_that_onnxruntime_reads(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    artifact = train(name, tmp_path)

    (file,) = artifact.directory.iterdir()
    rows = artifact.rows(3, "float32")
    (labels,) = ort.InferenceSession(file).run(None, {"input-0": rows})
    assert labels.tolist() == artifact.estimator.predict(rows).tolist()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_a_saved_model_that_tensorflow_reads(name: str, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    artifact = train(name, tmp_path)

    (signature,) = tf.saved_model.load(str(artifact.directory)).signatures.values()
    rows = artifact.rows(3, "float32")
    (labels,) = signature(tf.constant(rows)).values()
    assert labels.numpy().tolist() == artifact.estimator.predict(rows).tolist()


@pytest.mark.parametrize("name", BOOSTERS)
def test_a_booster_is_saved_as_its_framework_does(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip(name, reason=f"{name} is not installed")
    artifact = train(name, tmp_path)

    (file,) = artifact.directory.iterdir()
    loaded = library.Booster(model_file=file)
    rows = artifact.rows(3)
    given = loaded.inplace_predict(rows) if name == "xgboost" else loaded.predict(rows)
    assert given.tolist() == artifact.estimator.predict(rows).tolist()


def test_more_rows_than_there_are_begin_again(tmp_path: Path) -> None:
    artifact = train("iris", tmp_path)

    rows = artifact.rows(151, "float32")

    assert rows.dtype == np.float32
    assert rows[150].tolist() == rows[0].tolist()


def test_answers_do_not_depend_on_the_datatype(tmp_path: Path) -> None:
    artifact = train("linear", tmp_path)

    scores = artifact.estimator.decision_function(artifact.features)
    in_fp32 = artifact.estimator.predict(artifact.features.astype(np.float32))

    assert in_fp32.tolist() == artifact.estimator.predict(artifact.features).tolist()
    assert np.abs(scores).min() > 0.05


def test_there_is_a_model_that_costs_by_the_row() -> None:
    assert set(MODELS) == {*WIDTHS, *BOOSTERS, *NETS, *MODULES, "vectors"}
