"""Compares ways to generate text with one model; `benchmarks/generation` sets it up.

Each way has one CPU and one thread of torch, and is measured by the clock and in seconds of CPU:
where the machine does other things too, the latter still compare.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final

from benchmarks.generation_ways import (
    STATIC_BATCH,
    VOCABULARY,
    Ask,
    Way,
    answer,
    continuous,
    make_engine,
    make_model,
    ours,
    over_http,
    save_model,
    sequential,
    static,
    timed_answer,
)
from benchmarks.processes import Server, our_server, split_cpus, stay_on
from benchmarks.results import commit, listed, machine

_FOLDER: Final = Path(__file__).resolve().parent

SEQUENTIAL: Final = "generate(), one by one"
STATIC: Final = f"generate(), static batches of {STATIC_BATCH}"
CONTINUOUS: Final = "transformers' continuous batching"
SERVE: Final = "transformers serve, HTTP"
OURS: Final = "ours"
OURS_HTTP: Final = "ours, HTTP"

_PACKAGES: Final = ("torch", "transformers")
_COLUMNS: Final = ("requests", "way", "tokens/CPU s", "lowest to highest", "ratio", "tokens/s")


@dataclass(slots=True)
class Figures:
    """Tokens for each second, of CPU and of the clock, of each run of one way."""

    per_cpu: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)


def asks(n: int, prompts: tuple[int, int], tokens: tuple[int, int], seed: int = 0) -> list[Ask]:
    """Make requests of random tokens.

    Args:
        n: How many.
        prompts: The shortest prompt and the longest.
        tokens: The fewest tokens to generate and the most.
        seed: Other seeds make others.
    """
    rng = random.Random(seed)
    return [
        Ask(
            [rng.randrange(5, VOCABULARY) for _ in range(rng.randint(*prompts))],
            rng.randint(*tokens),
        )
        for _ in range(n)
    ]


# Few requests of about equal answers, and many mixed ones.
CASES: Final = {
    "8, prompts 20 to 120, answers 48 to 64": asks(8, (20, 120), (48, 64)),
    "24, prompts 16 to 192, answers 6 to 48": asks(24, (16, 192), (6, 48), seed=1),
}


def measure(
    ways: dict[str, Way], cases: dict[str, list[Ask]], n_runs: int
) -> dict[tuple[str, str], Figures]:
    """Run every way on every case, in turns; the first run of each is not counted.

    Raises:
        RuntimeError: Two ways give other tokens for the same prompts.
    """
    figures = {(case, name): Figures() for case in cases for name in ways}
    own_cpu, load_cpu = split_cpus()
    for case, requests in cases.items():
        expected: list[list[int]] | None = None
        for number in range(n_runs + 1):
            for name, way in ways.items():
                # What asks a server stands beside it; all else is what the server would be.
                stay_on(load_cpu if way.is_server else own_cpu)
                started, cpu = perf_counter(), way.cpu_s()
                answers = way.run(requests)
                cpu, seconds = way.cpu_s() - cpu, perf_counter() - started
                expected = expected or answers
                if answers != expected:
                    raise RuntimeError(f"{name} gives other tokens than {next(iter(ways))}")
                if number:
                    n_tokens = sum(map(len, answers))
                    figures[case, name].per_cpu.append(n_tokens / cpu)
                    figures[case, name].per_second.append(n_tokens / seconds)
                    print(f"{case}: {name}: {n_tokens / cpu:.0f} tokens/CPU s", flush=True)
    return figures


def table(figures: dict[tuple[str, str], Figures]) -> str:
    """Give figures as a table of Markdown; ratios are to the first way of the same requests."""
    lines = [_line(_COLUMNS), _line(["---", "---", *["---:"] * (len(_COLUMNS) - 2)])]
    bases: dict[str, float] = {}
    for (case, name), each in figures.items():
        rate = median(each.per_cpu)
        base = bases.setdefault(case, rate)
        spread = f"{min(each.per_cpu):.0f} to {max(each.per_cpu):.0f}"
        cells = (case, name, f"{rate:.0f}", spread, f"{rate / base:.2f}")
        lines.append(_line([*cells, f"{median(each.per_second):.0f}"]))
    return "\n".join(lines) + "\n"


def measure_first_token(engine: Any, n_prompt: int) -> str:
    """Say how long a request waits for its first token, alone and beside 8 that generate."""

    async def run() -> tuple[float, float, float, float]:
        # Three prompts, since what has been read is kept.
        warm_up, first, second = asks(3, (n_prompt, n_prompt), (1, 1), seed=9)
        await timed_answer(engine, warm_up)
        alone = perf_counter()
        alone = (await timed_answer(engine, first))[0][0] - alone
        began = [asyncio.Event() for _ in range(8)]
        load = [
            asyncio.create_task(timed_answer(engine, ask, event))
            for ask, event in zip(asks(8, (20, 60), (96, 96)), began, strict=True)
        ]
        for event in began:
            await event.wait()
        started = perf_counter()
        under_load = (await timed_answer(engine, second))[0][0]
        times = [[at for at, _ in await task] for task in load]
        gaps = [b - a for one in times for a, b in zip(one, one[1:], strict=False)]
        end = max(max(one) for one in times)
        return alone, under_load - started, max(gaps), end - started

    alone, loaded, gap, end = asyncio.run(run())
    return (
        f"The first token of a prompt of {n_prompt} tokens came after {alone:.2f} s alone, and "
        f"after {loaded:.2f} s beside 8 answers, the last of which ended after {end:.2f} s; "
        f"meanwhile no answer waited longer than {gap:.2f} s for its next token. By the clock."
    )


def measure_prefix(engine: Any, n_prompt: int, n_rest: int) -> str:
    """Say what it saves that the beginning of a prompt is known."""
    beginning = asks(1, (n_prompt, n_prompt), (1, 1), seed=7)[0].prompt
    times = []
    for seed in (20, 21):
        rest = asks(1, (n_rest, n_rest), (1, 1), seed=seed)[0].prompt
        started = process_time()
        asyncio.run(answer(engine, Ask([*beginning, *rest], 1)))
        times.append(process_time() - started)
    first, second = times
    return (
        f"A prompt of {n_prompt + n_rest} tokens took {first * 1000:.0f} ms of CPU; another, whose "
        f"first {n_prompt} were the same, {second * 1000:.0f} ms: {first / second:.1f} times less."
    )


def page(figures: dict[tuple[str, str], Figures], notes: Iterable[str]) -> str:
    """Give the whole page."""
    listed_notes = "".join(f"- {note}\n" for note in notes)
    return (
        "# Generation\n\nWritten by `benchmarks/generation`; run it for that of your machine.\n\n"
        "A random model of 25 million weights in float32, greedy, each way on one CPU and one\n"
        "thread. All ways give the same tokens. Rates are medians over the runs, of generated\n"
        "tokens for each second of CPU, which compare on a machine that does other things too; a\n"
        "server's are those of its process. The last column is by the clock. Nothing is cached\n"
        f"from one run to the next.\n\n{table(figures)}\n{listed_notes}"
    )


def main() -> None:
    """Measure, and write the page."""
    args = _parser().parse_args()
    notes = [machine()]
    own_cpu, _ = split_cpus()
    # Before torch makes its threads.
    stay_on(own_cpu)
    os.environ["OMP_NUM_THREADS"] = "1"
    from hfserver.environment import prepare_environment

    prepare_environment()
    size = (args.layers, args.hidden)
    cases = {case: requests[: args.requests] for case, requests in CASES.items()}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_model(directory, make_model(*size))
        # Each has a model of its own, as each sets another attention.
        ways = {
            SEQUENTIAL: sequential(make_model(*size)),
            STATIC: static(make_model(*size)),
            CONTINUOUS: continuous(make_model(*size)),
            OURS: ours(make_model(*size)),
            **_servers(stack, directory, own_cpu, args.without_peer is None),
        }
        figures = measure(ways, cases, args.runs)
    stay_on(own_cpu)
    engine = make_engine(make_model(*size), prefix_cache_bytes=1 << 30)
    notes.append(measure_first_token(engine, args.prompt))
    notes.append(measure_prefix(engine, args.prompt // 32 * 32, 32))
    engine.stop()
    if args.without_peer is not None:
        notes.append(f"{SERVE} was left out: {args.without_peer}")
    notes.append(f"{args.runs} runs, commit {commit()}")
    notes.append(listed({name: version(name) for name in _PACKAGES}))
    text = page(figures, notes)
    print(text)
    args.output.write_text(text)


def _servers(stack: ExitStack, directory: Path, cpu: int, has_peer: bool) -> dict[str, Way]:
    """Start the servers of a model, until the stack is left."""
    flags = ("--model_name", "m", "--dtype", "float32", "--prefix_cache_bytes", "0")
    own = Server("hfserver", our_server("hfserver", directory, *flags), "/v2/health/ready", cpu)
    servers = {OURS_HTTP: (own, {"model": "m", "temperature": 0})}
    if has_peer:
        command = [sys.executable, "-m", "benchmarks.transformers_serve"]
        peer = Server(SERVE, [*command, "--model_dir", str(directory)], "/health", cpu)
        servers = {SERVE: (peer, {}), **servers}
    return {
        name: over_http(stack.enter_context(server), fields)
        for name, (server, fields) in servers.items()
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of each way that count (%(default)s)"
    )
    parser.add_argument("--layers", type=int, default=8, help="of the model (%(default)s)")
    parser.add_argument("--hidden", type=int, default=512, help="its width (%(default)s)")
    parser.add_argument("--requests", type=int, help="of each case, at most (all)")
    parser.add_argument(
        "--prompt", type=int, default=768, help="tokens of the long prompt (%(default)s)"
    )
    parser.add_argument("--without_peer", metavar="REASON", help="leave transformers serve out")
    parser.add_argument("--output", type=Path, default=_FOLDER / "GENERATION.md", help="the page")
    return parser


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
