"""Completions over the wire, by OpenAI's own client and by hand."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
import torch
from tests.hfserver.generation.tiny_generators import (
    LIMIT,
    N_BYTES,
    VOCABULARY,
    expected,
    llama,
    make_model,
    save,
    wait_for,
)

from hfserver.generation.model import HuggingfaceGenerativeModel
from kserve.testing import request, serving

PROMPT = "Once upon a time"
N_TOKENS = 11


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"), llama())


@pytest.fixture(scope="module")
def model(directory: Path) -> HuggingfaceGenerativeModel:
    return make_model(directory, max_waiting_requests=2, max_num_seqs=8)


@pytest.fixture(scope="module")
def server(model: HuggingfaceGenerativeModel) -> Iterator[Any]:
    with serving([model]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: int) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{server}/openai/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **arguments: Any) -> Any:
    extra = {
        name: arguments.pop(name)
        for name in (
            *("return_token_ids", "truncate_prompt_tokens", "structured_outputs", "min_tokens"),
            *("ignore_eos", "stop_token_ids", "top_k", "cache_salt", "include_stop_str_in_output"),
        )
        if name in arguments
    }
    arguments = {"prompt": PROMPT, "temperature": 0, "max_tokens": N_TOKENS, **arguments}
    return client.completions.create(model="toy", extra_body=extra, **arguments)


def test_text_is_what_generate_gives(client: openai.OpenAI) -> None:
    tokens, text = expected(PROMPT, N_TOKENS)

    answer = ask(client, return_token_ids=True)

    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, choice.index) == (text, "length", 0)
    assert choice.token_ids == tokens
    assert choice.prompt_token_ids == list(PROMPT.encode())
    assert (answer.object, answer.model) == ("text_completion", "toy")
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == N_TOKENS
    assert answer.usage.total_tokens == len(PROMPT) + N_TOKENS


def test_sixteen_tokens_are_the_default(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="toy", prompt=PROMPT, temperature=0)

    assert answer.choices[0].text == expected(PROMPT, 16)[1]


def test_stream_gives_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))

    *pieces, last = chunks
    assert "".join(chunk.choices[0].text for chunk in pieces) == expected(PROMPT, N_TOKENS)[1]
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in pieces][-2:] == [None, "length"]
    assert all(chunk.usage is None for chunk in pieces)
    assert (last.choices, last.usage.total_tokens) == ([], len(PROMPT) + N_TOKENS)


def test_stream_by_hand_is_events_and_ends_with_done(server: int) -> None:
    body = {"model": "toy", "prompt": PROMPT, "temperature": 0, "max_tokens": 2, "stream": True}

    answer = request(server, "POST", "/v1/completions", body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    texts = [orjson.loads(e.removeprefix("data: "))["choices"][0]["text"] for e in events[:-2]]
    assert "".join(texts) == expected(PROMPT, 2)[1]


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_answers_are_numbered(stream: bool, client: openai.OpenAI) -> None:
    prompts = ["one", "another one"]
    texts = [expected(prompt, 5)[1] for prompt in prompts for _ in range(2)]

    answer = ask(client, prompt=prompts, n=2, max_tokens=5, stream=stream)

    found = dict.fromkeys(range(4), "")
    for part in answer if stream else [answer]:
        for choice in part.choices:
            found[choice.index] += choice.text
    assert [found[index] for index in range(4)] == texts


@pytest.mark.parametrize("as_list", [False, True])
def test_prompt_may_be_tokens(as_list: bool, client: openai.OpenAI) -> None:
    ids = list(PROMPT.encode())

    answer = ask(client, prompt=[ids] if as_list else ids)

    assert answer.choices[0].text == expected(PROMPT, N_TOKENS)[1]


def test_echo_gives_the_prompt_and_its_log_probabilities(client: openai.OpenAI) -> None:
    tokens, text = expected("hello", 3)
    ids = [*b"hello", *tokens]
    with torch.inference_mode():
        reference = llama()(torch.tensor([ids])).logits[0].log_softmax(-1)

    answer = ask(client, prompt="hello", max_tokens=3, echo=True, logprobs=2)

    choice = answer.choices[0]
    assert choice.text == "hello" + text
    logprobs = choice.logprobs
    assert logprobs.tokens[:5] == list("hello")
    assert logprobs.text_offset[:5] == [0, 1, 2, 3, 4]
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(
        [float(reference[place, token]) for place, token in enumerate(ids[1:])], abs=1e-3
    )
    assert logprobs.top_logprobs[0] is None
    for place, top in enumerate(logprobs.top_logprobs[1:]):
        values = reference[place].topk(2).values.tolist()
        assert sorted(top.values(), reverse=True)[:2] == pytest.approx(values, abs=1e-3)


def test_echo_comes_first_in_a_stream(client: openai.OpenAI) -> None:
    chunks = list(ask(client, prompt=list(b"hello"), max_tokens=3, echo=True, stream=True))

    assert "".join(c.choices[0].text for c in chunks) == "hello" + expected("hello", 3)[1]
    assert chunks[0].choices[0].text.startswith("hello")


def test_prompt_alone_may_be_echoed(client: openai.OpenAI) -> None:
    answer = ask(client, prompt="hello", max_tokens=0, echo=True, logprobs=0)

    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("hello", "length")
    assert len(choice.logprobs.tokens) == 5


def test_stop_text_is_cut_off(client: openai.OpenAI) -> None:
    text = expected(PROMPT, 30)[1]
    # Two characters that nothing before them has.
    stop = next(text[i : i + 2] for i in range(3, 25) if text.index(text[i : i + 2]) == i)

    answer = ask(client, max_tokens=30, stop=[stop])

    choice = answer.choices[0]
    assert choice.text == text[: text.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)


def test_same_seed_gives_the_same_text_and_answers_differ(client: openai.OpenAI) -> None:
    arguments: Any = {"temperature": 2.0, "seed": 5, "n": 3}

    first, second = (ask(client, **arguments) for _ in range(2))

    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) > 1


def test_repeated_prompt_is_counted_as_cached(client: openai.OpenAI) -> None:
    prompt = "x" * 80
    ask(client, prompt=prompt, cache_salt="mine")

    again = ask(client, prompt=prompt, cache_salt="mine")
    other = ask(client, prompt=prompt, cache_salt="yours")

    assert again.usage.prompt_tokens_details.cached_tokens == 64
    assert other.usage.prompt_tokens_details.cached_tokens == 0


def test_long_prompt_may_be_cut(client: openai.OpenAI) -> None:
    answer = ask(client, truncate_prompt_tokens=4, prompt="never mind: time")
    ends_at_once = {"logit_bias": {str(N_BYTES): 100}, "max_tokens": LIMIT - 20}
    longest = ask(client, truncate_prompt_tokens=-1, prompt="x" * 30, **ends_at_once)

    assert answer.choices[0].text == expected("time", N_TOKENS)[1]
    assert answer.usage.prompt_tokens == 4
    assert longest.usage.prompt_tokens == 20


@pytest.mark.parametrize(
    ("arguments", "message", "param", "code"),
    [
        ({"prompt": "x" * 90, "max_tokens": LIMIT}, "got a prompt of 90", "prompt", True),
        ({"prompt": [VOCABULARY]}, f"token ids from 0 to {VOCABULARY - 1}, got", "prompt", None),
        ({"stop_token_ids": [-1]}, "expected token ids from 0", "stop_token_ids", None),
        ({"logit_bias": {"x": 1}}, "expected token ids as keys, got 'x'", "logit_bias", None),
        ({"logit_bias": {"999": 1}}, "expected token ids from 0", "logit_bias", None),
        ({"n": 9}, "n: expected 1 to 8, got 9", None, None),
        ({"prompt": ""}, "at least one token, got none", None, None),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, dict) else "",
)
def test_request_that_cannot_be_answered_is_a_400(
    arguments: Any, message: str, param: str | None, code: bool | None, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as info:
        ask(client, **arguments)

    assert info.value.param == param
    assert info.value.code == ("context_length_exceeded" if code else info.value.code)


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
    ],
)
def test_form_that_there_is_not_is_refused(arguments: Any, param: str, server: int) -> None:
    body = {"model": "toy", "prompt": "x", **arguments}

    answer = request(server, "POST", "/v1/completions", body)

    assert answer.status == 400
    assert answer.json()["error"]["param"] == param


def test_text_has_the_form_that_is_wanted(client: openai.OpenAI) -> None:
    answer = ask(client, structured_outputs={"regex": "[a-c]{4}"})

    choice = answer.choices[0]
    assert (len(choice.text), choice.finish_reason) == (4, "stop")
    assert set(choice.text) <= set("abc")


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_goes_away_frees_the_engine(
    stream: bool, server: int, model: HuggingfaceGenerativeModel
) -> None:
    engine = model._engine
    body = orjson.dumps(
        {"model": "toy", "prompt": "x", "max_tokens": LIMIT - 1, "ignore_eos": True}
        | {"stream": stream}
    )
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server)) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: engine.stats().n_running == 1)
        if stream:
            assert connection.recv(1)

    wait_for(lambda: engine.stats().n_running == 0)
    # It was far from done: a token takes a step.
    assert engine.stats().kv_used_bytes == 0


def test_request_beyond_the_queue_gets_429(
    client: openai.OpenAI, model: HuggingfaceGenerativeModel
) -> None:
    with pytest.raises(openai.RateLimitError, match="--max_waiting_requests") as info:
        ask(client, prompt=["x"] * 40, n=8, max_tokens=1000, ignore_eos=True)

    assert info.value.response.headers["retry-after"] == "1"
    # Those prompts that had been taken are given up.
    wait_for(lambda: model._engine.stats().n_running == model._engine.stats().n_waiting == 0)


def test_metrics_count_tokens_and_requests(client: openai.OpenAI, server: int) -> None:
    def values() -> dict[str, float]:
        lines = request(server, "GET", "/metrics").body.decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("hfserver_")]
        return {name: float(value) for name, value in pairs}

    ask(client, max_tokens=1)
    before = values()
    ask(client, max_tokens=6, cache_salt="metrics")
    after = values()
    ask(client, prompt="y" * 80, cache_salt="metrics")
    known = values()
    ask(client, prompt="y" * 80, cache_salt="metrics")

    def grown(name: str, **labels: str) -> float:
        listing = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        key = f"hfserver_{name}{{{listing}}}"
        return after[key] - before.get(key, 0)

    toy = {"model_name": "toy"}
    assert grown("prompt_tokens_total", **toy) == len(PROMPT)
    assert grown("generation_tokens_total", **toy) == 6
    assert grown("time_to_first_token_seconds_count", **toy) == 1
    assert grown("inter_token_latency_seconds_count", **toy) == 5
    assert grown("e2e_request_latency_seconds_count", **toy) == 1
    assert grown("request_queue_time_seconds_count", **toy) == 1
    assert grown("prefix_cache_queries_total", **toy) == len(PROMPT)
    assert grown("requests_finished_total", finished_reason="length", **toy) == 1
    assert after['hfserver_num_requests_waiting{model_name="toy"}'] == 0
    hits = 'hfserver_prefix_cache_hits_total{model_name="toy"}'
    assert values()[hits] - known[hits] == 64


def test_engine_that_fails_takes_the_server_out_of_life(directory: Path) -> None:
    model = make_model(directory, "other")
    with serving([model]) as server:
        assert request(server, "GET", "/v2/health/live").status == 200

        def run(chunks: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        model._engine._executor.run = run  # type: ignore[method-assign]
        body = {"model": "other", "prompt": "x"}
        answer = request(server, "POST", "/v1/completions", body)

        assert answer.status == 503
        assert request(server, "GET", "/v2/health/live").status == 503
        assert request(server, "POST", "/v1/completions", body).status == 503


def test_model_that_is_stopped_has_no_metrics(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(directory, "other")
    with caplog.at_level("INFO", logger="kserve"):
        model.load()
    assert "Model other: executor ragged on cpu, context 50000 tokens, KV cache" in caplog.text

    model.stop()

    assert not model.ready
    assert not model._engine._thread.is_alive()


def test_step_that_hangs_takes_the_server_out_of_life(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(directory, "other")
    model._hang_timeout_s = 0.3
    go_on = threading.Event()
    with serving([model]) as server:

        def status() -> int:
            return request(server, "GET", "/v2/health/live").status

        run = model._engine._executor.run

        def hang(chunks: Any) -> Any:
            go_on.wait(20)
            return run(chunks)

        model._engine._executor.run = hang  # type: ignore[method-assign]
        body = b'{"prompt":"x","max_tokens":2}'
        with socket.create_connection(("127.0.0.1", server)) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            wait_for(lambda: status() == 503)
            refused = request(server, "POST", "/v1/completions", body)
            go_on.set()
            wait_for(lambda: status() == 200)

    assert refused.status == 503
    assert "go_on.wait(20)" in caplog.text
