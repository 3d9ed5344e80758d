"""Events of streamed chats and completions, to the letter, as they go over the wire."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pytest
import torch
from tests.hfserver.chat.test_chats import USER, WEATHER, ScriptedExecutor, make_model, save
from tests.hfserver.chat.tiny_chat import make_chat_tokenizer

from hfserver.generation import model as model_module
from hfserver.generation.executors.base import Chunk
from kserve.testing import Response, request, serving

pytestmark = pytest.mark.timeout(120)

TEXT = "It is fine."
APIS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": USER},
    "completions": {"prompt": "a", "max_tokens": 50},
}
OBJECTS = {"chat/completions": "chat.completion.chunk", "completions": "text_completion"}
PREFIXES = {"chat/completions": "chatcmpl-", "completions": "cmpl-"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class FailingExecutor(ScriptedExecutor):
    """Fails at a forward.

    Attributes:
        n_left: Forwards until then; None for never.
    """

    name = "failing"
    n_left: int | None = None

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        if self.n_left is not None:
            self.n_left -= 1
            if self.n_left < 0:
                raise RuntimeError("a secret of the device")
        return super().run(chunks)


class Server:
    """A server of the scripted model."""

    def __init__(self, port: int, executor: FailingExecutor) -> None:
        self.port, self.executor = port, executor
        self.writes(TEXT)

    def writes(self, text: str) -> None:
        self.executor.script = make_chat_tokenizer().encode(text, add_special_tokens=False)

    def ask(self, api: str, **more: Any) -> Response:
        body = {"model": "toy", "temperature": 0, "stream": True, **APIS[api], **more}
        return request(self.port, "POST", f"/v1/{api}", body)

    def chunks(self, api: str, **more: Any) -> list[Any]:
        """Give the chunks of a stream, all of whose bytes are as they must be."""
        answer = self.ask(api, **more)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        *events, done, end = answer.body.split(b"\n\n")
        assert (done, end) == (b"data: [DONE]", b"")
        for event in events:
            assert event.startswith(b"data: {") and b"\n" not in event
        return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    executors: list[FailingExecutor] = []

    def choose(model: Any) -> FailingExecutor:
        executors.append(FailingExecutor(model))
        return executors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "choose_executor", choose)
        with serving([make_model(save(tmp_path_factory.mktemp("framing")))]) as port:
            yield Server(port, executors[-1])


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    yield running
    running.executor.n_left = None
    running.writes(TEXT)


def texts(choices: Sequence[Any], n: int) -> list[str]:
    found = [""] * n
    for choice in choices:
        text = choice.get("text") or choice.get("delta", {}).get("content") or ""
        found[choice["index"]] += text
    return found


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("api", APIS)
def test_each_choice_begins_once_and_ends_once(api: str, n: int, server: Server) -> None:
    chunks = server.chunks(api, n=n, stream_options={"include_usage": True})

    heads = {(each["id"], each["created"], each["model"], each["object"]) for each in chunks}
    ((name, created, model, kind),) = heads
    assert name.startswith(PREFIXES[api])
    assert (type(created), model, kind) == (int, "toy", OBJECTS[api])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert texts(choices, n) == [TEXT] * n
    for index in range(n):
        own = [choice for choice in choices if choice["index"] == index]
        reasons = [choice["finish_reason"] for choice in own]
        assert reasons == [None] * (len(own) - 1) + ["stop"]
        if api == "chat/completions":
            assert own[0]["delta"] == {"role": "assistant", "content": ""}
            assert not any("role" in choice["delta"] for choice in own[1:])
            assert own[-1]["delta"] == {}


@pytest.mark.parametrize("api", APIS)
def test_the_usage_is_in_a_chunk_of_its_own_before_the_end(api: str, server: Server) -> None:
    *before, last = server.chunks(api, stream_options={"include_usage": True})
    without = server.chunks(api)

    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in before)
    assert last["choices"] == []
    usage = last["usage"]
    # The end of the text is a token too.
    assert usage["completion_tokens"] == len(server.executor.script) + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert not any("usage" in chunk for chunk in without)
    assert len(without) == len(before)


@pytest.mark.parametrize("api", APIS)
def test_usage_so_far_may_be_in_each_chunk(api: str, server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    counts = [
        chunk["usage"]["completion_tokens"] for chunk in server.chunks(api, stream_options=options)
    ]

    assert counts == sorted(counts)
    assert counts[-1] == len(server.executor.script) + 1


def test_a_call_comes_with_its_name_first(server: Server) -> None:
    server.writes(CALL)

    chunks = server.chunks("chat/completions", tools=[WEATHER])

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert (calls[0]["index"], calls[0]["type"]) == (0, "function")
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city":"Paris"}'
    assert not any("id" in call for call in calls[1:])
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("api", APIS)
def test_a_failure_midway_is_an_event_and_the_end(api: str, server: Server) -> None:
    server.executor.n_left = 2

    *chunks, failure = server.chunks(api)

    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    assert chunks
    error = failure["error"]
    assert set(failure) == {"error"}
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in error["message"]


@pytest.mark.parametrize("api", APIS)
def test_what_is_wrong_before_the_first_event_is_a_status(api: str, server: Server) -> None:
    answer = server.ask(api, max_tokens=2000)

    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    param = "messages" if api == "chat/completions" else "prompt"
    assert answer.json()["error"]["param"] == param
