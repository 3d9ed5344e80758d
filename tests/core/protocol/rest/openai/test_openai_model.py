"""What a model is before it overrides anything."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kserve.model import BaseKServeModel
from kserve.protocol.rest.openai import (
    OpenAIEncoderModel,
    OpenAIError,
    OpenAIGenerativeModel,
    OpenAIModel,
)
from kserve.protocol.rest.openai.handlers import METHODS
from kserve.protocol.rest.openai.openai_model import AsyncMappingIterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Both(OpenAIEncoderModel, OpenAIGenerativeModel):
    """Has every handler."""


@pytest.mark.parametrize("method", [name for name, _ in METHODS.values()])
async def test_does_nothing_until_it_is_overridden(method: str) -> None:
    with pytest.raises(OpenAIError, match="Model both does not support") as caught:
        await getattr(Both("both"), method)(None)

    assert caught.value.http_status == 400


def test_is_a_model_that_loads_as_any_other() -> None:
    model = OpenAIModel("m")

    assert (model.ready, model.load(), model.ready) == (False, True, True)
    assert (OpenAIModel.serves_openai, BaseKServeModel.serves_openai) == (True, False)


async def test_maps_the_items_of_an_iterator_and_closes_it() -> None:
    is_closed = False

    async def numbers() -> AsyncIterator[int]:
        nonlocal is_closed
        try:
            for number in range(5):
                yield number
        finally:
            is_closed = True

    odd: AsyncMappingIterator[int, str] = AsyncMappingIterator(
        numbers(), lambda number: str(number) if number % 2 else None
    )
    taken: list[Any] = [await anext(odd)]
    await odd.aclose()

    assert (taken, is_closed) == (["1"], True)
    rest = AsyncMappingIterator(numbers(), lambda number: number if number > 2 else None)
    assert [number async for number in rest] == [3, 4]
