"""The server: build the parts, load, listen, serve, stop."""

import asyncio
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any, Final

import uvloop

from kserve.allocator import keep_freed_memory
from kserve.collector import frozen
from kserve.config import ServerConfig, make_parser
from kserve.context import hand_over, set_predictor_config
from kserve.default_pool import DefaultPool
from kserve.descriptors import raise_descriptor_limit
from kserve.directory_repository import DirectoryRepository
from kserve.errors import NoModelReady, StartError
from kserve.executor import run_in_new_thread, run_user_code
from kserve.logging import configure_logging, logger
from kserve.model import BaseKServeModel
from kserve.model_repository import (
    ModelRepository,
    ModelState,
    load,
    public_reason_of,
    reason_of,
    trace_of,
)
from kserve.predictor_config import PredictorConfig
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.inflight_bytes import InflightBytes
from kserve.protocol.rest.app import Application
from kserve.protocol.rest.intake import Intake
from kserve.protocol.rest.server import RESTServer
from kserve.shutdown import Shutdown
from kserve.signals import cancel_limit, stopped_by_signals
from kserve.watch import DirectoryWatch

if TYPE_CHECKING:
    from kserve.protocol.grpc.server import GRPCServer

ExceptionHandler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], Any]
Models = Sequence[BaseKServeModel] | Mapping[str, BaseKServeModel] | BaseKServeModel

# What models get to stop where requests in flight have used up the grace period.
_MIN_STOP_S: Final = 1.0

# What the process gets beyond the grace period before a signal ends it with a failure: a second
# each for the answers to requests that were cancelled and for models, and one to spare. With the
# default grace period that is before Kubernetes kills.
_OVERTIME_S: Final = 3.0

# For user code: `argparse.ArgumentParser(parents=[kserve.model_server.parser])`.
parser = make_parser()


