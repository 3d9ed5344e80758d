"""The REST server: a listening socket and uvicorn on it, started and stopped by our own code."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp

from kserve.config import DEFAULT_MAX_DECOMPRESSED_BYTES, CloudEventConfig
from kserve.logging import logger
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.listener import close_listener, listen
from kserve.protocol.rest.app import Application, RestApp
from kserve.protocol.rest.http import ConnectionState, HTTPProtocol
from kserve.protocol.rest.intake import Intake

# The Date header counts in seconds.
_TICK_S: Final = 1.0

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
        grace_period: Seconds that requests in flight get to finish, where `stop` is told of none.
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
        self._grace_period = grace_period
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
        listener = listen(self._host, self._port)
        host, port = listener.getsockname()[:2]
        has_started = asyncio.Event()
        self._server = _Uvicorn(self.config, has_started, listener)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._task.add_done_callback(lambda _: has_started.set())
        await has_started.wait()
        if self._task.done():
            listener.close()
            task, self._task = self._task, None
            task.result()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def drain(self) -> None:
        """Make every response that begins from now on the last one of its connection."""
        if self._task is not None:
            self._server.drain()

    async def stop(self, grace_period_s: float | None = None) -> None:
        """Accept no more, let requests in flight finish, cancel those that do not, close.

        Args:
            grace_period_s: Seconds that requests in flight get; None for those of the constructor.
        """
        if self._task is not None:
            await self._server.finish(
                self._grace_period if grace_period_s is None else grace_period_s
            )
            await self._task
        self._app.leave(self._rest_app)


class _Uvicorn(uvicorn.Server):
    """uvicorn with an end of our own, and without its signal handlers: they are `ModelServer`'s."""

    def __init__(
        self, config: uvicorn.Config, has_started: asyncio.Event, listener: socket.socket
    ) -> None:
        super().__init__(config)
        self.server_state = self._state = ConnectionState()
        self._has_started = has_started
        self._has_finished = asyncio.Event()
        self._listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._has_started.set()

    async def main_loop(self) -> None:
        """Keep the Date header of the responses up to date until `finish` has ended."""
        while not self._has_finished.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_finished.wait(), _TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leave out uvicorn's: `finish` has done what it does."""

    def drain(self) -> None:
        self._state.is_draining = True
        for connection in self._protocols():
            connection.drain()

    async def finish(self, grace_period_s: float) -> None:
        self.drain()
        await close_listener(self._listener, self._stop_accepting, self._make_protocol)
        for connection in list(self._state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(grace_period_s):
                await self._all_ended()
        except TimeoutError:
            await self._cut()
        self._has_finished.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _protocols(self) -> list[HTTPProtocol]:
        """Give the connections that take requests: others only wait for their client to close."""
        connections: set[Any] = self._state.connections
        return [each for each in connections if isinstance(each, HTTPProtocol)]

    def _stop_accepting(self) -> None:
        for server in self.servers:
            server.close()

    def _make_protocol(self) -> HTTPProtocol:
        make = cast(Callable[..., HTTPProtocol], self.config.http_protocol_class)
        return make(self.config, self._state, self.lifespan.state)

    async def _all_ended(self) -> None:
        await self._state.all_lost()
        while self._state.tasks:
            await asyncio.wait(set(self._state.tasks))

    async def _cut(self) -> None:
        """Cancel what is in flight, and let it answer so."""
        tasks = set(self._state.tasks)
        if tasks:
            logger.error("%d request(s) did not finish in the grace period", len(tasks))
        for task in tasks:
            task.cancel()
        for connection in self._protocols():
            connection.refuse_unsent()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                await self._all_ended()
        for connection in self._protocols():
            connection.transport.close()


def _imported() -> Application:
    from kserve.model_server import app

    return cast(Application, app)
