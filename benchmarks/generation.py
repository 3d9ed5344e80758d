"""Compares ways to generate text with one model; `benchmarks/generation` sets it up.

Everything runs in this process, on one thread of torch, and is measured in seconds of CPU: where
the machine does other things too, those still compare.
"""

import argparse
import asyncio
import contextlib
import io
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final

from benchmarks.results import commit, listed, machine

_FOLDER: Final = Path(__file__).resolve().parent
_STATIC_BATCH: Final = 8
_VOCABULARY: Final = 4096

SEQUENTIAL: Final = "generate(), one by one"
STATIC: Final = f"generate(), static batches of {_STATIC_BATCH}"
CONTINUOUS: Final = "transformers' continuous batching"
OURS: Final = "ours"

_PACKAGES: Final = ("torch", "transformers")
_COLUMNS: Final = ("requests", "way", "tokens/CPU s", "lowest to highest", "ratio", "tokens/s")


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, and how many tokens to generate."""

    prompt: Sequence[int]
    n_tokens: int


@dataclass(slots=True)
class Figures:
    """Tokens for each second, of CPU and of the clock, of each run of one way."""

    per_cpu: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)


Way = Callable[[Sequence[Ask]], list[list[int]]]


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
            [rng.randrange(5, _VOCABULARY) for _ in range(rng.randint(*prompts))],
            rng.randint(*tokens),
        )
        for _ in range(n)
    ]


# Few requests of about equal answers, and many mixed ones.
CASES: Final = {
    "8, prompts 20 to 120, answers 48 to 64": asks(8, (20, 120), (48, 64)),
    "24, prompts 16 to 192, answers 6 to 48": asks(24, (16, 192), (6, 48), seed=1),
}


def make_model(n_layers: int = 8, hidden_size: int = 512) -> Any:
    """Make a random model of 25 million weights whose answers depend on their prompts."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=_VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def sequential(model: Any) -> Way:
    """Give `generate()` of one request after the other."""
    import torch

    def run(requests: Sequence[Ask]) -> list[list[int]]:
        answers = []
        for ask in requests:
            ids = torch.tensor([ask.prompt])
            output = model.generate(ids, max_new_tokens=ask.n_tokens, do_sample=False)
            answers.append(output[0, ids.shape[1] :].tolist())
        return answers

    return run


def static(model: Any) -> Way:
    """Give `generate()` of batches in the order of arrival, each as long as its longest answer."""
    import torch

    def run(requests: Sequence[Ask]) -> list[list[int]]:
        answers = []
        for start in range(0, len(requests), _STATIC_BATCH):
            batch = requests[start : start + _STATIC_BATCH]
            longest = max(len(ask.prompt) for ask in batch)
            pads = [longest - len(ask.prompt) for ask in batch]
            ids = torch.tensor(
                [[0] * pad + list(ask.prompt) for pad, ask in zip(pads, batch, strict=True)]
            )
            mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
            output = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(ask.n_tokens for ask in batch),
                do_sample=False,
            )[:, longest:].tolist()
            answers += [row[: ask.n_tokens] for row, ask in zip(output, batch, strict=True)]
        return answers

    return run


