"""What a server is and takes beside its framework: lines of code, seconds to start."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from benchmarks.processes import Server, our_server, taskset

_BLANK: Final = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    | {tokenize.ENCODING, tokenize.ENDMARKER}
)


@dataclass(frozen=True, slots=True)
class Framework:
    """A server and what it serves with.

    Attributes:
        package: The server's package.
        module: The framework's module, or several as `import` takes them.
    """

    package: str
    module: str


SERVERS: Final[Mapping[str, Framework]] = {
    framework.package: framework
    for framework in (
        Framework("sklearnserver", "sklearn"),
        Framework("xgbserver", "xgboost"),
        Framework("lgbserver", "lightgbm"),
        Framework("onnxserver", "onnxruntime"),
        Framework("hfserver", "torch, transformers"),
    )
}


@dataclass(frozen=True, slots=True)
class Footprint:
    """What was measured.

    Attributes:
        package: The server's package.
        n_lines: Its lines of code.
        import_s: Seconds of a process that imports the framework alone.
        start_s: Seconds from the start of the server's process until it is ready.
    """

    package: str
    n_lines: int
    import_s: float
    start_s: float


def footprint(framework: Framework, directory: Path, n_repeats: int, cpu: int) -> Footprint:
    """Measure a server, with medians of several starts.

    Args:
        framework: The server and its framework.
        directory: A model that it serves.
        n_repeats: Processes of each kind, in turn.
        cpu: The CPU that they are kept on.

    Raises:
        RuntimeError: The server did not start.
    """
    imports, starts = [], []
    # The first ones bring files into memory.
    for _ in range(1 + n_repeats):
        imports.append(_import_s(framework.module, cpu))
        starts.append(_start_s(framework.package, directory, cpu))
    return Footprint(
        framework.package, count_lines(framework.package), median(imports[1:]), median(starts[1:])
    )


def count_lines(package: str) -> int:
    """Count the lines of code of a package, without blank lines, comments and docstrings."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    (folder,) = spec.submodule_search_locations
    return sum(len(code_lines(path.read_text())) for path in Path(folder).rglob("*.py"))


def code_lines(source: str) -> set[int]:
    """Give the numbers of the lines of a module that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _BLANK:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node) is not None and first is not None:
                lines.difference_update(range(first.lineno, (first.end_lineno or 0) + 1))
    return lines


def _import_s(module: str, cpu: int) -> float:
    started = perf_counter()
    subprocess.run([*taskset(cpu), sys.executable, "-c", f"import {module}"], check=True)
    return perf_counter() - started


def _start_s(package: str, directory: Path, cpu: int) -> float:
    command = our_server(package, directory, "--model_name", "m", "--drain_delay_s", "0")
    started = perf_counter()
    with Server(package, command, "/v2/models/m/ready", cpu):
        return perf_counter() - started
