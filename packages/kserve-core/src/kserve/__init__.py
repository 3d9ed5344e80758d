"""Model servers for KServe: the inference protocols, the model lifecycle, and the server."""

from kserve.constants import constants
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
from kserve.utils import utils

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