class ModelServer:
    """Serves models until a signal ends it.

    Every setting that is None is taken from the command line of the process, where flags that are
    not the server's are ignored, so that a script may have its own.

    Args:
        http_port: The REST port; 0 takes a free one.
        grpc_port: The gRPC port; 0 takes a free one.
        workers: Processes.
        max_threads: As in KServe's SDK; no effect.
        max_asyncio_workers: Threads of the event loop's default pool.
        registered_models: A repository whose models are served beside those given to `start`.
        enable_grpc: Whether to serve gRPC.
        enable_docs_url: As in KServe's SDK; no effect.
        enable_latency_logging: Whether each inference request leaves a line in the log.
        access_log_format: As in KServe's SDK; no effect.
        event_loop: `auto`, `asyncio` or `uvloop`.
        timeout_keep_alive: Seconds after which an idle connection is closed.
        grace_period: Seconds from the signal that ends the server until its end.
        predictor_config: The predictor behind a transformer.
        host: The address to bind.
        config: All settings at once; the command line is not read then.

    Attributes:
        grpc_address: `host:port` of gRPC while the server listens; None without gRPC.
    """

    def __init__(
        self,
        http_port: int | None = None,
        grpc_port: int | None = None,
        workers: int | None = None,
        max_threads: int | None = None,
        max_asyncio_workers: int | None = None,
        registered_models: ModelRepository | None = None,
        enable_grpc: bool | None = None,
        enable_docs_url: bool | None = None,
        enable_latency_logging: bool | None = None,
        access_log_format: str | None = None,
        event_loop: str | None = None,
        timeout_keep_alive: int | None = None,
        grace_period: int | None = None,
        predictor_config: PredictorConfig | None = None,
        *,
        host: str | None = None,
        config: ServerConfig | None = None,
    ) -> None:
        given = {
            "host": host,
            "http_port": http_port,
            "grpc_port": grpc_port,
            "workers": workers,
            "max_asyncio_workers": max_asyncio_workers,
            "enable_grpc": enable_grpc,
            "enable_latency_logging": enable_latency_logging,
            "event_loop": event_loop,
            "timeout_keep_alive_s": timeout_keep_alive,
            "grace_period_s": grace_period,
            "predictor": predictor_config,
        }
        settings: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }
        self.config = replace(config or ServerConfig.from_argv(), **settings)
        self.registered_models = registered_models or ModelRepository()
        # Here for a `load` that user code calls itself, and in `serve` for its thread's context.
        set_predictor_config(self.config.predictor)
        self.dataplane = DataPlane(
            self.registered_models,
            self.config.predictor,
            config=self.config,
        )
        self._inflight = InflightBytes(self.config.max_inflight_bytes or 0)
        self.grpc_address: str | None = None
        if self.config.enable_grpc:
            # Now, as the event loop should not wait for it; no earlier, as not everyone needs it.
            importlib.import_module("kserve.protocol.grpc.server")
        self._exception_handler: ExceptionHandler | None = None
        self._shutdown: Shutdown | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owns_loop = self._was_signalled = False
        if self.config.configure_logging:
            configure_logging(self.config.log_config_file, log_format=self.config.log_format)
        if enable_docs_url or access_log_format:
            logger.warning("enable_docs_url and access_log_format have no effect")
        if self.config.workers != 1:
            logger.warning("workers=%d: one process serves", self.config.workers)

    def register_model(self, model: BaseKServeModel, name: str | None = None) -> None:
        """Add a model to those that are served.

        Args:
            model: A loaded model.
            name: Another name to serve it under.

        Raises:
            ValueError: The model has no name.
        """
        if not model.name:
            raise ValueError("Failed to register model, model.name must be provided.")
        self.registered_models.update(model, name)
        logger.info("Registering model: %s", name or model.name)

    def register_exception_handler(self, handler: ExceptionHandler) -> None:
        """Set what the event loop calls for an exception that nobody caught."""
        self._exception_handler = handler

    def start(self, models: Models, *, load: Callable[[], object] | None = None) -> None:
        """Load the models that are not ready, and serve until SIGTERM, SIGINT or SIGQUIT.

        After SIGTERM new work is still taken for `drain_delay_s`. A second signal ends the process.
        So does the first, with exit code 0, where code of a handler in the event loop's default
        pool does not return: Python would wait for it. While another server imports the code that
        calls it, the models are that server's, and this returns at once.

        Args:
            models: Models, models by the name to serve them under, or one model.
            load: Called before the port is bound, on a thread unless it is async, to load models
                that are not given here: `registered_models.load_models` for one. If it gives a
                list of names, the server is ready only while these models are.

        Raises:
            RuntimeError: `models` is none of these.
            ValueError: A model has no name.
            NoModelReady: None of them could be loaded.
            StartError: The port cannot be bound.
            Exception: Whatever `load` raises.
        """
        named = _by_name(models)
        if hand_over(named):
            return
        keep_freed_memory()
        pool = DefaultPool(self.config.max_asyncio_workers)
        self._owns_loop = True
        try:
            with asyncio.Runner(loop_factory=self._loop_factory()) as runner:
                runner.get_loop().set_default_executor(pool)
                runner.run(self.serve(named, load=load))
                if self._was_signalled and not pool.ends_within(_MIN_STOP_S):
                    _leave()
        finally:
            self._owns_loop = False
            self._lift_limit()

    def stop(self, sig: int | None = None) -> None:
        """Make `start` return once the requests in flight have finished; from any thread.

        No new work is taken from then on: the delay is for SIGTERM.
        """
        loop, shutdown = self._loop, self._shutdown
        if loop is not None and shutdown is not None:
            # A closed loop is a server that has stopped.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(shutdown.request)

    async def serve(
        self,
        models: Models,
        on_ready: Callable[[str], None] | None = None,
        *,
        load: Callable[[], object] | None = None,
    ) -> None:
        """Do the work of `start` on the running loop.

        Args:
            models: As for `start`.
            on_ready: Called with the address, `http://host:port`, once requests are accepted.
            load: As for `start`.

        Raises:
            RuntimeError, ValueError, NoModelReady, StartError, Exception: As `start`.
        """
        _refuse_other_distribution()
        named = _by_name(models)
        shutdown = self._prepare_loop()
        with stopped_by_signals(self._on_signal, self.config.grace_period_s + _OVERTIME_S):
            loading = asyncio.create_task(self._load(named, load))
            try:
                await self._listen(loading, on_ready)
            finally:
                shutdown.request()
                await _cancel(loading)
                await self._stop_models(max(shutdown.remaining_s, _MIN_STOP_S))
                if not self._owns_loop:
                    self._lift_limit()

    def _prepare_loop(self) -> Shutdown:
        """Set up the loop that really runs, and what will end it."""
        set_predictor_config(self.config.predictor)
        self.dataplane.is_draining = self._was_signalled = False
        self.dataplane.is_starting = True
        loop = self._loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._exception_handler)
        if self.config.max_asyncio_workers is not None and not self._owns_loop:
            loop.set_default_executor(DefaultPool(self.config.max_asyncio_workers))
        self._shutdown = Shutdown(self.config.drain_delay_s, self.config.grace_period_s)
        return self._shutdown

    def _on_signal(self, sig: signal.Signals) -> None:
        assert self._loop is not None and self._shutdown is not None
        self._was_signalled = True
        self._loop.call_soon_threadsafe(self._shutdown.request, sig == signal.SIGTERM)

    def _lift_limit(self) -> None:
        if self._was_signalled:
            cancel_limit()

    async def _load(
        self, named: Mapping[str, BaseKServeModel], load: Callable[[], object] | None
    ) -> None:
        """Load all models side by side; those that fail are `unavailable`, if one is ready."""
        for name in named:
            self.registered_models.set_status(name, ModelState.LOADING)
        loaded = None if load is None else await run_user_code(load)
        self.dataplane.required_models = [*named, *(loaded if isinstance(loaded, list) else ())]
        results = await asyncio.gather(
            *(self._load_one(name, model) for name, model in named.items())
        )
        failures = [exc for exc in results if exc is not None]
        if failures and len(failures) == len(named):
            raise NoModelReady(list(named), reason_of(failures[0])) from failures[0]
        self.dataplane.is_starting = False

    async def _load_one(self, name: str, model: BaseKServeModel) -> Exception | None:
        try:
            await load(model)
            self.registered_models.update(model, name)
            await run_in_new_thread(model.start)
        except Exception as exc:
            self.registered_models.set_status(name, ModelState.UNAVAILABLE, public_reason_of(exc))
            logger.error(
                "Model %s cannot be loaded: %s", name, reason_of(exc), exc_info=trace_of(exc)
            )
            return exc
        return None

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        """Follow the model directory where `--watch` says so and there is one."""
        repository = self.registered_models
        if not self.config.watch:
            yield
            return
        if not isinstance(repository, DirectoryRepository):
            logger.warning("watch: there is no model directory to follow")
            yield
            return
        watch = DirectoryWatch(repository, self.dataplane.control, self.config.watch_interval_s)
        watching = asyncio.create_task(watch.run())
        try:
            yield
        finally:
            await _cancel(watching)

    async def _completes(self, work: asyncio.Task[None]) -> bool:
        """Wait for a task or a request to stop, whichever comes first; True if the task is done.

        Raises:
            Exception: Whatever the task raises.
        """
        assert self._shutdown is not None
        stopping = asyncio.create_task(self._shutdown.requested.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(stopping)
        if work.done():
            work.result()
        return work.done()

    async def _listen(
        self, loading: asyncio.Task[None], on_ready: Callable[[str], None] | None
    ) -> None:
        """Load and listen, or the other way round; serve; then finish what is in flight."""
        assert self._shutdown is not None
        if not self.config.listen_early:
            await self._completes(loading)
            if self._shutdown.requested.is_set():
                return
        raise_descriptor_limit()
        rest, grpc_server = self._make_rest_server(), self._make_grpc_server()
        engines: asyncio.Task[None] | None = None
        try:
            address = await self._start_servers(rest, grpc_server)
            if on_ready is not None:
                on_ready(address)
            if await self._completes(loading):
                engines = asyncio.create_task(self._run_engines())
                with frozen():
                    async with self._watching():
                        await self._completes(engines)
                        await self._drain(rest, grpc_server)
        finally:
            await self._stop_servers(rest, grpc_server)
            if engines is not None:
                # Last, as requests in flight need them.
                await _cancel(engines)

    async def _drain(self, rest: RESTServer, grpc_server: "GRPCServer | None") -> None:
        """Say that the server ends, and go on until those who balance the load know it."""
        assert self._shutdown is not None
        # Readiness first: whoever asks for it stops sending.
        self.dataplane.is_draining = True
        rest.drain()
        if grpc_server:
            grpc_server.drain()
        await self._shutdown.delay()

    async def _stop_servers(self, rest: RESTServer, grpc_server: "GRPCServer | None") -> None:
        """Accept no more on either wire, then let both finish what is in flight."""
        assert self._shutdown is not None
        self.dataplane.is_draining = True
        self._shutdown.request()
        remaining_s = self._shutdown.remaining_s
        stops = [rest.stop(remaining_s), *([grpc_server.stop(remaining_s)] if grpc_server else [])]
        await asyncio.gather(*stops)

    async def _start_servers(self, rest: RESTServer, grpc_server: "GRPCServer | None") -> str:
        """Listen on both ports; gives the address of REST."""
        self.grpc_address = await grpc_server.start() if grpc_server else None
        address = await rest.start()
        names = ", ".join(self.registered_models.names()) or "no model yet"
        suffix = f", gRPC on {self.grpc_address}" if self.grpc_address else ""
        logger.info("Serving %s: REST on %s%s", names, address, suffix)
        return address

    async def _run_engines(self) -> None:
        """Run the engines of the models that have one; the server ends if one of them fails."""
        assert self._shutdown is not None
        try:
            async with asyncio.TaskGroup() as group:
                self._start_engines(group)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        await self._shutdown.requested.wait()

    def _start_engines(self, group: asyncio.TaskGroup) -> None:
        # A function of its own, whose names end with it: one of `_run_engines` would keep the last
        # model for as long as the server runs.
        for model in self.registered_models.get_models().values():
            if model.engine:
                group.create_task(model.start_engine())

    async def _stop_models(self, timeout_s: float) -> None:
        """Stop what was loaded; a `stop` that fails or hangs does not keep the server up."""
        names = list(self.registered_models.get_models())
        stops = [run_in_new_thread(self.registered_models.unload, name) for name in names]
        try:
            async with asyncio.timeout(timeout_s):
                results = await asyncio.gather(*stops, return_exceptions=True)
                await self.dataplane.control.close()
        except TimeoutError:
            logger.error("Models did not stop in %.1f s", timeout_s)
            return
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Exception):
                logger.error("Model %s failed to stop: %s", name, result, exc_info=result)

    def _make_rest_server(self) -> RESTServer:
        return RESTServer(
            _application(),
            self.dataplane,
            self.config.http_port,
            host=self.config.host,
            event_loop=self.config.event_loop,
            timeout_keep_alive=self.config.timeout_keep_alive_s,
            grace_period=self.config.grace_period_s,
            log_requests=self.config.enable_latency_logging,
            max_decompressed_bytes=self.config.max_decompressed_bytes,
            cloudevents=self.config.cloudevents,
            intake=Intake.from_config(self.config, self._inflight),
        )

    def _make_grpc_server(self) -> "GRPCServer | None":
        if not self.config.enable_grpc:
            return None
        from kserve.protocol.grpc.server import GRPCServer

        return GRPCServer(self.dataplane, self.config, self._inflight)

    def _loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        if self.config.event_loop == "asyncio":
            return asyncio.new_event_loop
        return uvloop.new_event_loop


