"""Names that the data plane and user code share.

The package shows those of its `constants` too, which are what `kserve.constants` is expected to
have.
"""

from kserve.constants.constants import (
    DEFAULT_GRPC_PORT,
    DEFAULT_HTTP_PORT,
    FASTAPI_APP_IMPORT_STRING,
    INFERENCE_CONTENT_LENGTH_HEADER,
    KSERVE_MODEL_SERVER_NAME,
    V1_ROUTE_PREFIX,
    V2_ROUTE_PREFIX,
    PredictorProtocol,
)

__all__ = [
    "DEFAULT_GRPC_PORT",
    "DEFAULT_HTTP_PORT",
    "FASTAPI_APP_IMPORT_STRING",
    "INFERENCE_CONTENT_LENGTH_HEADER",
    "KSERVE_MODEL_SERVER_NAME",
    "V1_ROUTE_PREFIX",
    "V2_ROUTE_PREFIX",
    "PredictorProtocol",
]
