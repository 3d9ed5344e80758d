"""Modules that exist for the import paths of KServe's SDK.

The package shows the names of its `utils` too, which are what `kserve.utils` is expected to have.
"""

from kserve.utils.utils import (
    cpu_count,
    create_response_cloudevent,
    generate_uuid,
    get_predict_input,
    get_predict_response,
    is_structured_cloudevent,
    is_v1,
    is_v2,
    strtobool,
)

__all__ = [
    "cpu_count",
    "create_response_cloudevent",
    "generate_uuid",
    "get_predict_input",
    "get_predict_response",
    "is_structured_cloudevent",
    "is_v1",
    "is_v2",
    "strtobool",
]