def continuous(model: Any) -> Way:
    """Give transformers' own continuous batching, with a cache of a size that fits."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    def run(requests: Sequence[Ask]) -> list[list[int]]:
        settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        config = ContinuousBatchingConfig(page_size=32, num_blocks=256, max_batch_tokens=256)
        manager = model.init_continuous_batching(
            generation_config=settings, continuous_batching_config=config
        )
        # It shows bars, whatever it is told.
        with contextlib.redirect_stderr(io.StringIO()):
            manager.start()
            names = [
                manager.add_request(list(ask.prompt), max_new_tokens=ask.n_tokens)
                for ask in requests
            ]
            found: dict[str, list[int]] = {}
            while len(found) < len(names):
                output = manager.get_result(timeout=60)
                if output is None:
                    raise RuntimeError(f"{CONTINUOUS} gave {len(found)} of {len(names)} answers")
                if output.is_finished():
                    found[output.request_id] = list(output.generated_tokens)
            manager.stop(block=True)
        return [found[name] for name in names]

    return run


def ours(model: Any) -> Way:
    """Give the engine of hfserver, all requests at once."""
    engine = make_engine(model)

    def run(requests: Sequence[Ask]) -> list[list[int]]:
        async def run_all() -> list[list[int]]:
            return await asyncio.gather(*(answer(engine, ask) for ask in requests))

        return asyncio.run(run_all())

    return run


def make_engine(model: Any, prefix_cache_bytes: int = 0) -> Any:
    """Make an engine of hfserver; it keeps the model from then on."""
    from hfserver.generation.engine import Engine
    from hfserver.generation.executors.selection import choose_executor
    from hfserver.generation.settings import EngineConfig, TokenRules

    return Engine(
        "benchmark",
        choose_executor(model),
        EngineConfig(4096, kv_cache_bytes=4 << 30, prefix_cache_bytes=prefix_cache_bytes),
        TokenRules(),
        lambda ids, skip_special_tokens: "x" * len(ids),
    )


async def answer(engine: Any, ask: Ask) -> list[int]:
    """Give the tokens of an answer."""
    return [token_id for _, token_id in await timed_answer(engine, ask)]


async def timed_answer(
    engine: Any, ask: Ask, began: asyncio.Event | None = None
) -> list[tuple[float, int]]:
    """Give the tokens of an answer with their times; `began` is set at the first."""
    from uuid import uuid4

    from hfserver.generation.interface import GenerationRequest, SamplingParams, TokenEvent

    params = SamplingParams(max_tokens=ask.n_tokens, temperature=0)
    tokens = []
    async for event in engine.submit(GenerationRequest(ask.prompt, params, uuid4().hex)):
        if isinstance(event, TokenEvent):
            tokens += [(perf_counter(), token_id) for token_id in event.token_ids]
            if began is not None:
                began.set()
    return tokens


def measure(
    ways: dict[str, Way], cases: dict[str, list[Ask]], n_runs: int
) -> dict[tuple[str, str], Figures]:
    """Run every way on every case, in turns.

    Raises:
        RuntimeError: Two ways give other tokens for the same prompts.
    """
    figures = {(case, name): Figures() for case in cases for name in ways}
    for case, requests in cases.items():
        expected: list[list[int]] | None = None
        for _ in range(n_runs):
            for name, run in ways.items():
                started, cpu = perf_counter(), process_time()
                answers = run(requests)
                cpu, seconds = process_time() - cpu, perf_counter() - started
                expected = expected or answers
                if answers != expected:
                    raise RuntimeError(f"{name} gives other tokens than {next(iter(ways))}")
                n_tokens = sum(map(len, answers))
                figures[case, name].per_cpu.append(n_tokens / cpu)
                figures[case, name].per_second.append(n_tokens / seconds)
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
        long = asks(1, (n_prompt, n_prompt), (1, 1), seed=9)[0]
        alone = perf_counter()
        alone = (await timed_answer(engine, long))[0][0] - alone
        began = [asyncio.Event() for _ in range(8)]
        load = [
            asyncio.create_task(timed_answer(engine, ask, event))
            for ask, event in zip(asks(8, (20, 60), (96, 96)), began, strict=True)
        ]
        for event in began:
            await event.wait()
        started = perf_counter()
        under_load = (await timed_answer(engine, long))[0][0]
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
        "A random model of 25 million weights in float32, greedy, in one process and on one\n"
        "thread. All ways give the same tokens. Rates are medians over the runs, of generated\n"
        "tokens for each second of CPU, which compare on a machine that does other things too;\n"
        f"the last column is by the clock.\n\n{table(figures)}\n{listed_notes}"
    )


def main() -> None:
    """Measure, and write the page."""
    args = _parser().parse_args()
    from hfserver.environment import prepare_environment

    prepare_environment()
    import torch

    torch.set_num_threads(1)
    notes = [machine(), f"{listed({name: version(name) for name in _PACKAGES})}, {commit()}"]
    size = (args.layers, args.hidden)
    # Each has a model of its own, as each sets another attention.
    ways = {
        SEQUENTIAL: sequential(make_model(*size)),
        STATIC: static(make_model(*size)),
        CONTINUOUS: continuous(make_model(*size)),
        OURS: ours(make_model(*size)),
    }
    cases = {case: requests[: args.requests] for case, requests in CASES.items()}
    figures = measure(ways, cases, args.runs)
    engine = make_engine(make_model(*size), prefix_cache_bytes=1 << 30)
    notes.append(measure_first_token(engine, args.prompt))
    notes.append(measure_prefix(engine, args.prompt // 32 * 32, 32))
    engine.stop()
    text = page(figures, notes)
    print(text)
    args.output.write_text(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each way (%(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="of the model (%(default)s)")
    parser.add_argument("--hidden", type=int, default=512, help="its width (%(default)s)")
    parser.add_argument("--requests", type=int, help="of each case, at most (all)")
    parser.add_argument(
        "--prompt", type=int, default=768, help="tokens of the long prompt (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=_FOLDER / "GENERATION.md", help="the page")
    return parser


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
