"""Trains both artifacts; the argument is the folder that they are written to."""

import sys
from pathlib import Path

import joblib
from sklearn.datasets import load_iris
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, OneClassSVM

folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
measures, species = load_iris(return_X_y=True)
classifier = SVC(gamma=1.0).fit(measures, species)
detector = make_pipeline(StandardScaler(), OneClassSVM(gamma=0.1, nu=0.01)).fit(measures)
joblib.dump(classifier, folder / "classifier.joblib")
joblib.dump(detector, folder / "detector.joblib")
