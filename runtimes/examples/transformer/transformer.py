"""A transformer: flowers as objects with units become the rows that an iris classifier takes."""

import asyncio
import urllib.error
import urllib.request
from typing import Any

import orjson

import kserve
from kserve.errors import InferenceError, InvalidInput
from kserve.model_server import parser

FEATURES = ("sepal_length_mm", "sepal_width_mm", "petal_length_mm", "petal_width_mm")
SPECIES = ("setosa", "versicolor", "virginica")


class IrisFlowers(kserve.Model):
    """Turns millimetres into the model's centimetres, and classes into names."""

    def load(self) -> bool:
        """There is nothing to load: the predictor has the model."""
        self.ready = True
        return self.ready

    def preprocess(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Make rows, shape [n, 4], of flowers."""
        return {"instances": [_row(flower) for flower in payload["instances"]]}

    async def predict(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Ask the predictor."""
        return await asyncio.to_thread(self._ask, payload)

    def postprocess(self, response: Any, headers: dict[str, str] | None = None) -> Any:
        """Name the species."""
        return {"predictions": [SPECIES[number] for number in response["predictions"]]}

    def _ask(self, payload: Any) -> Any:
        predictor = self.predictor_config
        if predictor is None:
            raise InferenceError("no --predictor_host: KServe passes it to a transformer")
        url = f"{predictor.predictor_base_url}/v1/models/{self.name}:predict"
        try:
            with urllib.request.urlopen(
                url, orjson.dumps(payload), timeout=predictor.timeout
            ) as answer:
                return orjson.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 400:
                raise InvalidInput(orjson.loads(error.read())["error"]) from error
            raise InferenceError(f"the predictor answers {error.code}") from error


def _row(flower: Any) -> list[float]:
    missing = [name for name in FEATURES if name not in flower]
    if missing:
        raise InvalidInput(f"expected {', '.join(FEATURES)}, got no {', '.join(missing)}")
    return [flower[name] / 10 for name in FEATURES]


if __name__ == "__main__":
    arguments, _ = parser.parse_known_args()
    kserve.ModelServer().start([IrisFlowers(arguments.model_name)])
