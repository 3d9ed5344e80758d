"""`python kserve_boosters.py --framework F --model_dir DIR --model_name NAME`: the peer.

It runs on KServe's own SDK in an environment of its own, as `kserve_sklearn.py` does, and does what
the SDK's servers for XGBoost and LightGBM do, which no package index carries: a Booster of the one
artifact, with one thread; then for each request `get_predict_input`, for XGBoost a DMatrix of it,
`predict` and `get_predict_response`; any failure is an InferenceError.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kserve import Model, ModelServer, model_server
from kserve.errors import InferenceError
from kserve.utils.utils import get_predict_input, get_predict_response

# A payload -> predictions.
Predict = Callable[[Any], Any]


def load_xgboost(artifact: Path, nthread: int) -> Predict:
    """Load a booster of XGBoost's."""
    import xgboost

    booster = xgboost.Booster(params={"nthread": nthread}, model_file=artifact)
    return lambda payload: booster.predict(
        xgboost.DMatrix(get_predict_input(payload), nthread=nthread)
    )


def load_lightgbm(artifact: Path, nthread: int) -> Predict:
    """Load a booster of LightGBM's, which takes the number of threads from its file."""
    import lightgbm

    booster = lightgbm.Booster(model_file=artifact)
    names = booster.feature_name()
    return lambda payload: booster.predict(get_predict_input(payload, columns=names))


FRAMEWORKS = {"xgboost": load_xgboost, "lightgbm": load_lightgbm}


class BoosterModel(Model):
    """A booster behind the handlers of KServe's SDK."""

    def __init__(self, name: str, model_dir: str, framework: str, nthread: int) -> None:
        super().__init__(name)
        self.name = name
        self._model_dir = Path(model_dir)
        self._load = FRAMEWORKS[framework]
        self._nthread = nthread

    def load(self) -> bool:
        """Load the one artifact of the directory."""
        (artifact,) = self._model_dir.iterdir()
        self._predict = self._load(artifact, self._nthread)
        self.ready = True
        return self.ready

    # Plain, as that of the SDK's own servers: it runs on the event loop.
    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        """Answer one request."""
        try:
            return get_predict_response(payload, self._predict(payload), self.name)
        except Exception as exc:
            raise InferenceError(str(exc)) from exc


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True)
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--nthread", type=int, default=1)
    args = parser.parse_args()
    model = BoosterModel(args.model_name, args.model_dir, args.framework, args.nthread)
    model.load()
    ModelServer().start([model])
