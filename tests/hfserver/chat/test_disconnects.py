"""A client that goes away frees the engine within two steps, whatever it had asked for."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from tests.hfserver.chat.test_chats import USER, ScriptedExecutor, make_model, save
from tests.hfserver.chat.tiny_chat import make_chat_tokenizer

from hfserver.generation import model as model_module
from hfserver.generation.executors.base import Chunk
from kserve.testing import request, serving

pytestmark = pytest.mark.timeout(120)

PROMPTS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": USER},
    "completions": {"prompt": "What is it like?"},
    "completions of two prompts": {"prompt": ["What is it like?", "And what not?"]},
}


class SteppedExecutor(ScriptedExecutor):
    """Takes a step when the test lets it.

    Attributes:
        permits: A forward takes one; None lets all of them run.
        entered: Has one for each forward that has begun.
    """

    name = "stepped"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.permits: threading.Semaphore | None = None
        self.entered = threading.Semaphore(0)

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        permits = self.permits
        if permits is not None:
            self.entered.release()
            assert permits.acquire(timeout=60)
        return super().run(chunks)


class Stepped:
    """A server of such a model."""

    def __init__(self, port: int, executor: SteppedExecutor, engine: Any) -> None:
        self.port = port
        self.executor = executor
        self.engine = engine
        self.has_cancelled = threading.Event()

    def metric(self, name: str, **labels: str) -> float:
        wanted = f"hfserver_{name}{{" + ",".join(
            f'{key}="{value}"' for key, value in sorted({**labels, "model_name": "toy"}.items())
        )
        lines = request(self.port, "GET", "/metrics").body.decode().splitlines()
        (line,) = (line for line in lines if line.startswith(wanted))
        return float(line.rpartition(" ")[2])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stepped]:
    executors: list[SteppedExecutor] = []

    def choose(model: Any) -> SteppedExecutor:
        executors.append(SteppedExecutor(model))
        return executors[-1]

    directory: Path = save(tmp_path_factory.mktemp("stepped"))
    model = make_model(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "choose_executor", choose)
        with serving([model]) as port:
            engine = model._engine
            stepped = Stepped(port, executors[-1], engine)
            cancel = engine.cancel

            def spy(request_id: str) -> None:
                cancel(request_id)
                stepped.has_cancelled.set()

            patch.setattr(engine, "cancel", spy)
            words = make_chat_tokenizer().encode("word " * 300, add_special_tokens=False)
            stepped.executor.script = words
            yield stepped


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 30
    while not is_so():
        assert time.perf_counter() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_the_engine_is_free_within_two_steps(
    kind: str, is_streamed: bool, n: int, server: Stepped
) -> None:
    executor = server.executor
    executor.permits = permits = threading.Semaphore(0)
    server.has_cancelled.clear()
    n_cancelled = server.metric("requests_finished_total", finished_reason="cancelled")
    body = orjson.dumps(
        {"model": "toy", "n": n, "max_tokens": 200, "temperature": 0, "stream": is_streamed}
        | PROMPTS[kind]
    )
    path = kind.partition(" ")[0]
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        # The prompt and some tokens; it stands in the next step then.
        for _ in range(4):
            assert executor.entered.acquire(timeout=30)
            permits.release()
        assert executor.entered.acquire(timeout=30)
        if is_streamed:
            assert connection.recv(1)
        assert server.metric("num_requests_running") > 0
        before = executor.n_forwards

    assert server.has_cancelled.wait(30)
    # Of several prompts each is a request to the engine.
    n_requests = len(PROMPTS[kind]["prompt"]) if "two" in kind else 1
    wait_for(lambda: sum(isinstance(each, str) for each in server.engine._commands) == n_requests)
    permits.release(100)
    wait_for(lambda: server.engine.stats().n_running == 0)

    # The step in which it stood, and no more than one beside it.
    assert executor.n_forwards - before <= 2
    assert server.engine.stats().kv_used_bytes == 0
    assert server.metric("num_requests_running") == 0
    cancelled = server.metric("requests_finished_total", finished_reason="cancelled")
    assert cancelled == n_cancelled + n_requests
    while executor.entered.acquire(blocking=False):
        pass


def test_the_next_client_is_answered(server: Stepped) -> None:
    server.executor.permits = None

    answer = request(
        server.port, "POST", "/v1/completions", {"model": "toy", "prompt": "x", "max_tokens": 3}
    )

    assert answer.json()["usage"]["completion_tokens"] == 3
