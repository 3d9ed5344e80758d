"""Model servers for KServe: the inference protocols, the model lifecycle, and the server."""

from typing import TYPE_CHECKING

from kserve.exports import lazy_dir, lazy_exports

if TYPE_CHECKING:
    from kserve import constants, utils
    from kserve.model import (
        BaseKServeModel,
        InferenceModel,
        InferenceVerb,
        Model,
        PredictOptions,
        PredictorProtocol,
        TensorModel,
    )
    from kserve.model_repository import ModelRepository
    from kserve.model_server import ModelServer
    from kserve.predictor_config import PredictorConfig
    from kserve.protocol.infer_type import (
        InferInput,
        InferOutput,
        InferRequest,
        InferResponse,
        RequestedOutput,
    )
    from kserve.signature import Signature, TensorSpec

__all__ = [
    "BaseKServeModel",
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceModel",
    "InferenceVerb",
    "Model",
    "ModelRepository",
    "ModelServer",
    "PredictOptions",
    "PredictorConfig",
    "PredictorProtocol",
    "RequestedOutput",
    "Signature",
    "TensorModel",
    "TensorSpec",
    "constants",
    "utils",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "kserve.model": [
            *("BaseKServeModel", "InferenceModel", "InferenceVerb", "Model", "PredictOptions"),
            *("PredictorProtocol", "TensorModel"),
        ],
        "kserve.model_repository": ["ModelRepository"],
        "kserve.model_server": ["ModelServer"],
        "kserve.predictor_config": ["PredictorConfig"],
        "kserve.protocol.infer_type": [
            *("InferInput", "InferOutput", "InferRequest", "InferResponse", "RequestedOutput"),
        ],
        "kserve.signature": ["Signature", "TensorSpec"],
    },
)

__dir__ = lazy_dir(__name__)
