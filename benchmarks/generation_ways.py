"""The ways to generate text that `benchmarks/generation` compares, all with one random model."""

import asyncio
import contextlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final
from uuid import uuid4

import orjson

from benchmarks.processes import Server, usage

STATIC_BATCH: Final = 8
VOCABULARY: Final = 4096

# The text of a token is one character, so that texts tell which tokens were generated.
_FIRST_LETTER: Final = 0x4E00

# The peer has no limit, and answers requests one after the other.
_TIMEOUT_S: Final = 600


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, and how many tokens to generate."""

    prompt: Sequence[int]
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Way:
    """A way to generate.

    Attributes:
        run: Answers requests that come at once; gives the tokens of each answer.
        cpu_s: Seconds of CPU that it has taken since some time.
        is_server: It is a process of its own.
    """

    run: Callable[[Sequence[Ask]], list[list[int]]]
    cpu_s: Callable[[], float] = process_time
    is_server: bool = False


def make_model(n_layers: int = 8, hidden_size: int = 512) -> Any:
    """Make a random model of 25 million weights whose answers depend on their prompts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
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
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def save_model(directory: Path, model: Any) -> None:
    """Write a model into a directory, with a tokenizer of one character for each token."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = {chr(_FIRST_LETTER + token_id): token_id for token_id in range(VOCABULARY)}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.decoder = Fuse()
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


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

    return Way(run)


def static(model: Any) -> Way:
    """Give `generate()` of batches in the order of arrival, each as long as its longest answer."""
    import torch

    def run(requests: Sequence[Ask]) -> list[list[int]]:
        answers = []
        for start in range(0, len(requests), STATIC_BATCH):
            batch = requests[start : start + STATIC_BATCH]
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

    return Way(run)


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
                    raise RuntimeError(f"transformers gave {len(found)} of {len(names)} answers")
                if output.is_finished():
                    found[output.request_id] = list(output.generated_tokens)
            manager.stop(block=True)
        return [found[name] for name in names]

    return Way(run)


def ours(model: Any) -> Way:
    """Give the engine of hfserver, all requests at once."""
    engine = make_engine(model)

    def run(requests: Sequence[Ask]) -> list[list[int]]:
        async def run_all() -> list[list[int]]:
            return await asyncio.gather(*(answer(engine, ask) for ask in requests))

        return asyncio.run(run_all())

    return Way(run)


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
    from hfserver.generation.interface import GenerationRequest, SamplingParams, TokenEvent

    params = SamplingParams(max_tokens=ask.n_tokens, temperature=0)
    tokens = []
    async for event in engine.submit(GenerationRequest(ask.prompt, params, uuid4().hex)):
        if isinstance(event, TokenEvent):
            tokens += [(perf_counter(), token_id) for token_id in event.token_ids]
            if began is not None:
                began.set()
    return tokens


def over_http(server: Server, fields: dict[str, Any]) -> Way:
    """Give a server of OpenAI's completions, a connection for each request.

    Args:
        server: The server, which has to be running when it is asked.
        fields: What a request says beside its prompt and the number of tokens.
    """

    def ask_one(ask: Ask) -> list[int]:
        prompt = "".join(chr(_FIRST_LETTER + token_id) for token_id in ask.prompt)
        body = orjson.dumps({"prompt": prompt, "max_tokens": ask.n_tokens, **fields})
        connection = HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT_S)
        try:
            connection.request(
                "POST", "/v1/completions", body, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{server.name}: {content!r}\n{server.log_tail()}")
        text = orjson.loads(content)["choices"][0]["text"]
        return [ord(letter) - _FIRST_LETTER for letter in text]

    def run(requests: Sequence[Ask]) -> list[list[int]]:
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(ask_one, requests))

    return Way(run, lambda: usage(server.pid).cpu_s, is_server=True)
