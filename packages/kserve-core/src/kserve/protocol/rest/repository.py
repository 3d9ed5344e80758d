"""The model repository extension over REST: index, load, unload.

Source: Triton, "Model Repository Extension",
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kserve.errors import InvalidInput
from kserve.protocol.codec.json_body import parse
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.responses import JSONResponse


def routes(dataplane: DataPlane) -> list[Route]:
    """Give the routes."""

    async def index(request: Request) -> Response:
        ready_only = (await _read(request)).get("ready", False)
        if not isinstance(ready_only, bool):
            raise InvalidInput(f"expected 'ready' to be true or false, got {ready_only!r}")
        return JSONResponse(await dataplane.repository_index(ready_only))

    async def load(request: Request) -> Response:
        name = request.path_params["model_name"]
        _refuse_parameters(await _read(request), known=())
        await dataplane.load_model(name)
        return JSONResponse({"name": name, "load": True})

    async def unload(request: Request) -> Response:
        name = request.path_params["model_name"]
        # Triton's clients always send it, and no model here depends on another.
        _refuse_parameters(await _read(request), known=("unload_dependents",))
        await dataplane.unload_model(name)
        return JSONResponse({"name": name, "unload": True})

    return [
        Route("/v2/repository/index", index, methods=["POST"]),
        # The name may hold anything here, so that a bad one is refused as such.
        Route("/v2/repository/models/{model_name:path}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{model_name:path}/unload", unload, methods=["POST"]),
    ]


async def _read(request: Request) -> dict[str, Any]:
    """Give the JSON object of the body; an empty one for no body."""
    body = await request.body()
    document = parse(body) if body.strip() else {}
    if not isinstance(document, dict):
        raise InvalidInput("expected the body to be a JSON object")
    return document


def _refuse_parameters(document: dict[str, Any], known: tuple[str, ...]) -> None:
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidInput("expected 'parameters' to be an object")
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise InvalidInput(f"parameter {unknown[0]!r} is not supported: a model is its directory")
