"""The server: build the parts, load, listen, serve, stop."""

import asyncio
import contextlib
import importlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import uvloop

from kserve.collector import frozen
from kserve.config import ServerConfig, make_parser
from kserve.context import set_predictor_config
from kserve.descriptors import raise_descriptor_limit
from kserve.directory_repository import DirectoryRepository
from kserve.errors import NoModelReady, StartError
from kserve.executor import run_in_new_thread, run_user_code
from kserve.logging import configure_logging, logger
from kserve.model import BaseKServeModel
from kserve.model_repository import ModelRepository, ModelState, load, public_reason_of, reason_of
from kserve.predictor_config import PredictorConfig
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.app import Application
from kserve.protocol.rest.intake import Intake
from kserve.protocol.rest.server import RESTServer
from kserve.watch import DirectoryWatch

if TYPE_CHECKING:
    from kserve.protocol.grpc.server import GRPCServer

ExceptionHandler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], Any]
Models = Sequence[BaseKServeModel] | Mapping[str, BaseKServeModel] | BaseKServeModel

# What models get to stop where requests in flight have used up the grace period.
_MIN_STOP_S: Final = 1.0

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
        grace_period: Seconds that requests in flight get to finish at the end.
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
        self.grpc_address: str | None = None
        if self.config.enable_grpc:
            # Now, as the event loop should not wait for it; no earlier, as not everyone needs it.
            importlib.import_module("kserve.protocol.grpc.server")
        self._exception_handler: ExceptionHandler | None = None
        self._stop_requested: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_deadline: float | None = None
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
        """Load the models that are not ready, and serve until SIGTERM or SIGINT.

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
        with asyncio.Runner(loop_factory=self._loop_factory()) as runner:
            runner.run(self.serve(named, load=load))

    def stop(self, sig: int | None = None) -> None:
        """Make `start` return once the requests in flight have finished; from any thread."""
        loop, event = self._loop, self._stop_requested
        if loop is not None and event is not None:
            # A closed loop is a server that has stopped.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

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
        self._prepare_loop()
        with self._signals():
            loading = asyncio.create_task(self._load(named, load))
            try:
                if await self._completes(loading):
                    raise_descriptor_limit()
                    with frozen():
                        async with self._watching():
                            await self._listen(on_ready)
            finally:
                await _cancel(loading)
                await self._stop_models()

    def _prepare_loop(self) -> None:
        """Set up the loop that really runs: handlers and default pool."""
        set_predictor_config(self.config.predictor)
        self.dataplane.is_draining = False
        self._stop_deadline = None
        loop = self._loop = asyncio.get_running_loop()
        self._stop_requested = asyncio.Event()
        loop.set_exception_handler(self._exception_handler)
        if self.config.max_asyncio_workers is not None:
            loop.set_default_executor(ThreadPoolExecutor(self.config.max_asyncio_workers))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on a signal; only the main thread can be told of one."""
        is_main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT) if is_main else ()
        loop, stop_requested = self._loop, self._stop_requested
        assert loop is not None and stop_requested is not None
        before = {sig: signal.getsignal(sig) for sig in signals}
        for sig in signals:
            loop.add_signal_handler(sig, stop_requested.set)
        try:
            yield
        finally:
            for sig, handler in before.items():
                loop.remove_signal_handler(sig)
                # None is a handler that is not of Python.
                signal.signal(sig, handler or signal.SIG_DFL)

    async def _load(
        self, named: Mapping[str, BaseKServeModel], load: Callable[[], object] | None
    ) -> None:
        """Load all models side by side; those that fail are `unavailable`, if one is ready."""
        loaded = None if load is None else await run_user_code(load)
        for name in named:
            self.registered_models.set_status(name, ModelState.LOADING)
        self.dataplane.required_models = [*named, *(loaded if isinstance(loaded, list) else ())]
        results = await asyncio.gather(
            *(self._load_one(name, model) for name, model in named.items())
        )
        failures = [exc for exc in results if exc is not None]
        if failures and len(failures) == len(named):
            raise NoModelReady(list(named), reason_of(failures[0])) from failures[0]

    async def _load_one(self, name: str, model: BaseKServeModel) -> Exception | None:
        try:
            await load(model)
            self.registered_models.update(model, name)
            await run_in_new_thread(model.start)
        except Exception as exc:
            self.registered_models.set_status(name, ModelState.UNAVAILABLE, public_reason_of(exc))
            logger.error("Model %s cannot be loaded: %s", name, reason_of(exc), exc_info=exc)
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
        """Wait for a task or a request to stop, whichever comes first; True for the task.

        Raises:
            Exception: Whatever the task raises.
        """
        assert self._stop_requested is not None
        stopping = asyncio.create_task(self._stop_requested.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(stopping)
        if work.done():
            work.result()
        return work.done()

    async def _listen(self, on_ready: Callable[[str], None] | None) -> None:
        """Serve until the server is to stop, then finish what is in flight."""
        rest, grpc_server = self._make_rest_server(), self._make_grpc_server()
        address = await self._start_servers(rest, grpc_server)
        engines = asyncio.create_task(self._run_engines())
        try:
            if on_ready is not None:
                on_ready(address)
            await self._completes(engines)
        finally:
            # Readiness first; the engines last, as requests in flight need them.
            self.dataplane.is_draining = True
            self._stop_deadline = perf_counter() + self.config.grace_period_s
            await _stop_servers(rest, grpc_server)
            await _cancel(engines)

    async def _start_servers(self, rest: RESTServer, grpc_server: "GRPCServer | None") -> str:
        """Listen on both ports, or on none; gives the address of REST."""
        try:
            self.grpc_address = await grpc_server.start() if grpc_server else None
            address = await rest.start()
        except BaseException:
            await _stop_servers(rest, grpc_server)
            raise
        names = ", ".join(self.registered_models.names()) or "no model yet"
        suffix = f", gRPC on {self.grpc_address}" if self.grpc_address else ""
        logger.info("Serving %s: REST on %s%s", names, address, suffix)
        return address

    async def _run_engines(self) -> None:
        """Run the engines of the models that have one; the server ends if one of them fails."""
        assert self._stop_requested is not None
        try:
            async with asyncio.TaskGroup() as group:
                self._start_engines(group)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        await self._stop_requested.wait()

    def _start_engines(self, group: asyncio.TaskGroup) -> None:
        # A function of its own, whose names end with it: one of `_run_engines` would keep the last
        # model for as long as the server runs.
        for model in self.registered_models.get_models().values():
            if model.engine:
                group.create_task(model.start_engine())

    async def _stop_models(self) -> None:
        """Stop what was loaded; a `stop` that fails or hangs does not keep the server up."""
        names = list(self.registered_models.get_models())
        stops = [run_in_new_thread(self.registered_models.unload, name) for name in names]
        timeout_s: float = self.config.grace_period_s
        if self._stop_deadline is not None:
            timeout_s = max(self._stop_deadline - perf_counter(), _MIN_STOP_S)
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
            intake=Intake.from_config(self.config),
        )

    def _make_grpc_server(self) -> "GRPCServer | None":
        if not self.config.enable_grpc:
            return None
        from kserve.protocol.grpc.server import GRPCServer

        return GRPCServer(self.dataplane, self.config)

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


async def _stop_servers(rest: RESTServer, grpc_server: "GRPCServer | None") -> None:
    """Accept no more on either wire, then let both finish what is in flight."""
    await asyncio.gather(rest.stop(), *([grpc_server.stop()] if grpc_server else []))


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
