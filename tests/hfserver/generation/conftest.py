"""Small random models of many families, whose answers depend on the whole prompt."""

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from hfserver.generation.defaults import token_rules
from hfserver.generation.engine import Engine
from hfserver.generation.executors.base import Chunk, Executor
from hfserver.generation.executors.selection import choose_executor
from hfserver.generation.interface import (
    GenerationRequest,
    PromptEvent,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from hfserver.generation.settings import EngineConfig, TokenRules

# So small models are the fastest on one thread, whoever else wants the CPU.
torch.set_num_threads(1)

VOCABULARY = 211

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # At 0.02 with tied embeddings a random model repeats its last token, whatever the engine does.
    "initializer_range": 0.35,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 128}
_WINDOW = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
_MOE = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
_MLA = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "head_dim": 8,
}

# What each family needs beside the above.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 12},
    "mixtral": _MOE,
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {**_MOE, "head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, **_WINDOW},
    "gemma3_text": {"head_dim": 16, **_WINDOW},
    "phi": {},
    "phi3": {},
    "gpt2": _GPT2,
    "gpt_neox": {},
    "gpt_bigcode": {**_GPT2, "multi_query": True},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "olmo2": {},
    "cohere": {},
    "cohere2": _WINDOW,
    "granite": {},
    "starcoder2": {},
    "smollm3": {},
    "gpt_oss": {**_MOE, **_WINDOW, "head_dim": 16},
    "deepseek_v3": {**_MOE, **_MLA},
    "glm": {"head_dim": 16},
    "exaone4": _WINDOW,
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
    "stablelm": {},
    "gptj": {**_GPT2, "rotary_dim": 8},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "mamba": {"state_size": 8, "num_hidden_layers": 2},
    "qwen3_next": {
        **_MOE,
        "head_dim": 16,
        "shared_expert_intermediate_size": 64,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}

ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "initializer_factor": 8.0,
        "decoder_start_token_id": 2,
    },
    "bart": {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "init_std": 0.35,
        "decoder_start_token_id": 2,
    },
}


def make_model(family: str, **changes: Any) -> Any:
    """Make a random model of a family."""
    is_decoder = family in FAMILIES
    settings = {**_BASE, **(FAMILIES if is_decoder else ENCODER_DECODERS)[family], **changes}
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if is_decoder else AutoModelForSeq2SeqLM
    model = auto.from_config(config, dtype=torch.float32).eval()
    # What generate() would add of its own.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def generate(model: Any, prompt: list[int], n_tokens: int) -> list[int]:
    """Give the likeliest tokens by `generate()`."""
    output: list[int] = model.generate(
        torch.tensor([prompt]), max_new_tokens=n_tokens, do_sample=False, num_beams=1
    )[0].tolist()
    return output[1:] if model.config.is_encoder_decoder else output[len(prompt) :]


@pytest.fixture
def toy_model() -> Callable[..., Any]:
    return make_model


@pytest.fixture
def plain_generate() -> Callable[[Any, list[int], int], list[int]]:
    return generate


@dataclass
class Answer:
    """All that a request gave; of each of its `n` sequences by index."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    finish: dict[int, tuple[str, str | int | None]] = field(default_factory=dict)
    prompt: PromptEvent | None = None


def decode_numbers(token_ids: Sequence[int], skip_special_tokens: bool) -> str:
    return "".join(f"<{token_id}>" for token_id in token_ids)


class EngineUnderTest(Engine):
    """An engine with short ways to ask it."""

    def __init__(self, executor: Any, config: EngineConfig, rules: TokenRules, decode: Any) -> None:
        self.executor = executor
        self._numbers = itertools.count()
        super().__init__("m", executor, config, rules, decode)

    def request(self, prompt: Sequence[int], **params: Any) -> GenerationRequest:
        own = {name: params.pop(name) for name in ("deadline", "cache_salt") if name in params}
        name = params.pop("request_id", None) or f"r{next(self._numbers)}"
        params.setdefault("temperature", 0.0)
        return GenerationRequest(list(prompt), SamplingParams(**params), name, **own)

    async def ask(self, prompt: Sequence[int], **params: Any) -> Answer:
        answer = Answer()
        async for event in self.submit(self.request(prompt, **params)):
            if isinstance(event, PromptEvent):
                assert answer.prompt is None
                answer.prompt = event
                continue
            self._take(answer, event)
        return answer

    @staticmethod
    def _take(answer: Answer, event: TokenEvent) -> None:
        assert event.index not in answer.finish
        answer.tokens.setdefault(event.index, []).extend(event.token_ids)
        answer.text[event.index] = answer.text.get(event.index, "") + event.text
        answer.logprobs.setdefault(event.index, []).extend(event.logprobs or ())
        if event.finish_reason is not None:
            answer.finish[event.index] = (event.finish_reason, event.stop_reason)


MakeEngine = Callable[..., EngineUnderTest]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Make an engine of a model, or of an executor; it is stopped at the end of the test."""
    engines: list[EngineUnderTest] = []

    def make(
        model: Any,
        rules: TokenRules | None = None,
        decode: Any = decode_numbers,
        **limits: Any,
    ) -> EngineUnderTest:
        executor = model if hasattr(model, "kv_bytes") else choose_executor(model)
        limits = {"max_model_len": 200, "kv_cache_bytes": 1 << 30, **limits}
        rules = rules or (token_rules(executor.model) if executor.model else TokenRules())
        engine = EngineUnderTest(executor, EngineConfig(**limits), rules, decode)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.stop()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class CountingExecutor(Executor):
    """Goes on with the next number, of 100; a state is the list of its tokens.

    Attributes:
        calls: Of each forward the numbers of tokens of its chunks.
        permits: A forward takes one, where the test has made it a semaphore.
        n_waiting: 1 while a forward waits for a permit.
        broken: Forwards raise what it gives for their tokens.
    """

    name = "counting"

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.model = None
        self.n_forwards = 0
        self.n_waiting = 0
        self.calls: list[list[int]] = []
        self.permits: threading.Semaphore | None = None
        self.broken: Callable[[list[int]], BaseException | None] = lambda token_ids: None

    def kv_bytes(self, n_tokens: int, n_prompt_tokens: int) -> int:
        return n_tokens

    def open(self, n_tokens: int, prompt_ids: Sequence[int]) -> list[int]:
        return []

    def fork(self, state: list[int]) -> list[int]:
        return list(state)

    def recover(self, state: list[int], n_tokens: int) -> int:
        del state[n_tokens:]
        return n_tokens

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        if self.permits is not None:
            self.n_waiting = 1
            self.permits.acquire()
            self.n_waiting = 0
        self.calls.append([len(chunk.token_ids) for chunk in chunks])
        error = self.broken([token_id for chunk in chunks for token_id in chunk.token_ids])
        if error is not None:
            raise error
        for chunk in chunks:
            chunk.state.extend(chunk.token_ids)
        return [self._logits(chunk) for chunk in chunks]

    def _logits(self, chunk: Chunk) -> torch.Tensor:
        logits = torch.zeros(chunk.n_logits, 100)
        for row, token_id in enumerate(chunk.token_ids[len(chunk.token_ids) - chunk.n_logits :]):
            logits[row, (token_id + 1) % 100] = 9.0
        return logits


@pytest.fixture
def executor() -> Any:
    return CountingExecutor()


async def wait_until(is_so: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what another thread does; the time only bounds a test that fails."""
    deadline = time.perf_counter() + timeout_s
    while not is_so():
        assert time.perf_counter() < deadline
        await asyncio.sleep(0.001)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return wait_until
