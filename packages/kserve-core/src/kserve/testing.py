"""For people who write servers: run one on a free port, in this process or in its own, and ask it.

Everything here talks over real sockets on 127.0.0.1.
"""

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from types import TracebackType
from typing import IO, Any, Final, Self

import orjson

from kserve.config import ServerConfig
from kserve.model_server import Models, ModelServer

_READY_LINE: Final = re.compile(
    r"REST on http://127\.0\.0\.1:(\d+)(?:, gRPC on 127\.0\.0\.1:(\d+))?"
)
_START_TIMEOUT_S: Final = 60
_STOP_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response.

    Attributes:
        status: The status code.
        headers: Lower-case names.
        body: The whole body.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Give the JSON value of the body."""
        return orjson.loads(self.body)


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    chunk_bytes: int | None = None,
    timeout_s: float = 20,
) -> Response:
    """Send one request to 127.0.0.1 over a new connection, by `http.client`.

    Args:
        port: The server's port.
        method: The method.
        path: The path, with its query.
        body: The body; a mapping is sent as JSON, without a Content-Type of its own.
        headers: Request headers.
        chunk_bytes: Send the body in pieces of this many bytes, each a segment of its own.
        timeout_s: Seconds until a blocked read or write fails.
    """
    data = orjson.dumps(body) if isinstance(body, Mapping) else body
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if data is not None:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        for start in range(0, len(data or b""), chunk_bytes or len(data or b"") or 1):
            connection.send((data or b"")[start : start + (chunk_bytes or len(data or b""))])
        answer = connection.getresponse()
        lowered = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, lowered, answer.read())
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one server.

    Attributes:
        http: The REST port.
        grpc: The gRPC port; 0 without gRPC.
    """

    http: int
    grpc: int


@contextmanager
def serving(
    models: Models,
    server: ModelServer | None = None,
    **settings: Any,
) -> Iterator[int]:
    """Serve models over REST from a thread of this process; gives the port.

    Args:
        models: As for `ModelServer.start`.
        server: A server to use; made from `settings` if None. Its host must be 127.0.0.1.
        settings: Fields of `ServerConfig`.

    Raises:
        RuntimeError: The server was not ready in 60 s, or did not end in 30 s.
        Exception: Whatever `ModelServer.serve` raises, before it is ready or when it stops.
    """
    with serving_ports(models, server, **{"enable_grpc": False, **settings}) as ports:
        yield ports.http


@contextmanager
def serving_ports(
    models: Models,
    server: ModelServer | None = None,
    **settings: Any,
) -> Iterator[Ports]:
    """Serve models over REST and gRPC; as `serving`, but gives both ports."""
    config = replace(ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0), **settings)
    model_server = server or ModelServer(config=config)
    outcome = _Outcome(model_server)

    def run() -> None:
        try:
            asyncio.run(model_server.serve(models, outcome.ready))
        except Exception as exc:
            outcome.error = exc
        finally:
            outcome.is_settled.set()

    thread = threading.Thread(target=run, name="serving", daemon=True)
    thread.start()
    try:
        outcome.is_settled.wait(_START_TIMEOUT_S)
        if outcome.ports is not None:
            yield outcome.ports
    finally:
        model_server.stop()
        thread.join(_STOP_TIMEOUT_S)
    if outcome.error is not None:
        raise outcome.error
    if outcome.ports is None or thread.is_alive():
        raise RuntimeError(f"the server did not {'start' if outcome.ports is None else 'stop'}")


@dataclass(slots=True)
class _Outcome:
    server: ModelServer
    ports: Ports | None = None
    error: Exception | None = None
    is_settled: threading.Event = field(default_factory=threading.Event)

    def ready(self, address: str) -> None:
        self.ports = Ports(_port(address), _port(self.server.grpc_address or ":0"))
        self.is_settled.set()


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


