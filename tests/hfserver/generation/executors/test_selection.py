"""An executor that is wrong for a model is not used, and the next one is right."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hfserver.generation.executors import merge, ragged, selection, sequential
from hfserver.generation.executors.recompute import RecomputeExecutor
from hfserver.generation.executors.selection import choose_executor

pytestmark = pytest.mark.anyio

PROMPTS = [[20, 30, 40], list(range(50, 75)), [7, 8, 9, 10, 11]]


def _break(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a function give a little less than it should."""
    original: Callable[..., torch.Tensor] = getattr(owner, name)

    def less(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return [row * 0.9 for row in result] if isinstance(result, list) else result * 0.9

    monkeypatch.setattr(owner, name, less)


def _break_ragged(monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, ragged, "_attend_one")


def _break_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    _break_ragged(monkeypatch)
    _break(monkeypatch, merge.MergeExecutor, "_decode")


def _break_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    _break_ragged(monkeypatch)
    _break(monkeypatch, sequential.SequentialExecutor, "_run_one")


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda monkeypatch: None, "ragged"),
        (_break_ragged, "merge"),
        (_break_merge, "sequential"),
        (_break_caches, "recompute"),
    ],
    ids=["ragged", "merge", "sequential", "recompute"],
)
async def test_next_executor_is_taken_and_gives_what_generate_gives(
    damage: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    toy_model: Any,
    make_engine: Any,
    plain_generate: Any,
) -> None:
    model = toy_model("llama")
    expected = [plain_generate(model, prompt, 8) for prompt in PROMPTS]
    attention = model.config._attn_implementation
    damage(monkeypatch)

    executor = choose_executor(model)

    assert executor.name == name
    assert (model.config._attn_implementation == attention) == (name != "ragged")
    engine = make_engine(executor, max_batch_tokens=8)
    answers = await asyncio.gather(*(engine.ask(prompt, max_tokens=8) for prompt in PROMPTS))
    assert [answer.tokens[0] for answer in answers] == expected
    both = await engine.ask(PROMPTS[0], max_tokens=8, n=2)
    assert both.tokens == {0: expected[0], 1: expected[0]}


async def test_failed_forward_of_the_last_resort_begins_anew(
    toy_model: Any, plain_generate: Any, make_engine: Any
) -> None:
    model = toy_model("llama")
    expected = plain_generate(model, PROMPTS[0], 5)
    executor = RecomputeExecutor(model)
    run, n_failures = executor.run, 1

    def run_or_fail(chunks: Any) -> Any:
        nonlocal n_failures
        rows = run(chunks)
        if len(chunks) > 1 and n_failures:
            n_failures -= 1
            raise RuntimeError("boom")
        return rows

    executor.run = run_or_fail  # type: ignore[method-assign]
    engine = make_engine(executor)

    answers = await asyncio.gather(*(engine.ask(PROMPTS[0], max_tokens=5) for _ in range(3)))

    assert n_failures == 0
    assert [answer.tokens[0] for answer in answers] == [expected] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_the_check(dtype: torch.dtype, toy_model: Any) -> None:
    model = toy_model("llama", initializer_range=0.1).to(dtype)

    assert choose_executor(model).name == "ragged"


def test_window_that_a_layer_does_not_have_is_noticed(
    toy_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("mistral")
    # Short sequences are the same with and without a window: only what the layer says tells.
    monkeypatch.setattr(ragged, "_windows", lambda config: dict.fromkeys(range(2)))

    with pytest.raises(ragged.NotRagged, match="layer 0 has a window of 12 and says None"):
        ragged.RaggedExecutor(model)


def test_model_with_windows_is_not_merged(toy_model: Any, monkeypatch: Any) -> None:
    _break_ragged(monkeypatch)

    assert choose_executor(toy_model("mistral")).name == "sequential"


@pytest.mark.parametrize(
    ("family", "reason"),
    [("t5", "it has an encoder"), ("bloom", "cannot be replaced"), ("lfm2", "layers of conv")],
)
def test_reason_is_said(family: str, reason: str, toy_model: Any) -> None:
    with pytest.raises(ragged.NotRagged, match=reason):
        ragged.RaggedExecutor(toy_model(family))


def test_model_does_not_run_beside_its_executor(toy_model: Any) -> None:
    model = toy_model("llama")
    executor = choose_executor(model)

    with pytest.raises(ragged.NotRagged, match="outside of its executor"):
        model(torch.tensor([[1, 2]]))

    assert isinstance(executor, ragged.RaggedExecutor)
    executor.restore()
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 211)


def test_check_reads_no_special_tokens(toy_model: Any) -> None:
    model = toy_model("llama", bos_token_id=5, pad_token_id=6)
    model.config.image_token_id = 7

    sequences = selection._sequences(model)

    assert not {5, 6, 7} & {token_id for sequence in sequences for token_id in sequence}


def test_what_a_sequence_takes_is_measured(toy_model: Any) -> None:
    model = toy_model("llama")

    # Two layers, keys and values of two heads of 16 in float32.
    expected = 10 * 2 * 2 * 2 * 16 * 4
    assert choose_executor(model).kv_bytes(10, 10) == expected
    assert sequential.SequentialExecutor(toy_model("llama")).kv_bytes(10, 10) == expected
    encoder = choose_executor(toy_model("t5"))
    assert encoder.kv_bytes(2, 10) > encoder.kv_bytes(2, 1) > encoder.kv_bytes(1, 1)
