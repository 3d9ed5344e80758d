"""Whatever the architecture, requests side by side get what `generate()` gives each alone."""

import asyncio
import logging
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.anyio

# Families by the executor that they get.
_RAGGED = (
    *("llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen2_moe", "qwen3_moe", "gemma"),
    *("gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox", "gpt_bigcode", "opt", "olmo2"),
    *("cohere", "cohere2", "granite", "starcoder2", "smollm3", "gpt_oss", "deepseek_v3", "glm"),
    "exaone4",
)
_MERGED = ("bloom", "falcon", "stablelm", "gptj", "mpt", "mamba", "qwen3_next", "lfm2")
_ENCODER_DECODERS = ("t5", "bart")

_FAMILIES = [
    *((family, "ragged") for family in _RAGGED),
    *((family, "merge") for family in _MERGED),
    *((family, "encoder_decoder") for family in _ENCODER_DECODERS),
]

# Prompts shorter and longer than a window and than a part of a prompt.
_LENGTHS = (5, 9, 14, 30, 47, 8, 21, 70, 12, 6, 33, 11, 17, 25, 40, 10)
_N_TOKENS = (9, 14, 6, 11)


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 200, (n,), generator=generator).tolist() for n in _LENGTHS]


@pytest.mark.parametrize(("family", "executor"), _FAMILIES, ids=[name for name, _ in _FAMILIES])
async def test_sixteen_requests_side_by_side_get_what_generate_gives_each(
    family: str, executor: str, toy_model: Any, make_engine: Any, plain_generate: Any
) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = toy_model(family)
    prompts = _prompts()
    counts = [_N_TOKENS[index % len(_N_TOKENS)] for index in range(len(prompts))]
    expected = [plain_generate(model, *pair) for pair in zip(prompts, counts, strict=True)]
    # A model that does not read its prompt could not tell a right engine from a wrong one.
    shorter = [plain_generate(model, prompt[1:], 9) for prompt in prompts[:6]]
    assert any(one[:6] != other[:6] for one, other in zip(expected, shorter, strict=False))
    engine = make_engine(model, max_batch_tokens=24)
    assert engine.executor.name == executor

    answers = await asyncio.gather(
        *(
            engine.ask(prompt, max_tokens=count)
            for prompt, count in zip(prompts, counts, strict=True)
        )
    )

    assert [answer.tokens[0] for answer in answers] == expected
    assert all(answer.finish[0] == ("length", None) for answer in answers)
