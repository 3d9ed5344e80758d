"""A server whose one model takes 20 ms for an answer, so that requests are always in flight."""

import asyncio
from typing import Any

import numpy as np

from kserve import InferRequest, Model, ModelServer
from kserve.protocol.infer_type import InferOutput, InferResponse

_PREDICT_S = 0.02


class Echo(Model):
    """Answers with what it gets."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        await asyncio.sleep(_PREDICT_S)
        if not isinstance(payload, InferRequest):
            return {"predictions": payload["instances"]}
        output = InferOutput("y", [1], "INT64")
        output.set_data_from_numpy(np.array([1], np.int64))
        return InferResponse(payload.id or "", self.name, [output])


if __name__ == "__main__":
    ModelServer().start([Echo("echo")])
