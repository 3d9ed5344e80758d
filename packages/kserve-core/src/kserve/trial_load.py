"""A load that could end its process, tried in another process first.

Native libraries read damaged files without much care: they abort, follow a wild pointer, or never
come back. The trial costs what a bare interpreter and the library take to start, about 20 ms, and a
second load; it runs beside whatever the caller does until it asks for the outcome.
"""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kserve.errors import ModelLoadError
from kserve.logging import logger

# A model of a megabyte loads in a fraction of this, on a machine that does much else, too.
_TIMEOUT_S: Final = 30.0
_TIMEOUT_S_PER_MIB: Final = 1.0

_CHILD: Final = Path(__file__).with_name("trial_child.py")


def find_library(package: str, name: str) -> Path:
    """Find a shared library that a package carries, without importing the package.

    Args:
        package: The package; the library is in its folder `lib`.
        name: The library's file name without its suffix.

    Raises:
        ModelLoadError: It is not there.
    """
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in Path(folder, "lib").glob(f"{name}.*")]
    if not found:
        raise ModelLoadError(f"the package {package} is not installed, or has no {name}")
    return found[0]


class TrialLoad:
    """One trial, as a context manager; it ends with the block.

    Args:
        script: A Python file that defines `load(library, artifact)`, which raises if it cannot.
        library: What it gets as the path of the native library.
        artifact: What it gets as the path of the artifact.
        is_bare: Run it with the standard library alone, which is quick to start.
        timeout_s: Seconds after which the load has hung; if None, 30 and one for each MiB.
    """

    def __init__(
        self,
        script: Path,
        library: Path,
        artifact: Path,
        *,
        is_bare: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        self._artifact = artifact
        # The folder of the other side holds modules with names of the standard library's.
        flags = ["-I", "-S"] if is_bare else ["-P"]
        self._command = [
            *(sys.executable, *flags, str(_CHILD)),
            *(str(script), str(library), str(artifact)),
        ]
        if timeout_s is None:
            timeout_s = _TIMEOUT_S + _TIMEOUT_S_PER_MIB * artifact.stat().st_size / (1 << 20)
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the trial."""
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # The stacks of more threads would count as memory that it takes.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        except OSError as exc:
            logger.warning(
                "%s is loaded without a trial: no process can be started (%s)", self._artifact, exc
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the trial if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def check(self, advice: str) -> None:
        """Wait for the end of the trial.

        Args:
            advice: What the error ends with.

        Raises:
            ModelLoadError: The load has failed, ended its process, or hung.
        """
        reason = self._reason()
        if reason:
            raise ModelLoadError(f"{self._artifact}: cannot be loaded ({reason}): {advice}")

    def _reason(self) -> str:
        if self._process is None:
            return ""
        try:
            report, _ = self._process.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            return f"a trial has not ended after {self._timeout_s:.0f} s"
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "a trial was killed, as processes are when memory runs out"
        if code < 0:
            return f"it ends its process with {signal.Signals(-code).name}"
        text = report.decode(errors="replace")
        return text or ("" if code == 0 else f"a trial ended with exit code {code}")
