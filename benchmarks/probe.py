"""`python -m benchmarks.probe PORT`: asks for liveness as a kubelet does, until its stdin ends.

A process of its own, so that a busy load generator does not delay it. Prints a JSON list of pairs:
when it asked, by `time.perf_counter`, which the processes of a machine share on Linux, and after
how many seconds it was answered 200, or null.
"""

import json  # noqa: TID251 - the standard library alone, so that it starts at once
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import Final, Self

PATH: Final = "/v2/health/live"
INTERVAL_S: Final = 0.1
TIMEOUT_S: Final = 10.0

# When, and after how many seconds; None is a failure
Sample = tuple[float, float | None]


class LivenessProbe:
    """Polls `/v2/health/live` over a new connection each time, as a context manager.

    Args:
        port: The server's REST port.

    Attributes:
        samples: Of the whole time, once it has ended.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        """Start to ask."""
        command = [sys.executable, "-m", "benchmarks.probe", str(self._port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and take over the samples."""
        output, _ = self._process.communicate(timeout=2 * TIMEOUT_S)
        self.samples = [(moment, latency_s) for moment, latency_s in json.loads(output)]


def poll(port: int, is_over: threading.Event) -> list[Sample]:
    """Ask every 100 ms until told that it is over."""
    samples: list[Sample] = []
    while not is_over.wait(INTERVAL_S):
        started = time.perf_counter()
        is_live = _is_live(port)
        samples.append((started, time.perf_counter() - started if is_live else None))
    return samples


def _is_live(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", PATH)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    """Ask until stdin ends, then print."""
    is_over = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        is_over.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    print(json.dumps(poll(int(sys.argv[1]), is_over)))


if __name__ == "__main__":
    main()
