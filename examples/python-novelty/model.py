"""Two artifacts in one model: a classifier, and a detector of what it has never seen."""

from typing import Any

import joblib
import numpy as np

import kserve
from kserve.errors import InvalidInput
from kserve.utils.utils import get_predict_input, get_predict_response

SPECIES = np.array(["setosa", "versicolor", "virginica"])


class Flowers(kserve.Model):
    """Names the species of irises, and says "unknown" of what is none."""

    # Rows of requests that wait together are one call of `predict`.
    batching = True

    def load(self) -> bool:
        """Load both artifacts, by their paths beside this file."""
        self.classifier = joblib.load("classifier.joblib")
        self.detector = joblib.load("detector.joblib")
        return True

    def predict(self, payload: Any) -> Any:
        """Answer a V1 or a V2 request with a name for each row of four measures, in cm."""
        rows = as_measures(get_predict_input(payload))
        names = SPECIES[self.classifier.predict(rows)]
        names = np.where(self.detector.predict(rows) == 1, names, "unknown")
        return get_predict_response(payload, names.astype(object), self.name)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the input in the model's metadata."""
        return [{"name": "measures", "datatype": "FP64", "shape": [-1, 4]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the output in the model's metadata."""
        return [{"name": "output-0", "datatype": "BYTES", "shape": [-1]}]


def as_measures(instances: Any) -> np.ndarray:
    """Check what came in a request.

    Raises:
        InvalidInput: It is no table of four numbers a row; the client reads why.
    """
    try:
        rows = np.asarray(instances, dtype=float)
    except (TypeError, ValueError) as exc:
        raise InvalidInput(f"expected rows of four numbers: {exc}") from exc
    if rows.ndim != 2 or rows.shape[1] != 4 or not np.isfinite(rows).all():
        raise InvalidInput(f"expected rows of four numbers, got the shape {list(rows.shape)}")
    return rows
