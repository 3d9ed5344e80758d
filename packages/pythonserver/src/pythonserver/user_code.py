"""What the code of a model is run in: its working directory, and the traceback of its errors."""

import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from kserve.errors import StartError, UserCodeError

# There is one working directory in a process.
_directory_lock = threading.Lock()


class UserCode:
    """The code of one model directory, while its model is made and loaded.

    Args:
        directory: The directory, absolute; the working directory meanwhile.
        package: The package of its modules, which texts leave out.
        is_alone: The process serves no other directory: it stays the working directory. Otherwise
            directories take turns.
    """

    def __init__(self, directory: Path, package: str, *, is_alone: bool) -> None:
        self._directory = directory
        self._package = package
        self._is_alone = is_alone

    def run(self, function: Callable[[], Any]) -> Any:
        """Call a function of the model's; what it gives to await is awaited in the same way.

        Raises:
            UserCodeError: It raised; the traceback is that of the model's own lines.
            StartError: It raised one of these, whose text says it all.
        """
        with ExitStack() as stack:
            stack.enter_context(self._own_traceback())
            stack.enter_context(self._working_directory())
            result = function()
            if not hasattr(result, "__await__"):
                return result
            rest = stack.pop_all()
        return _finish(result, rest)

    @contextmanager
    def _working_directory(self) -> Iterator[None]:
        if self._is_alone:
            os.chdir(self._directory)
            yield
            return
        with _directory_lock:
            before = os.getcwd()
            os.chdir(self._directory)
            try:
                yield
            finally:
                os.chdir(before)

    @contextmanager
    def _own_traceback(self) -> Iterator[None]:
        try:
            yield
        except StartError:
            raise
        except (Exception, SystemExit) as exc:
            trim_traceback(exc, self._directory)
            reason = describe(exc, self._directory).replace(f"{self._package}.", "")
            raise UserCodeError(reason, exc) from None


async def _finish(awaitable: Any, stack: ExitStack) -> Any:
    with stack:
        return await awaitable


def trim_traceback(error: BaseException, directory: Path) -> None:
    """Leave of the tracebacks of an error and its causes the lines of files in a directory."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        exc = waiting.pop()
        if exc is None or id(exc) in seen:
            continue
        seen.add(id(exc))
        exc.__traceback__ = _trimmed(exc.__traceback__, directory)
        waiting += [exc.__cause__, exc.__context__, *getattr(exc, "exceptions", ())]


def describe(error: BaseException, directory: Path) -> str:
    """Say in one line where an error came from, and what it is."""
    text = "".join(traceback.format_exception_only(type(error), error)[-1:]).strip()
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}: {text}"
    lines = traceback.extract_tb(error.__traceback__)
    place = f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else f"{directory}"
    return f"{place}: {text}"


def _trimmed(trace: TracebackType | None, directory: Path) -> TracebackType | None:
    if trace is None:
        return None
    rest = _trimmed(trace.tb_next, directory)
    if Path(trace.tb_frame.f_code.co_filename).is_relative_to(directory):
        return TracebackType(rest, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)
    return rest
