"""Protocol names, header names and defaults of the data plane."""

from enum import Enum
from typing import Final

KSERVE_MODEL_SERVER_NAME: Final = "kserve"
FASTAPI_APP_IMPORT_STRING: Final = "kserve.model_server:app"

V1_ROUTE_PREFIX: Final = "/v1"
V2_ROUTE_PREFIX: Final = "/v2"
DEFAULT_HTTP_PORT: Final = 8080
DEFAULT_GRPC_PORT: Final = 8081

# Length in bytes of the JSON part of a body that binary tensors follow.
INFERENCE_CONTENT_LENGTH_HEADER: Final = "inference-header-content-length"


class PredictorProtocol(Enum):
    """What a transformer speaks to its predictor."""

    REST_V1 = "v1"
    REST_V2 = "v2"
    GRPC_V2 = "grpc-v2"
