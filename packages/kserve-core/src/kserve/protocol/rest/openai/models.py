"""The list of models, and what one of them is: OpenAI's, and V1's where both have the path."""

from typing import Any

from starlette.exceptions import HTTPException

from kserve.errors import ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest import v1
from kserve.protocol.rest.exchange import JSON_HEADERS, Exchange
from kserve.protocol.rest.model_path import VERSIONS
from kserve.protocol.rest.openai.encoding import encode_chunk
from kserve.protocol.rest.openai.failures import error_response
from kserve.protocol.rest.openai.types import Model, ModelList

_METHODS = ("GET", "HEAD")


async def answer(
    dataplane: DataPlane, exchange: Exchange, name: str, created: int, *, is_shared: bool
) -> bool:
    """Answer `GET models` or `GET models/{name}`.

    Args:
        dataplane: Has the models.
        exchange: The request.
        name: The model; empty for the list.
        created: When the server started, in seconds since 1970.
        is_shared: The path is V1's as well: the body has what V1 says first.

    Returns:
        Whether it is for these routes; V1 answers otherwise.

    Raises:
        ModelNotFound, ModelNotReady: There is no such model for these routes, or it cannot answer.
        HTTPException: The method is another one.
    """
    method = exchange.scope["method"]
    if is_shared and (method not in _METHODS or not _is_ours(dataplane, name)):
        return False
    exchange.protocol, exchange.describe_failure = "openai", error_response
    if method not in _METHODS:
        raise HTTPException(405, headers={"Allow": ", ".join(_METHODS)})
    body: dict[str, Any] = {}
    if not name:
        if is_shared:
            body |= v1.models(dataplane)
        cards = [_card(dataplane, each, created) for each in _names(dataplane)]
        body |= ModelList(data=cards).model_dump()
    else:
        card = _card(dataplane, name, created)
        readiness = await v1.readiness(dataplane, name, None)
        body |= (readiness if is_shared else {}) | card.model_dump()
    await exchange.reply(encode_chunk(body), JSON_HEADERS)
    return True


def _names(dataplane: DataPlane) -> list[str]:
    models = dataplane.model_registry.get_models()
    return [name for name, model in models.items() if model.serves_openai]


def _is_ours(dataplane: DataPlane, name: str) -> bool:
    """Say whether a shared path is for these routes: not for a model of the other protocols.

    Nor for one of the versions of a model, which only V1 has.
    """
    if VERSIONS in name:
        return False
    return name in _names(dataplane) or name not in dataplane.model_registry.names()


def _card(dataplane: DataPlane, name: str, created: int) -> Model:
    model = dataplane.model_registry.get_model(name)
    if model is None:
        raise dataplane.unavailability(name)
    if not model.serves_openai:
        raise ModelNotFound(name)
    return Model(id=name, created=created, max_model_len=getattr(model, "max_model_len", None))
