"""Servers as processes of their own, on a CPU of their own, and what they use of the machine."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_START_TIMEOUT_S: Final = 60
_STOP_TIMEOUT_S: Final = 40
_POLL_S: Final = 0.05
# Below the ports that Linux gives to clients and to those who bind port 0: hardly anybody takes one
# of these between the look and the server's own bind.
_FIRST_PORT, _LAST_PORT = 20000, 32000
_LOG_TAIL_BYTES: Final = 4000


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses now.

    Attributes:
        rss_bytes: Resident memory.
        n_descriptors: Open files and sockets.
        n_threads: Threads.
        cpu_s: Seconds of CPU since its start.
    """

    rss_bytes: int
    n_descriptors: int
    n_threads: int
    cpu_s: float


def usage(pid: int) -> Usage:
    """Look at a process by Linux' `/proc`.

    Raises:
        OSError: It is gone.
    """
    folder = Path("/proc", str(pid))
    # Behind the name, which may hold spaces: utime and stime are the fields 14 and 15 of the whole,
    # num_threads is 20, rss is 24 (proc(5)).
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Usage(
        rss_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        n_descriptors=len(os.listdir(folder / "fd")),
        n_threads=int(fields[17]),
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
    )


def split_cpus() -> tuple[int, int]:
    """Give a CPU for the server and one for the load; the same if there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[-1]


def stay_on(*cpus: int) -> None:
    """Keep this process on some CPUs, with all threads that run already: frameworks have some."""
    for thread in os.listdir("/proc/self/task"):
        # One may have ended meanwhile.
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)


class Busy:
    """Keeps a CPU busy by a process that gives way to all others, as a context manager."""

    def __init__(self, cpu: int) -> None:
        self._command = [*taskset(cpu), sys.executable, "-S", "-c", "while True: pass"]

    def __enter__(self) -> Self:
        """Start."""
        self._process = subprocess.Popen(self._command)
        os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    """Give a port of 127.0.0.1 that nobody listens on."""
    while True:
        port = random.randint(_FIRST_PORT, _LAST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Server:
    """A server in a process of its own, as a context manager.

    Args:
        name: What messages call it.
        command: What is run; `--http_port` and `--grpc_port` with free ports are appended.
        ready_path: It is ready once a GET of this path is answered 200.
        cpu: The CPU that it is kept on; None for any.
        env: Variables beside those of this process.

    Attributes:
        name: As given.
        port: Its REST port.
        grpc_port: Its gRPC port.
        process: The process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        ready_path: str,
        cpu: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port, self.grpc_port = free_port(), free_port()
        self._command = [
            *taskset(cpu),
            *command,
            *("--http_port", str(self.port), "--grpc_port", str(self.grpc_port)),
        ]
        self._ready_path = ready_path
        self._env = {**os.environ, **(env or {})}

    def __enter__(self) -> Self:
        """Start the process and wait until it is ready.

        Raises:
            RuntimeError: It ended or was not ready in 60 s; the text holds the end of its log.
        """
        # A file, as a log of a container is read by somebody else: a pipe would be read here.
        self._log = tempfile.NamedTemporaryFile(prefix="server-", suffix=".log")
        self.process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not is_answered(self.port, self._ready_path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} did not start:\n{self.log_tail()}")
            time.sleep(_POLL_S)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the process."""
        self.stop()
        self._log.close()

    @property
    def pid(self) -> int:
        """The id of the process: taskset becomes what it starts."""
        return self.process.pid

    def stop(self) -> int:
        """Send SIGTERM, wait, and give the exit code; kills after 40 s."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def log(self) -> str:
        """Give all that it wrote."""
        return Path(self._log.name).read_text(errors="replace")

    def log_tail(self) -> str:
        """Give the last 4 kB that it wrote."""
        # Opened again: the process writes where the first handle stands.
        with open(self._log.name, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")


def our_server(package: str, directory: Path, *flags: str) -> list[str]:
    """Give the command of one of our servers, in the environment of this process."""
    return [
        *(sys.executable, "-m", package, "--host", "127.0.0.1"),
        *("--model_dir", str(directory), *flags),
    ]


def sklearnserver(directory: Path, *flags: str) -> list[str]:
    """Give the command of our scikit-learn server, in the environment of this process."""
    return our_server("sklearnserver", directory, *flags)


def is_answered(port: int, path: str, timeout_s: float = 5) -> bool:
    """Tell whether a GET over a new connection is answered 200."""
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def taskset(cpu: int | None) -> list[str]:
    """Give what keeps a command on a CPU, to stand before it.

    Raises:
        RuntimeError: `taskset` is not installed.
    """
    if cpu is None:
        return []
    taskset = shutil.which("taskset")
    if taskset is None:
        raise RuntimeError("taskset is not there: install util-linux")
    return [taskset, "--cpu-list", str(cpu)]
