"""Compares ways to embed texts with one model; `benchmarks/embeddings` sets it up."""

import argparse
import asyncio
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import orjson

from benchmarks.closed_loop import Load, run_http
from benchmarks.in_process import run_in_loop
from benchmarks.processes import Server, our_server, split_cpus, stay_on
from benchmarks.results import commit, listed, machine
from benchmarks.texts import mixed_texts, short_texts

_FOLDER: Final = Path(__file__).resolve().parent
N_CONNECTIONS: Final = 32

# As many texts wait, at most, as there are connections.
_PADDED_BATCH: Final = 16

_PACKAGES: Final = ("torch", "transformers", "tokenizers", "sentence-transformers")
_COLUMNS: Final = (
    *("texts", "way", "embeddings/s", "lowest to highest", "ratio"),
    *("embeddings/CPU s", "ratio per CPU s"),
)

ONE_BY_ONE: Final = "one by one"
PADDED: Final = f"padded, {_PADDED_BATCH} as they come"
ORACLE: Final = "sentence-transformers"
ENGINE: Final = f"ours, {N_CONNECTIONS} callers"
HTTP: Final = f"ours, HTTP, {N_CONNECTIONS} connections"


@dataclass(slots=True)
class Figures:
    """What was measured of one way.

    Attributes:
        rates: Embeddings a second, of each run.
        rates_per_cpu: The same for each second of CPU.
    """

    rates: list[float] = field(default_factory=list)
    rates_per_cpu: list[float] = field(default_factory=list)

    def add(self, rate: float, cpu: float) -> None:
        """Add a run.

        Args:
            rate: Embeddings a second.
            cpu: Share of a CPU that was used, 1.0 for all of one.
        """
        self.rates.append(rate)
        self.rates_per_cpu.append(rate / cpu if cpu else math.nan)


# Embeds texts, all of them.
Embed = Callable[[Sequence[str]], Any]


def one_by_one(directory: Path) -> Embed:
    """Embed as KServe's server does: a request is a forward."""
    return partial(_plain, directory, _loaded(directory), 1)


def padded(directory: Path) -> Embed:
    """Embed in batches as texts come, padded to the longest, as servers that batch requests do."""
    return partial(_plain, directory, _loaded(directory), _PADDED_BATCH)


def _loaded(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    return (
        AutoModel.from_pretrained(directory, local_files_only=True).eval(),
        AutoTokenizer.from_pretrained(directory, local_files_only=True),
    )


def _plain(directory: Path, loaded: tuple[Any, Any], size: int, texts: Sequence[str]) -> Any:
    import torch

    model, tokenizer = loaded
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), size):
            inputs = tokenizer(
                list(texts[start : start + size]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean).numpy())
    return np.concatenate(parts)


