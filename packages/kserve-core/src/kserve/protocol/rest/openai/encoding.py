"""Responses and chunks of the OpenAI routes as JSON."""

from typing import Any

import msgspec
import numpy as np
import orjson

from kserve.errors import InferenceError
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.protocol.rest.openai.types import (
    Embedding,
    EmbeddingResponseData,
    OpenAIRequest,
    PoolingResponse,
    PoolingResponseData,
    ScoreResponse,
    ScoreResponseData,
)
from kserve.protocol.rest.openai.types.structs import write_array
from kserve.protocol.rest.openai.vectors import encodable


class _Writer:
    """Writes one response, and counts the numbers that JSON cannot carry."""

    __slots__ = ("n_nulled",)

    def __init__(self) -> None:
        self.n_nulled = 0

    def write(self, value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
            self.n_nulled += value.size - int(np.count_nonzero(np.isfinite(value)))
        return write_array(value)


def encode(response: Any, request: OpenAIRequest) -> EncodedJson:
    """Write a response.

    Args:
        response: A type of the API, a dict, or what has pydantic's `model_dump_json`.
        request: What it answers: its encoding is that of the vectors, and its model that of a
            response which names none.

    Raises:
        InferenceError: There is something in it that JSON cannot express.
    """
    response = _with_items(response, getattr(request, "encoding_format", "float"))
    if getattr(response, "model", None) == "":
        response.model = request.model
    writer = _Writer()
    return EncodedJson(_dump(response, writer), writer.n_nulled)


def encode_chunk(chunk: Any) -> bytes:
    """Write a chunk of a stream; as `encode`."""
    return _dump(chunk, _Writer())


def _dump(value: Any, writer: _Writer) -> bytes:
    dump = None if isinstance(value, msgspec.Struct) else getattr(value, "model_dump_json", None)
    try:
        if dump is not None:
            return str(dump(exclude_unset=True)).encode()
        return msgspec.json.encode(value, enc_hook=writer.write)
    except (TypeError, ValueError, NotImplementedError, orjson.JSONEncodeError) as exc:
        raise InferenceError(f"the model's answer cannot be written as JSON: {exc}") from exc


def _with_items(response: Any, encoding_format: Any) -> Any:
    """Give a response whose data are items, each of which can be written."""
    if isinstance(response, Embedding):
        return _with_data(response, "embedding", EmbeddingResponseData, encoding_format)
    if isinstance(response, PoolingResponse):
        return _with_data(response, "data", PoolingResponseData, encoding_format)
    if isinstance(response, ScoreResponse):
        return _with_data(response, "score", ScoreResponseData, "float")
    return response


def _with_data(response: Any, field: str, item_type: Any, encoding_format: Any) -> Any:
    items = []
    for index, item in enumerate(response.data):
        if isinstance(item, item_type):
            # The model may keep it, and give it again.
            value = encodable(getattr(item, field), encoding_format)
            items.append(msgspec.structs.replace(item, **{field: value}))
        else:
            items.append(item_type(index=index, **{field: encodable(item, encoding_format)}))
    return msgspec.structs.replace(response, data=items)
