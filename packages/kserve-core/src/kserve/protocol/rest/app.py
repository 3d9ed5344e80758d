"""The ASGI application: the infer routes first, by two string operations, then the route table."""

import asyncio
from datetime import UTC, datetime
from typing import Final

import orjson
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kserve.config import DEFAULT_MAX_DECOMPRESSED_BYTES, CloudEventConfig
from kserve.errors import ServerNotReady
from kserve.executor import run_in_new_thread
from kserve.logging import logger
from kserve.metrics import AnswerMetrics
from kserve.protocol.compression import Compression
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest import repository, v1, v2
from kserve.protocol.rest.exchange import ClientDisconnected, Exchange
from kserve.protocol.rest.http import WIRE, Wire
from kserve.protocol.rest.model_path import split_version
from kserve.protocol.rest.openai.error_object import error_body
from kserve.protocol.rest.openai.paths import OpenAIPaths
from kserve.protocol.rest.responses import JSONResponse
from kserve.request_ids import request_id_of

_V1_LIST: Final = "/v1/models"
_V1_MODELS: Final = "/v1/models/"
_V2_MODELS: Final = "/v2/models/"
_V2_INFER: Final = "/infer"
_V2_GENERATE: Final = ("/generate", "/generate_stream")
_V1_VERBS: Final = ("predict", "explain")
_REST_APP: Final = "kserve.rest_app"
_DRAINING: Final = "The server is shutting down."


class RestApp:
    """The REST routes over one data plane.

    Args:
        dataplane: Answers the requests.
        log_requests: Whether each inference request leaves a line in the log.
        max_decompressed_bytes: What a compressed request body may become.
        cloudevents: What the events say that answer events.

    Attributes:
        openai_paths: Where OpenAI's routes are, while there is a model for them.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        *,
        log_requests: bool = True,
        max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES,
        cloudevents: CloudEventConfig | None = None,
    ) -> None:
        self.openai_paths = OpenAIPaths.from_env()
        # For clients to read, in seconds since 1970.
        self._created = int(datetime.now(UTC).timestamp())
        self._dataplane = dataplane
        self._compression = Compression(max_decompressed_bytes)
        self._cloudevents = cloudevents or CloudEventConfig()
        self._log_requests = log_requests
        # Whatever concerns no model that is there: a name from the URL is never a label.
        self._other_metrics = AnswerMetrics("")
        self._router = Router(
            routes=[
                Route("/", self._live),
                Route("/metrics", self._metrics),
                *v1.routes(dataplane),
                *v2.routes(dataplane),
                *repository.routes(dataplane),
            ],
            redirect_slashes=False,
            default=_not_found,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(
            scope, receive, send, self._other_metrics, self._compression, self._cloudevents
        )
        try:
            await self._dispatch(exchange, scope, receive)
        except ClientDisconnected:
            await exchange.leave()
        except asyncio.CancelledError:
            if not self.is_draining:
                raise
            logger.warning("Request did not finish in the grace period")
            await exchange.fail(ServerNotReady(_DRAINING))
        except Exception as exc:
            await exchange.fail(exc)
        finally:
            exchange.finish(self._log_requests)

    @property
    def is_draining(self) -> bool:
        """Whether the server is shutting down."""
        return self._dataplane.is_draining

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, without a look at it, a request that the end of the server has cut off."""
        given = dict(reversed(scope["headers"])).get(b"x-request-id")
        headers = {"x-request-id": request_id_of(given.decode("latin-1") if given else None)}
        text = str(ServerNotReady(_DRAINING))
        if self.openai_paths.include(scope["path"].encode("latin-1", "replace")):
            body = error_body(503, text)
        else:
            body = orjson.dumps({"error": text})
        response = Response(body, 503, headers, media_type="application/json")
        await response(scope, receive, send)

    async def _live(self, request: Request) -> Response:
        return JSONResponse(await self._dataplane.live())

    async def _metrics(self, request: Request) -> Response:
        self._dataplane.model_registry.publish_states()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await run_in_new_thread(encode, REGISTRY)
        return Response(body, headers={"content-type": content_type})

    async def _dispatch(self, exchange: Exchange, scope: Scope, receive: Receive) -> None:
        path: str = scope["path"].rstrip("/") or "/"
        if path.startswith(_V2_MODELS):
            exchange.protocol = "v2"
            if path.endswith(_V2_INFER):
                _require_post(scope)
                name, version = split_version(path[len(_V2_MODELS) : -len(_V2_INFER)])
                exchange.model_name = name
                await v2.infer(self._dataplane, exchange, name, version)
                return
            if path.endswith(_V2_GENERATE):
                await self._generate(exchange, path)
                return
        elif path.startswith(_V1_MODELS):
            exchange.protocol = "v1"
            name, _, verb = path[len(_V1_MODELS) :].rpartition(":")
            if verb in _V1_VERBS:
                _require_post(scope)
                name, version = split_version(name)
                exchange.model_name = name
                await v1.infer(self._dataplane, exchange, name, version, verb)
                return
        if await self._answer_openai(exchange, path):
            return
        # `app` makes Starlette's router raise HTTPException, which becomes a JSON body here.
        await self._router({**scope, "path": path, "app": self}, receive, exchange.send)

    async def _generate(self, exchange: Exchange, path: str) -> None:
        _require_post(exchange.scope)
        # Only now: most servers have no model that writes text.
        from kserve.protocol.rest import generate

        model, _, route = path[len(_V2_MODELS) :].rpartition("/")
        name, version = split_version(model)
        exchange.model_name = name
        streams = route == "generate_stream"
        await generate.answer(self._dataplane, exchange, name, version, streams=streams)

    async def _answer_openai(self, exchange: Exchange, path: str) -> bool:
        """Answer a request of OpenAI's routes; says whether it is one and they are there.

        Models come and go, so this is looked up for each request of such a path.
        """
        api = self.openai_paths.by_path.get(path)
        name = self.openai_paths.model_of(path)
        is_shared = path == _V1_LIST or path.startswith(_V1_MODELS)
        if api is None and name is None and not is_shared:
            return False
        # V1's probes come while the server starts, too, and are V1's until there is a model.
        may_come = self._dataplane.is_starting and not is_shared
        if not may_come and not self._dataplane.serves_openai:
            return False
        # Only now: a server without such a model loads nothing of it.
        from kserve.protocol.rest.openai import models, routes

        if api is not None:
            await routes.answer(self._dataplane, exchange, api, path)
            return True
        if name is None:
            name = path[len(_V1_MODELS) :]
        return await models.answer(
            self._dataplane, exchange, name, self._created, is_shared=is_shared
        )


