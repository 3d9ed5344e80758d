"""The REST server: a listening socket and uvicorn on it, started and stopped by our own code."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp

from kserve.config import DEFAULT_MAX_DECOMPRESSED_BYTES, CloudEventConfig
from kserve.errors import StartError
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.app import Application, RestApp
from kserve.protocol.rest.http import HTTPProtocol
from kserve.protocol.rest.intake import Intake

# Connections that wait to be accepted; as uvicorn's default.
_BACKLOG: Final = 2048

# What a request that was cancelled at the end gets to answer that it was.
_CANCEL_S: Final = 1.0


class RESTServer:
    """One REST server.

    Args:
        app: The application that user code may have added to, or its import string, then the
            process-wide one is used.
        data_plane: Answers the requests.
        http_port: The port; 0 takes a free one.
        host: The address to bind.
        event_loop: `auto`, `asyncio` or `uvloop`; for who reads `config`, the loop is made by
            `ModelServer`.
        timeout_keep_alive: Seconds after which an idle connection is closed.
        grace_period: Seconds that requests in flight get to finish at the end.
        log_requests: Whether each inference request leaves a line in the log.
        max_decompressed_bytes: What a compressed request body may become.
        cloudevents: What the events say that answer events.
        intake: The limits on what comes over its connections.
    """

    def __init__(
        self,
        app: Application | str,
        data_plane: DataPlane,
        http_port: int = 8080,
        *,
        host: str = "0.0.0.0",
        event_loop: str = "auto",
        timeout_keep_alive: int = 65,
        grace_period: int = 25,
        log_requests: bool = True,
        max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES,
        cloudevents: CloudEventConfig | None = None,
        intake: Intake | None = None,
    ) -> None:
        self.dataplane = data_plane
        self._host = host
        self._port = http_port
        self._rest_app = RestApp(
            data_plane,
            log_requests=log_requests,
            max_decompressed_bytes=max_decompressed_bytes,
            cloudevents=cloudevents,
        )
        self._app = _imported() if isinstance(app, str) else app
        self._task: asyncio.Task[None] | None = None
        application = self.create_application()
        self.config = uvicorn.Config(
            application,
            loop=event_loop,
            http=cast(type[HTTPProtocol], partial(HTTPProtocol, intake or Intake())),
            ws="none",
            lifespan="off",
            # Nothing of ours asks for the address of a client behind a proxy.
            proxy_headers=application is not self._rest_app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=timeout_keep_alive,
            timeout_graceful_shutdown=grace_period,
        )

    def create_application(self) -> ASGIApp:
        """Give the ASGI application: the server's routes, inside what user code has added."""
        return self._app.around(self._rest_app)

    async def start(self) -> str:
        """Listen and serve; gives the address, `http://host:port`.

        Raises:
            StartError: The address cannot be bound.
        """
        listener = _listen(self._host, self._port)
        host, port = listener.getsockname()[:2]
        has_started = asyncio.Event()
        self._server = _Uvicorn(self.config, has_started)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._task.add_done_callback(lambda _: has_started.set())
        await has_started.wait()
        if self._task.done():
            listener.close()
            self._task.result()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Accept no more, let requests in flight finish, cancel those that do not, close."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
            cancelled = self._server.server_state.tasks
            if cancelled:
                await asyncio.wait(set(cancelled), timeout=_CANCEL_S)
        self._app.leave(self._rest_app)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: signals are `ModelServer`'s."""

    def __init__(self, config: uvicorn.Config, has_started: asyncio.Event) -> None:
        super().__init__(config)
        self._has_started = has_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._has_started.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _imported() -> Application:
    from kserve.model_server import app

    return cast(Application, app)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise StartError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    listener.setblocking(False)
    return listener
