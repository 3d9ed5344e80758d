"""`python kserve_sklearn.py --model_dir DIR --model_name NAME`: the peer, on KServe's own SDK.

It runs in an environment of its own, with `kserve` where `kserve-core` is here, and does what the
SDK's scikit-learn server does, which no package index carries: `joblib.load` of the one artifact,
then for each request `get_predict_input`, `predict` or, where the environment says PREDICT_PROBA,
`predict_proba`, and `get_predict_response`; any failure is an InferenceError. KServe's name for an
artifact is looked up in a local directory; a download is left out.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import joblib

from kserve import Model, ModelServer, model_server
from kserve.errors import InferenceError
from kserve.utils.utils import get_predict_input, get_predict_response

SUFFIXES = (".joblib", ".pkl", ".pickle")


class SKLearnModel(Model):
    """A scikit-learn estimator behind the handlers of KServe's SDK."""

    def __init__(self, name: str, model_dir: str) -> None:
        super().__init__(name)
        self.name = name
        self.model_dir = Path(model_dir)

    def load(self) -> bool:
        """Load the one artifact of the directory."""
        (artifact,) = [path for path in self.model_dir.iterdir() if path.suffix in SUFFIXES]
        self._estimator = joblib.load(artifact)
        self.ready = True
        return self.ready

    # Plain, as that of the SDK's own server: it runs on the event loop.
    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        """Answer one request."""
        try:
            rows = get_predict_input(payload)
            if os.environ.get("PREDICT_PROBA", "false").lower() == "true":
                result = self._estimator.predict_proba(rows)
            else:
                result = self._estimator.predict(rows)
            return get_predict_response(payload, result, self.name)
        except Exception as exc:
            raise InferenceError(str(exc)) from exc


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model_dir", required=True)
    args = parser.parse_args()
    model = SKLearnModel(args.model_name, args.model_dir)
    model.load()
    ModelServer().start([model])
