"""What each step computes: counted in forwards and tokens, not in time."""

import asyncio
import threading
from typing import Any

import pytest
import torch

from hfserver.generation.interface import TokenEvent
from hfserver.generation.prefix_cache import BLOCK_TOKENS

pytestmark = pytest.mark.anyio


async def test_sixteen_requests_share_their_forwards(executor: Any, make_engine: Any) -> None:
    executor.permits = threading.Semaphore(0)
    engine = make_engine(executor)
    tasks = [asyncio.create_task(engine.ask([n], max_tokens=20)) for n in range(16)]
    await asyncio.sleep(0)
    executor.permits.release(1000)

    for task in tasks:
        await task

    n_tokens = 16 * 20
    # The first step may have begun before all had come.
    assert len(executor.calls) <= 21
    assert n_tokens / len(executor.calls) >= 2


async def test_decode_never_waits_for_a_long_prompt(executor: Any, make_engine: Any) -> None:
    executor.permits = threading.Semaphore(1)
    engine = make_engine(executor, max_batch_tokens=16)
    stream = engine.submit(engine.request([1], max_tokens=40))
    await anext(stream)
    long = asyncio.create_task(engine.ask([50] * 100, max_tokens=1))
    await asyncio.sleep(0)
    executor.permits.release(1000)

    await long
    async for _ in stream:
        pass

    parts = [call for call in executor.calls if max(call) > 1]
    # Each step has the decode, and of the prompt what the budget leaves.
    assert len(parts) >= 7
    assert all(call[0] == 1 and sum(call) <= 16 for call in parts)
    assert sum(sum(call[1:]) for call in parts) in (99, 100)


async def test_prompts_go_on_however_many_decode(executor: Any, make_engine: Any) -> None:
    executor.permits = threading.Semaphore(0)
    engine = make_engine(executor, max_batch_tokens=8)
    decoding = [asyncio.create_task(engine.ask([n], max_tokens=30)) for n in range(12)]
    prompt = asyncio.create_task(engine.ask([50] * 20, max_tokens=1))
    await asyncio.sleep(0)
    executor.permits.release(1000)

    await prompt

    assert not any(task.done() for task in decoding)
    for task in decoding:
        await task


async def test_short_answer_is_done_before_a_long_one_that_came_first(
    executor: Any, make_engine: Any
) -> None:
    executor.permits = threading.Semaphore(0)
    engine = make_engine(executor)
    long = asyncio.create_task(engine.ask([1], max_tokens=150))
    short = asyncio.create_task(engine.ask([1], max_tokens=2))
    await asyncio.sleep(0)
    executor.permits.release(5)

    assert (await short).tokens == {0: [2, 3]}

    assert not long.done()
    executor.permits.release(150)
    assert len((await long).tokens[0]) == 150


async def test_sequences_of_a_request_share_its_prompt(executor: Any, make_engine: Any) -> None:
    engine = make_engine(executor)

    answer = await engine.ask(range(50), max_tokens=3, n=4)

    assert answer.tokens == dict.fromkeys(range(4), [50, 51, 52])
    # The prompt once, and two further tokens of four sequences.
    assert engine.stats().n_forward_tokens == 50 + 4 * 2


async def test_sequences_of_a_real_model_share_its_prompt(toy_model: Any, make_engine: Any) -> None:
    for family in ("llama", "bloom", "t5"):
        engine = make_engine(toy_model(family))
        prompt = list(range(20, 45))

        together = await engine.ask(prompt, max_tokens=6, n=3, temperature=9.0, seed=4)
        alone = [
            await engine.ask(prompt, max_tokens=6, temperature=9.0, seed=4 + index)
            for index in range(3)
        ]

        assert together.tokens == {i: answer.tokens[0] for i, answer in enumerate(alone)}
        assert len(set(map(tuple, together.tokens.values()))) > 1


async def test_repeated_prompt_is_computed_once(
    toy_model: Any, make_engine: Any, plain_generate: Any
) -> None:
    model = toy_model("llama")
    prompt = [n % 190 + 5 for n in range(3 * BLOCK_TOKENS + 9)]
    expected = plain_generate(model, prompt, 6)
    engine = make_engine(model, prefix_cache_bytes=1 << 24)

    first = await engine.ask(prompt, max_tokens=6, logprobs=0)
    n_first = engine.stats().n_forward_tokens
    second = await engine.ask(prompt, max_tokens=6, logprobs=0)

    assert first.tokens[0] == second.tokens[0] == expected
    assert (first.prompt.n_cached_tokens, second.prompt.n_cached_tokens) == (0, 3 * BLOCK_TOKENS)
    assert engine.stats().n_forward_tokens - n_first == 9 + 5
    assert [p.logprob for p in second.logprobs[0]] == pytest.approx(
        [p.logprob for p in first.logprobs[0]], abs=1e-5
    )


