"""How the types become JSON, and are made of it."""

from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from kserve.protocol.rest.openai.types import (
    ChatCompletionChunk,
    ChoiceDelta,
    ChunkChoice,
    CompletionRequest,
    ModelList,
    UsageInfo,
)
from kserve.protocol.rest.openai.types.structs import OpenAIStruct, write_array


class Box(OpenAIStruct, kw_only=True):
    """Holds anything."""

    value: Any = None


def text(value: Any) -> str:
    return Box(value=value).model_dump_json()


def test_leaves_out_what_was_not_given_and_keeps_what_must_be_there() -> None:
    chunk = ChatCompletionChunk(
        id="i", created=1, model="m", choices=[ChunkChoice(index=0, delta=ChoiceDelta(content=""))]
    )

    assert chunk.model_dump_json() == (
        '{"id":"i","object":"chat.completion.chunk","created":1,"model":"m","choices":'
        '[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":null}]}'
    )
    chunk.usage = None
    assert chunk.model_dump()["usage"] is None
    assert ModelList().model_dump_json() == '{"object":"list","data":[]}'


def test_takes_the_arguments_that_code_for_pydantic_gives() -> None:
    assert UsageInfo.of(2).model_dump(exclude_none=True, exclude_unset=True) == {
        "prompt_tokens": 2,
        "total_tokens": 2,
    }


def test_is_made_of_a_dict_and_of_json() -> None:
    document = {"model": "m", "prompt": "a", "temperature": 1}

    request = CompletionRequest.model_validate(document)

    assert request.temperature == 1.0
    assert CompletionRequest.model_validate_json(orjson.dumps(document)) == request
    with pytest.raises(msgspec.ValidationError):
        CompletionRequest.model_validate({"model": "m"})


@pytest.mark.parametrize(
    "dtype", ["<f4", ">f4", "<f2", "<f8", ">f8", "<i8", ">i4", "u1", "?"], ids=str
)
def test_writes_arrays_of_any_kind_to_the_bit(dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]], dtype) if dtype == "?" else np.arange(4, dtype=dtype) / 3
    array = np.asarray(array, dtype)

    read = np.array(orjson.loads(text(array))["value"], dtype)

    assert read.tobytes() == array.tobytes()
    column = np.stack([array, array], axis=-1)[..., 0]
    assert orjson.loads(text(column)) == orjson.loads(text(array))


def test_writes_the_shortest_digits_of_a_float32() -> None:
    assert text(np.array([0.1, 6.8], np.float32)) == '{"value":[0.1,6.8]}'
    assert text(np.float32(0.1)) == '{"value":0.1}'
    assert text(np.int64(2**62)) == '{"value":4611686018427387904}'


def test_writes_what_is_not_finite_as_null() -> None:
    assert text(np.array([np.nan, np.inf, 1], np.float32)) == '{"value":[null,null,1.0]}'


def test_refuses_what_json_has_no_word_for() -> None:
    with pytest.raises(NotImplementedError, match="a object cannot be written as JSON"):
        write_array(object())
