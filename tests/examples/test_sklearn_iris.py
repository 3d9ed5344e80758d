import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_iris

EXAMPLE = Path(__file__).parents[2] / "examples" / "sklearn-iris"
ARTIFACT = EXAMPLE / "model" / "model.joblib"


def test_model_folder_holds_one_small_artifact() -> None:
    assert list(ARTIFACT.parent.iterdir()) == [ARTIFACT]
    assert ARTIFACT.stat().st_size < 20_000


def test_artifact_knows_its_features_and_classes() -> None:
    classifier = joblib.load(ARTIFACT)

    assert classifier.feature_names_in_.tolist() == load_iris(as_frame=True).data.columns.tolist()
    assert classifier.classes_.tolist() == [0, 1, 2]


def test_training_makes_the_committed_artifact(tmp_path: Path) -> None:
    features = load_iris(as_frame=True).data

    subprocess.run([sys.executable, EXAMPLE / "train.py", tmp_path], check=True)

    trained, committed = joblib.load(tmp_path / "model.joblib"), joblib.load(ARTIFACT)
    np.testing.assert_allclose(trained.predict_proba(features), committed.predict_proba(features))