class ServerProcess:
    """`python -m MODULE ARGS` on a free port of 127.0.0.1, as a context manager.

    Args:
        module: The module, or the path of a script where it ends in `.py`.
        args: The flags beside `--host` and the ports. Without `--drain_delay_s` among them it is 0:
            nobody balances load over the server who would have to learn that it ends.
        until: What the server writes to stderr once it has started; None for the line that says
            where it serves.
        env: The whole environment; that of this process if None.
        start_timeout_s: Seconds that the start may take.

    Attributes:
        port: The REST port.
        grpc_port: The gRPC port; 0 without gRPC.
        stderr: What the process has written to stderr so far.
        process: The process.
    """

    def __init__(
        self,
        module: str,
        *args: str,
        until: str | None = None,
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = _START_TIMEOUT_S,
    ) -> None:
        target = [module] if module.endswith(".py") else ["-m", module]
        self._command = [
            *(sys.executable, *target, *args),
            *("--host", "127.0.0.1", "--http_port", "0", "--grpc_port", "0"),
            *(() if "--drain_delay_s" in args else ("--drain_delay_s", "0")),
        ]
        self._env = env
        self._start_timeout_s = start_timeout_s
        self._until = until
        self._lines: list[str] = []
        self._has_written = threading.Condition()
        self._has_ended = False
        self.port = self.grpc_port = 0

    @property
    def stderr(self) -> str:
        """What the process has written to stderr so far."""
        return "".join(self._lines)

    def __enter__(self) -> Self:
        """Start the process and wait until it serves, or has written `until`.

        Raises:
            RuntimeError: It ended or was not there in 60 s; the text holds its stderr.
        """
        self.process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        with self._has_written:
            self._has_written.wait_for(
                lambda: self._has_ended or self._has_started, self._start_timeout_s
            )
        if not self._has_started:
            self.stop()
            raise RuntimeError(f"{' '.join(self._command)} did not start:\n{self.stderr}")
        return self

    @property
    def _has_started(self) -> bool:
        return bool(self.port) if self._until is None else self._until in self.stderr

    def wait_for(self, text: str) -> None:
        """Wait until the process has written a text to stderr.

        Raises:
            RuntimeError: It ended, or did not in 60 s; the text holds its stderr.
        """
        with self._has_written:
            self._has_written.wait_for(
                lambda: self._has_ended or text in self.stderr, _START_TIMEOUT_S
            )
        if text not in self.stderr:
            raise RuntimeError(f"no {text!r} on stderr:\n{self.stderr}")

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the process."""
        self.stop()

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and give the exit code; kills after 30 s."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(_STOP_TIMEOUT_S)
        return code

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Response:
        """Send one request; see `kserve.testing.request`."""
        return request(self.port, method, path, body, headers, **options)

    def _read(self, stderr: IO[str]) -> None:
        for line in stderr:
            match = _READY_LINE.search(line)
            with self._has_written:
                self._lines.append(line)
                if match:
                    self.port, self.grpc_port = int(match[1]), int(match[2] or 0)
                self._has_written.notify_all()
        with self._has_written:
            self._has_ended = True
            self._has_written.notify_all()
        stderr.close()


def v1_tables(columns: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Give a table as a V1 body in every form that named columns have, by a name of the form."""
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    tables = [{name: {"0": value} for name, value in record.items()} for record in records]
    labelled = {
        name: {str(index): value for index, value in enumerate(values)}
        for name, values in columns.items()
    }
    return {
        "rows": {"instances": [list(record.values()) for record in records]},
        "rows as objects": {"instances": records},
        "columns in another order": {"instances": [dict(reversed(r.items())) for r in records]},
        "rows under inputs": {"inputs": records},
        "lists of objects": {"inputs": [[record] for record in records]},
        "lists of one value": {"instances": [{n: [v] for n, v in r.items()} for r in records]},
        "columns": {"inputs": dict(columns)},
        "columns by label": {"inputs": labelled},
        "tables of one row": {"inputs": tables},
        "tables under instances": {"instances": tables},
    }
