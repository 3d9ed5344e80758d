"""The page of figures that `compare` writes: a table, and what it was measured on."""

import math
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

import orjson

from benchmarks.closed_loop import Result
from benchmarks.footprint import Footprint

# Of the same version on both sides, as the comparison is of servers.
FRAMEWORKS: Final = ("scikit-learn", "xgboost-cpu", "lightgbm")
_SHARED_PACKAGES: Final = (*FRAMEWORKS, "numpy", "uvicorn", "uvloop", "grpcio")
OUR_PACKAGES: Final = ("onnxruntime", "tensorflow-cpu", *_SHARED_PACKAGES)
PEER_PACKAGES: Final = ("kserve", *_SHARED_PACKAGES, "fastapi")
_COLUMNS: Final = (
    *("case", "server", "requests/s", "lowest to highest", "p50 ms", "p99 ms", "failed"),
    *("server CPU", "requests/CPU s", "load CPU", "ratio", "wanted"),
)

_FOOTPRINT_COLUMNS: Final = ("server", "lines of code", "import s", "start s", "over import s")


@dataclass(frozen=True, slots=True)
class Row:
    """The runs of one server in one case.

    Attributes:
        case: What was asked.
        server: What was asked it.
        results: One or more runs.
        ratio: How many times the peer's rate this one's is; None where nothing is compared.
        wanted: What the ratio shall be at least; None where nothing is compared.
    """

    case: str
    server: str
    results: Sequence[Result]
    ratio: float | None = None
    wanted: float | None = None

    @property
    def rate(self) -> float:
        """The median of the rates, in right answers a second."""
        return median(result.rate for result in self.results)

    @property
    def rate_per_cpu(self) -> float:
        """The median of the right answers for each second of CPU that the server got."""
        return median(result.rate / (result.server_cpu or math.nan) for result in self.results)

    @property
    def was_disturbed(self) -> bool:
        """Whether something else used the machine in one of the runs."""
        return any(result.was_disturbed for result in self.results)


def table(rows: Iterable[Row]) -> str:
    """Give the rows as a table of Markdown."""
    lines = [_line(_COLUMNS), _line(["---", "---", *["---:"] * (len(_COLUMNS) - 2)])]
    return "\n".join([*lines, *(_line(_cells(row)) for row in rows)]) + "\n"


def footprints(sizes: Iterable[Footprint]) -> str:
    """Give what servers are and take beside their frameworks, as a table of Markdown."""
    lines = [_line(_FOOTPRINT_COLUMNS), _line(["---", *["---:"] * 4])]
    for size in sizes:
        over = size.start_s - size.import_s
        figures = (f"{seconds:.2f}" for seconds in (size.import_s, size.start_s, over))
        lines.append(_line([size.package, f"{size.n_lines:,}", *figures]))
    return "\n".join(lines) + "\n"


def page(rows: Iterable[Row], sizes: Iterable[Footprint], notes: Sequence[str]) -> str:
    """Give the whole page.

    Args:
        rows: Those of the table.
        sizes: Of the servers in the table.
        notes: One line each: settings, machine, versions, what was left out.
    """
    listed = "".join(f"- {note}\n" for note in notes)
    return (
        "# Results\n\nWritten by `benchmarks/compare`; run it for those of your machine.\n\n"
        "One server at a time has one CPU, the load generator another. A request counts if its\n"
        "answer was right. Rates, p50, p99 and CPU are medians over the runs. `ratio` is the rate\n"
        "over that of KServe's SDK; or over that of `in process`, the model called in a loop\n"
        "without a server. `floor` is bare uvicorn, or bare `grpc.aio`, and always gives\n"
        "the answer of ours: what the load generator can ask at least. A load CPU near 1.00 would\n"
        "say that the load generator was the limit. Where the machine did other things too,\n"
        f"requests for each second of the server's CPU still compare.\n\n{table(rows)}\n"
        "Lines of code are those of the server's package that are neither blank, comment nor\n"
        "docstring. `import s` is a process that imports the framework alone, `start s` one of\n"
        "the server, from its start until it is ready; medians on one CPU.\n\n"
        f"{footprints(sizes)}\n{listed}"
    )


def machine() -> str:
    """Describe this machine in one line."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    named = [line for line in cpuinfo.splitlines() if line.startswith("model name")]
    model = named[0].partition(":")[2].strip() if named else platform.machine()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{model}, {len(os.sched_getaffinity(0))} CPUs, "
        f"{memory_gib:.0f} GiB, {platform.system()} {platform.release()}, "
        f"load 1 min {os.getloadavg()[0]:.1f} at the start"
    )


def commit() -> str:
    """Give git's name of what is measured, or that there is none."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def our_versions() -> dict[str, str]:
    """Give the versions of what our server runs on, Python's own included."""
    return {"Python": platform.python_version(), **{name: version(name) for name in OUR_PACKAGES}}


def peer_versions(python: str) -> dict[str, str]:
    """Give the versions of what the peer runs on.

    Args:
        python: The interpreter of its environment.

    Raises:
        subprocess.CalledProcessError: A package is missing there.
    """
    code = (
        "import json, platform, sys; from importlib.metadata import version; "
        "print(json.dumps({'Python': platform.python_version(), "
        "**{name: version(name) for name in sys.argv[1:]}}))"
    )
    command = [python, "-I", "-c", code, *PEER_PACKAGES]
    done = subprocess.run(command, check=True, capture_output=True)
    versions: dict[str, str] = orjson.loads(done.stdout)
    return versions


def listed(versions: Mapping[str, str]) -> str:
    """Give versions in one line."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _cells(row: Row) -> list[str]:
    rates = [result.rate for result in row.results]
    failures = sum((result.failures for result in row.results), Counter[str]())
    return [
        row.case,
        row.server,
        _number(row.rate),
        f"{_number(min(rates))} to {_number(max(rates))}",
        *(
            f"{median(each.latency_ms(percent) for each in row.results):.1f}"
            for percent in (50, 99)
        ),
        ", ".join(f"{count} {kind}" for kind, count in failures.items()) or "0",
        f"{median(result.server_cpu for result in row.results):.2f}",
        _number(row.rate_per_cpu),
        f"{median(result.client_cpu for result in row.results):.2f}",
        "" if row.ratio is None else f"{row.ratio:.1f}",
        "" if row.wanted is None else f"{row.wanted:g}",
    ]


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
