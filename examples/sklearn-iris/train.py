"""Trains a classifier on the iris flowers that scikit-learn carries, and writes it to model/."""

import sys
from pathlib import Path

import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main(model_dir: Path) -> None:
    """Write `model.joblib`: four named features in centimetres to one of the classes 0, 1 and 2."""
    features, species = load_iris(return_X_y=True, as_frame=True)
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    classifier.fit(features, species)
    model_dir.mkdir(exist_ok=True)
    joblib.dump(classifier, model_dir / "model.joblib")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "model")