def oracle(directory: Path) -> Embed:
    """Embed with sentence-transformers, which sorts all texts by length first."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(directory), device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=32, show_progress_bar=False)


def engine(directory: Path, max_batch_tokens: int) -> Embed:
    """Embed with our engine; each of many callers has one text at a time."""
    from hfserver.encoder.load import Output, load_encoder
    from hfserver.loading import LoadOptions, open_checkpoint

    options = LoadOptions(device="cpu")
    encoder = load_encoder(
        "benchmark",
        Output.EMBEDDING,
        open_checkpoint(directory, None, options),
        options,
        max_batch_tokens=max_batch_tokens,
    )

    async def embed_all(texts: Sequence[str]) -> Any:
        results: list[Any] = [None] * len(texts)
        numbers = iter(range(len(texts)))

        async def ask() -> None:
            for number in numbers:
                tokenized = await encoder.tokenizer.tokenize([texts[number]])
                (results[number],) = await encoder.engine.run(tokenized)

        await asyncio.gather(*(ask() for _ in range(N_CONNECTIONS)))
        return np.stack(results)

    return lambda texts: asyncio.run(embed_all(texts))


def measure_call(embed: Embed, texts: Sequence[str], duration_s: float, figures: Figures) -> None:
    """Measure a way in this process, over and over the texts."""
    # As many as are there at once: the end of a round, when few callers are left, counts little.
    rounds = cycle([texts])
    result = run_in_loop(lambda: embed(next(rounds)), 0.0, duration_s)
    figures.add(result.rate * len(texts), result.server_cpu)


def measure_http(server: Server, texts: Sequence[str], duration_s: float, figures: Figures) -> None:
    """Measure a server of ours, asked for one embedding a request."""
    requests = [_request(text) for text in texts]
    load = Load(requests[0], _is_right, N_CONNECTIONS, 1.0, duration_s, requests[1:])
    result = run_http(load, server.port, server.pid)
    if result.failures:
        raise RuntimeError(f"the server failed: {dict(result.failures)}\n{server.log_tail()}")
    figures.add(result.rate, result.server_cpu)


def _request(text: str) -> bytes:
    body = orjson.dumps({"model": "m", "input": text, "encoding_format": "base64"})
    head = (
        "POST /openai/v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _is_right(body: bytes) -> bool:
    # 384 numbers of 4 bytes, in base64.
    return b'"object":"embedding"' in body and len(body) > 2048


def check(embeds: dict[str, Embed], texts: Sequence[str]) -> None:
    """See that all ways give the same, before any is measured.

    Raises:
        RuntimeError: They do not.
    """
    expected = embeds[ONE_BY_ONE](texts)
    for way, embed in embeds.items():
        distance = float(np.abs(embed(texts) - expected).max())
        if not distance < 1e-4:
            raise RuntimeError(f"{way}: {distance:.1e} from {ONE_BY_ONE}")


def table(rows: dict[tuple[str, str], Figures]) -> str:
    """Give what was measured as a table of Markdown."""
    lines = [_line(_COLUMNS), _line(["---", "---", *["---:"] * (len(_COLUMNS) - 2)])]
    for (kind, way), figures in rows.items():
        base = rows[kind, ONE_BY_ONE]
        rate, per_cpu = median(figures.rates), median(figures.rates_per_cpu)
        lines.append(
            _line(
                [
                    *(kind, way, f"{rate:.0f}"),
                    f"{min(figures.rates):.0f} to {max(figures.rates):.0f}",
                    f"{rate / median(base.rates):.2f}",
                    f"{per_cpu:.0f}",
                    f"{per_cpu / median(base.rates_per_cpu):.2f}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def page(rows: dict[tuple[str, str], Figures], notes: Sequence[str]) -> str:
    """Give the whole page."""
    listed_notes = "".join(f"- {note}\n" for note in notes)
    return (
        "# Embeddings\n\nWritten by `benchmarks/embeddings`; run it for those of your machine.\n\n"
        "all-MiniLM-L6-v2 in float32 on one CPU, one text a request. All ways were seen to give\n"
        "the same embeddings, and ran in turn. `mixed` are texts of 5 to 256 tokens, `short` of 6\n"
        f"to 20. `{ONE_BY_ONE}` is a forward for each text; `{PADDED}` pads batches in the order\n"
        f"of arrival; `{ORACLE}` was given all texts at once, and sorts them. Ratios are to\n"
        f"`{ONE_BY_ONE}`. Where the machine did other things too, those per second of CPU still\n"
        f"compare.\n\n{table(rows)}\n{listed_notes}"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ways(directory: Path, budgets: Sequence[int]) -> dict[str, Embed]:
    ways = {
        ONE_BY_ONE: one_by_one(directory),
        PADDED: padded(directory),
        ORACLE: oracle(directory),
    }
    for budget in budgets:
        name = ENGINE if len(budgets) == 1 else f"{ENGINE}, {budget} tokens"
        ways[name] = engine(directory, budget)
    return ways


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/embeddings", description=__doc__)
    add = parser.add_argument
    add("--model_dir", type=Path, required=True, help="all-MiniLM-L6-v2")
    add("--duration_s", type=float, default=6, help="seconds of a run (%(default)s)")
    add("--runs", type=int, default=3, help="how often each way runs (%(default)s)")
    add("--n_texts", type=int, default=256, help="texts of a round (%(default)s)")
    add(
        "--max_batch_tokens",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[2048],
        help="tokens of a batch of the engine; several to compare them (2048)",
    )
    add("--without_http", action="store_true", help="measure no server")
    add("--output", type=Path, default=_FOLDER / "EMBEDDINGS.md", help="what is written")
    return parser.parse_args()


def _runs(
    args: argparse.Namespace, ways: dict[str, Embed], server: Server | None
) -> Iterator[tuple[tuple[str, str], Callable[[Figures], None]]]:
    """Give all that is measured, each way in turn."""
    kinds = {"mixed": mixed_texts(args.n_texts), "short": short_texts(args.n_texts)}
    for _ in range(args.runs):
        for kind, texts in kinds.items():
            for way, embed in ways.items():
                yield (kind, way), partial(measure_call, embed, texts, args.duration_s)
            if server is not None:
                yield (kind, HTTP), partial(measure_http, server, texts, args.duration_s)


def main() -> None:
    """Measure, print, and write the page."""
    args = _parse()
    described = machine()
    server_cpu, load_cpu = split_cpus()
    # Before torch makes its threads.
    stay_on(server_cpu)
    os.environ["OMP_NUM_THREADS"] = "1"
    from hfserver.environment import prepare_environment

    prepare_environment()
    ways = _ways(args.model_dir, args.max_batch_tokens)
    check(ways, mixed_texts(20))
    notes = [
        f"{args.runs} runs of {args.duration_s:g} s, {args.n_texts} texts a round",
        described,
        f"commit {commit()}",
        listed({name: version(name) for name in _PACKAGES}),
    ]
    rows: dict[tuple[str, str], Figures] = {}
    command = our_server("hfserver", args.model_dir, "--model_name", "m")
    if args.without_http:
        _measure_all(_runs(args, ways, None), rows, server_cpu, load_cpu)
    else:
        with Server("hfserver", command, "/v2/health/ready", server_cpu) as server:
            _measure_all(_runs(args, ways, server), rows, server_cpu, load_cpu)
    text = page(dict(sorted(rows.items(), key=lambda row: row[0][0])), notes)
    args.output.write_text(text)
    print(text)


def _measure_all(
    runs: Iterator[tuple[tuple[str, str], Callable[[Figures], None]]],
    rows: dict[tuple[str, str], Figures],
    server_cpu: int,
    load_cpu: int,
) -> None:
    for key, measure in runs:
        figures = rows.setdefault(key, Figures())
        # What loads a server stands beside it; all else is what the server would be.
        stay_on(load_cpu if key[1] == HTTP else server_cpu)
        measure(figures)
        print(f"{', '.join(key)}: {figures.rates[-1]:.0f}/s", flush=True)


if __name__ == "__main__":
    main()