def _by_name(models: object) -> dict[str, BaseKServeModel]:
    """Give the models by the names to serve them under."""
    if isinstance(models, BaseKServeModel):
        models = [models]
    if isinstance(models, Mapping):
        named = dict(models)
    elif isinstance(models, list | tuple):
        _check_types(models)
        named = {model.name: model for model in models}
        if len(named) < len(models):
            raise ValueError(f"models share a name: {', '.join(model.name for model in models)}")
    else:
        raise RuntimeError(
            f"Unknown model collection type: expected a list, a dict or a model, "
            f"got {type(models).__name__}"
        )
    _check_types(named.values())
    if not all(named):
        raise ValueError("Failed to register model, model.name must be provided.")
    return named


def _leave() -> None:
    """End the process though a thread does not end, which Python would wait for."""
    logger.error("A thread of the event loop's default pool does not end")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _check_types(models: Any) -> None:
    for model in models:
        if not isinstance(model, BaseKServeModel):
            raise RuntimeError(
                f"Model type should be 'BaseKServeModel', got {type(model).__name__}"
            )


def _refuse_other_distribution() -> None:
    try:
        distribution("kserve")
    except PackageNotFoundError:
        return
    raise StartError(
        "the distributions kserve and kserve-core are both installed and hold the same package: "
        "uninstall both, then install kserve-core"
    )


_app: Application | None = None


def _application() -> Application:
    global _app
    if _app is None:
        _app = Application()
    return _app


def __getattr__(name: str) -> Any:
    # Made when user code asks for it, so that importing this module makes no application.
    if name == "app":
        return _application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