class Application(Starlette):
    """What user code adds middleware and routes to; everything else is the server's.

    As `kserve.model_server.app` it belongs to the process; a server runs inside it only if there
    is something in it when the server starts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.router.redirect_slashes = False
        self.router.default = self._serve_rest
        self.rest_app: RestApp | None = None

    def around(self, rest_app: RestApp) -> ASGIApp:
        """Give the application of a server: `rest_app`, inside what user code has added."""
        self.rest_app = rest_app
        if not self.user_middleware and not self.router.routes:
            return rest_app

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            wire: Wire | None = scope.get(WIRE)
            if wire is not None:
                wire.is_bare = False
            noting, statuses = _noting_status(send)
            try:
                await self({**scope, _REST_APP: rest_app}, receive, noting)
            except asyncio.CancelledError:
                # A middleware with a task of its own lets no answer of `rest_app` through then.
                if statuses or not rest_app.is_draining:
                    raise
                await rest_app.refuse(scope, receive, send)
            finally:
                if wire is not None:
                    wire.release()

        return application

    def leave(self, rest_app: RestApp) -> None:
        """Forget a server that has stopped, and with it its models."""
        if self.rest_app is rest_app:
            self.rest_app = None

    async def _serve_rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        rest_app = scope.get(_REST_APP) or self.rest_app
        if rest_app is None:
            raise HTTPException(404)
        await rest_app(scope, receive, send)


def _require_post(scope: Scope) -> None:
    if scope["method"] != "POST":
        raise HTTPException(405, headers={"Allow": "POST"})


def _noting_status(send: Send) -> tuple[Send, list[int]]:
    """Give a `send` that notes the status of a response that starts."""
    statuses: list[int] = []

    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        await send(message)

    return noting, statuses


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)