async def test_answer_is_the_prefix_of_a_conversation_that_goes_on(
    toy_model: Any, make_engine: Any, plain_generate: Any
) -> None:
    engine = make_engine(toy_model("llama"), prefix_cache_bytes=1 << 24)
    prompt = [n % 190 + 5 for n in range(BLOCK_TOKENS)]
    answer = await engine.ask(prompt, max_tokens=BLOCK_TOKENS + 5)
    longer = [*prompt, *answer.tokens[0], 7, 8]

    again = await engine.ask(longer, max_tokens=4)

    assert again.prompt.n_cached_tokens == 2 * BLOCK_TOKENS
    assert again.tokens[0] == plain_generate(toy_model("llama"), longer, 4)


async def test_prefix_of_another_salt_is_not_shared(toy_model: Any, make_engine: Any) -> None:
    engine = make_engine(toy_model("llama"), prefix_cache_bytes=1 << 24)
    prompt = list(range(5, 5 + BLOCK_TOKENS + 1))
    await engine.ask(prompt, max_tokens=1, cache_salt="a")

    other = await engine.ask(prompt, max_tokens=1, cache_salt="b")
    same = await engine.ask(prompt, max_tokens=1, cache_salt="a")

    assert other.prompt.n_cached_tokens == 0
    assert same.prompt.n_cached_tokens == BLOCK_TOKENS


async def test_last_token_of_a_prompt_is_always_computed(toy_model: Any, make_engine: Any) -> None:
    engine = make_engine(toy_model("llama"), prefix_cache_bytes=1 << 24)
    prompt = list(range(5, 5 + 2 * BLOCK_TOKENS))
    first = await engine.ask(prompt, max_tokens=3)

    second = await engine.ask(prompt, max_tokens=3)

    assert second.prompt.n_cached_tokens == BLOCK_TOKENS
    assert second.tokens == first.tokens


async def test_same_seed_gives_the_same_tokens_whatever_the_neighbours(
    toy_model: Any, make_engine: Any
) -> None:
    for family in ("llama", "bloom"):
        engine = make_engine(toy_model(family))
        alone = await engine.ask([30, 40, 50], max_tokens=20, temperature=3.0, seed=11)

        crowd = await asyncio.gather(
            *(engine.ask([30, 40, 50 + n], max_tokens=9 + n, temperature=3.0) for n in range(7)),
            engine.ask([30, 40, 50], max_tokens=20, temperature=3.0, seed=11),
        )

        assert crowd[-1].tokens == alone.tokens


async def test_requests_without_a_seed_differ(toy_model: Any, make_engine: Any) -> None:
    engine = make_engine(toy_model("llama"))

    answers = [await engine.ask([30, 40], max_tokens=20, temperature=3.0) for _ in range(3)]

    assert len({tuple(answer.tokens[0]) for answer in answers}) == 3


@pytest.mark.parametrize("family", ["llama", "bloom"])
async def test_log_probabilities_are_those_of_a_plain_forward(
    family: str, toy_model: Any, make_engine: Any
) -> None:
    engine = make_engine(toy_model(family), max_batch_tokens=7)
    prompt = list(range(40, 60))

    answer = await engine.ask(
        prompt, max_tokens=5, logprobs=3, prompt_logprobs=2, temperature=0.7, logit_bias={3: 9.0}
    )

    tokens = [*prompt, *answer.tokens[0]]
    with torch.inference_mode():
        expected = toy_model(family)(torch.tensor([tokens])).logits[0].log_softmax(-1)
    found = [*answer.prompt.logprobs, *answer.logprobs[0]]
    assert found[0] is None
    for place, one in enumerate(found[1:], start=1):
        row = expected[place - 1]
        assert one.token_id == tokens[place]
        assert one.logprob == pytest.approx(float(row[tokens[place]]), abs=1e-3)
        values, ids = row.topk(2 if place < len(prompt) else 3)
        assert [token_id for token_id, _ in one.top] == ids.tolist()
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=1e-3)


async def test_prompt_alone_gives_its_log_probabilities(toy_model: Any, make_engine: Any) -> None:
    engine = make_engine(toy_model("llama"))

    answer = await engine.ask([5, 6, 7], max_tokens=0, prompt_logprobs=0)

    assert [one and one.token_id for one in answer.prompt.logprobs] == [None, 6, 7]
    assert (answer.tokens, answer.finish) == ({0: []}, {0: ("length", None)})


async def test_numbers_say_what_runs_and_what_waits(
    executor: Any, make_engine: Any, until: Any
) -> None:
    executor.permits = threading.Semaphore(0)
    engine = make_engine(executor, max_num_seqs=1, kv_cache_bytes=1000)
    tasks = [asyncio.create_task(engine.ask([n], max_tokens=9)) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    executor.permits.release(2)

    await until(lambda: engine.stats().n_running == 1 and engine.stats().n_waiting == 2)

    assert (engine.stats().kv_used_bytes, engine.stats().kv_total_bytes) == (10, 1000)
    executor.permits.release(100)
    for task in tasks:
        await task
    await until(lambda: engine.stats().kv_used_bytes == 0)


async def test_stream_gives_a_token_before_the_last_is_computed(
    executor: Any, make_engine: Any
) -> None:
    executor.permits = threading.Semaphore(2)
    engine = make_engine(executor)
    stream = engine.submit(engine.request([1], max_tokens=50))

    await anext(stream)

    assert isinstance(await anext(stream), TokenEvent)
    executor.permits.release(100)
    await stream.aclose()
