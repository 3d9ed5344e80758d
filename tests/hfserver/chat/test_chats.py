"""Chats over the wire, by OpenAI's own clients, of a model that writes what a script says."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import openai
import orjson
import pytest
import torch
from tests.hfserver.chat.test_grammar import SCHEMA
from tests.hfserver.chat.tiny_chat import CHATML, make_chat_tokenizer
from tests.hfserver.generation.tiny_generators import llama

from hfserver.chat.options import ChatOptions
from hfserver.checkpoint import open_directory
from hfserver.detect import Task
from hfserver.generation import model as model_module
from hfserver.generation.executors.base import Chunk, Executor
from hfserver.generation.model import HuggingfaceGenerativeModel
from hfserver.generation.options import GenerationOptions
from hfserver.loading import LoadOptions
from kserve.errors import ModelLoadError
from kserve.testing import request as send
from kserve.testing import serving

pytestmark = pytest.mark.timeout(120)

EOS = 3
USER: list[Any] = [{"role": "user", "content": "What is it like?"}]
PROMPT = "<|im_start|>user\nWhat is it like?<|im_end|>\n<|im_start|>assistant\n"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class ScriptedExecutor(Executor):
    """Gives logits that make a sequence the script, wherever they are not masked.

    Attributes:
        script: The tokens, and then the end.
        prompts: The prompts that it has read.
    """

    name = "scripted"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.script: list[int] = []
        self.prompts: list[list[int]] = []
        self.hold = threading.Event()
        self.hold.set()

    def kv_bytes(self, n_tokens: int, n_prompt_tokens: int) -> int:
        return n_tokens

    def open(self, n_tokens: int, prompt_ids: Sequence[int]) -> Any:
        self.prompts.append(list(prompt_ids))
        return {"n_prompt": len(prompt_ids), "n": 0}

    def fork(self, state: Any) -> Any:
        return dict(state)

    def recover(self, state: Any, n_tokens: int) -> int:
        return n_tokens

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        self.n_forwards += 1
        self.hold.wait(30)
        return [self._logits(chunk) for chunk in chunks]

    def _logits(self, chunk: Chunk) -> torch.Tensor:
        chunk.state["n"] += len(chunk.token_ids)
        rows = []
        for back in range(chunk.n_logits - 1, -1, -1):
            place = chunk.state["n"] - back - chunk.state["n_prompt"]
            row = torch.zeros(self.model.config.vocab_size)
            row[self.script[place] if 0 <= place < len(self.script) else EOS] = 60.0
            rows.append(row)
        return torch.stack(rows) if rows else torch.zeros(0, self.model.config.vocab_size)


def save(directory: Path, **kwargs: Any) -> Path:
    tokenizer = make_chat_tokenizer(**kwargs)
    model = llama(vocab_size=len(tokenizer) + 12, bos_token_id=0, eos_token_id=[EOS, 1])
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_model(directory: Path, **chat: Any) -> HuggingfaceGenerativeModel:
    return HuggingfaceGenerativeModel(
        "toy",
        open_directory(directory),
        options=LoadOptions(max_length=2000),
        generation=GenerationOptions(kv_cache_bytes=1 << 30, max_num_seqs=32),
        task=Task.TEXT_GENERATION,
        chat=ChatOptions(**chat),
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("chat"))


class Scripted:
    """A server of the scripted model, and its clients."""

    def __init__(self, port: int, executor: ScriptedExecutor) -> None:
        self.port = port
        self.executor = executor
        self.tokenizer = make_chat_tokenizer()
        self.client = client_of(port)

    def writes(self, text: str) -> None:
        """Let the model write a text."""
        self.executor.script = self.tokenizer.encode(text, add_special_tokens=False)

    def ask(self, **arguments: Any) -> Any:
        known = {"messages": USER, "temperature": 0, **arguments}
        return self.client.chat.completions.create(model="toy", **known)

    @property
    def prompt(self) -> str:
        """The last prompt that the model has read."""
        return str(self.tokenizer.decode(self.executor.prompts[-1]))


def client_of(port: int) -> openai.OpenAI:
    url = f"http://127.0.0.1:{port}/openai/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Scripted]:
    executors: list[ScriptedExecutor] = []

    def choose(model: Any) -> ScriptedExecutor:
        executors.append(ScriptedExecutor(model))
        return executors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "choose_executor", choose)
        with serving([make_model(directory)]) as port:
            scripted = Scripted(port, executors[-1])
            with scripted.client:
                yield scripted


def test_answers_with_what_the_model_writes(server: Scripted) -> None:
    server.writes("It is fine.")

    answer = server.ask()

    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "It is fine.")
    assert (choice.finish_reason, choice.index, choice.message.tool_calls) == ("stop", 0, None)
    assert (answer.object, answer.model) == ("chat.completion", "toy")
    assert server.prompt == PROMPT
    assert answer.usage.prompt_tokens == len(server.executor.prompts[-1])
    assert answer.usage.completion_tokens == len(server.executor.script) + 1


def test_streams_events_to_the_letter(server: Scripted) -> None:
    server.writes("It is fine.")
    body = {
        "model": "toy",
        "messages": USER,
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    answer = send(server.port, "POST", "/v1/chat/completions", body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == (
        "It is fine."
    )
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert (chunks[-1]["choices"], chunks[-2]["usage"]) == ([], None)
    assert chunks[-1]["usage"]["completion_tokens"] == len(server.executor.script) + 1


def test_thoughts_are_apart(server: Scripted) -> None:
    server.writes("<think>\nHm.\n</think>\n\nFine.")

    message = server.ask().choices[0].message
    chunks = list(server.ask(stream=True))

    assert (message.reasoning_content, message.content) == ("Hm.", "Fine.")
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "Hm."
    assert "".join(delta.content or "" for delta in deltas) == "Fine."


def test_calls_are_given_as_such(server: Scripted) -> None:
    server.writes(f"I look.\n{CALL}\n{CALL}")

    choice = server.ask(tools=[WEATHER, NOW]).choices[0]

    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    calls = choice.message.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "weather", '{"city":"Paris"}')
    ] * 2
    assert len({call.id for call in calls}) == 2
    assert "<tools>" in server.prompt


def test_calls_are_streamed(server: Scripted) -> None:
    server.writes(f"I look.\n{CALL}\n{CALL}")

    with server.client.chat.completions.stream(
        model="toy", messages=USER, tools=[WEATHER], temperature=0
    ) as stream:
        message = stream.get_final_completion().choices[0].message

    assert message.content == "I look."
    assert message.tool_calls is not None
    assert [call.function.arguments for call in message.tool_calls] == ['{"city":"Paris"}'] * 2


def test_one_call_is_given_where_no_more_are_wanted(server: Scripted) -> None:
    server.writes(CALL + CALL)

    message = server.ask(tools=[WEATHER], parallel_tool_calls=False).choices[0].message

    assert len(message.tool_calls) == 1


def test_a_call_that_is_cut_off_is_text(server: Scripted) -> None:
    server.writes(CALL)

    choice = server.ask(tools=[WEATHER], max_tokens=9).choices[0]

    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert CALL.startswith(choice.message.content)


def test_without_tools_their_tags_are_text(server: Scripted) -> None:
    server.writes(CALL)

    choice = server.ask(tools=[WEATHER], tool_choice="none").choices[0]

    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
    assert "<tools>" not in server.prompt


def test_an_answer_to_a_call_reaches_the_model(server: Scripted) -> None:
    server.writes(CALL)
    first = server.ask(tools=[WEATHER]).choices[0].message
    server.writes("Fine.")

    server.ask(
        tools=[WEATHER],
        messages=[
            *USER,
            first.to_dict(),
            {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Sun <|im_end|>"},
        ],
    )

    assert '{"name": "weather", "arguments": {"city": "Paris"}}' in server.prompt
    assert "<|im_start|>tool\nSun <|im_end|><|im_end|>" in server.prompt
    # Of system, user, assistant and tool.
    assert server.executor.prompts[-1].count(EOS) == 4


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "now"}),
        ({"type": "function", "function": {"name": "now"}}, {"now"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            {"weather"},
        ),
    ],
    ids=["required", "named", "allowed"],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_model_that_would_not_has_to_call(
    choice: Any, names: set[str], is_streamed: bool, server: Scripted
) -> None:
    server.writes("I would rather not.")

    answer = server.ask(
        tools=[WEATHER, NOW], tool_choice=choice, parallel_tool_calls=False, stream=is_streamed
    )

    if is_streamed:
        chunks = list(answer)
        deltas = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
        assert deltas[0].function.name in names
        orjson.loads("".join(delta.function.arguments for delta in deltas))
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
    else:
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name in names
        assert answer.choices[0].finish_reason == "tool_calls"


def test_the_model_thinks_before_it_has_to_call(server: Scripted) -> None:
    server.writes(f"<think>Hm.</think>{CALL}")

    message = server.ask(tools=[WEATHER], tool_choice="required").choices[0].message

    assert message.reasoning_content == "Hm."
    assert message.tool_calls[0].function.arguments == '{"city":"Paris"}'


def test_a_model_may_call_or_answer_in_a_form(server: Scripted) -> None:
    form = {"type": "json_object"}
    server.writes(CALL)
    called = server.ask(tools=[WEATHER], response_format=form).choices[0]
    server.writes('{"a":1}')
    answered = server.ask(tools=[WEATHER], response_format=form).choices[0]

    assert called.finish_reason == "tool_calls"
    assert (answered.finish_reason, answered.message.content) == ("stop", '{"a":1}')


def test_continues_the_last_message(server: Scripted) -> None:
    server.writes(" fine.")
    extra = {"add_generation_prompt": False, "continue_final_message": True}
    messages = [*USER, {"role": "assistant", "content": "It is"}]

    answer = server.ask(messages=messages, extra_body=extra)
    echoed = server.ask(messages=messages, extra_body={**extra, "echo": True})

    assert answer.choices[0].message.content == " fine."
    assert echoed.choices[0].message.content == "It is fine."
    assert server.prompt.endswith("<|im_start|>assistant\nIt is")


def test_variables_reach_the_template(server: Scripted) -> None:
    server.writes("Fine.")

    server.ask(extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    by_variable = server.prompt
    server.ask(reasoning_effort="none")

    assert by_variable.endswith("<think>\n\n</think>\n\n")
    assert server.prompt == by_variable


def test_many_answers_with_log_probabilities(server: Scripted) -> None:
    server.writes("It is")

    answer = server.ask(n=2, logprobs=True, top_logprobs=2)

    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        content = choice.logprobs.content
        assert "".join(each.token for each in content).startswith("It is")
        assert all(len(each.top_logprobs) == 2 for each in content)
        assert content[0].bytes == list(content[0].token.encode())


def test_stop_texts_end_the_answer(server: Scripted) -> None:
    server.writes("It is fine. Or not.")

    choice = server.ask(stop=[" Or"]).choices[0]

    assert (choice.message.content, choice.finish_reason) == ("It is fine.", "stop")


@pytest.mark.parametrize("seed", range(20))
def test_completions_have_forms_too(seed: int, directory: Path, server: Scripted) -> None:
    answer = server.client.completions.create(
        model="toy",
        prompt="a",
        seed=seed,
        temperature=100.0,
        max_tokens=400,
        extra_body={"structured_outputs": {"regex": "[a-f]{3,9}"}},
    )

    assert 3 <= len(answer.choices[0].text) <= 9
    assert set(answer.choices[0].text) <= set("abcdef")


@pytest.mark.parametrize(
    ("arguments", "param", "code", "text"),
    [
        pytest.param(
            {"messages": [{"role": "user", "content": "word " * 3000}]},
            "messages",
            "context_length_exceeded",
            "this model's context has 2000 tokens",
            id="too long",
        ),
        pytest.param({"max_tokens": 2000}, "messages", "context_length_exceeded", "2000", id="max"),
        pytest.param(
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "object", "not": {}}},
                }
            },
            "response_format.json_schema.schema",
            "unsupported_schema",
            'Unimplemented keys: ["not"]',
            id="schema",
        ),
        pytest.param(
            {
                "tools": [WEATHER],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "response_format",
            None,
            "an answer cannot be calls and of another form",
            id="two forms",
        ),
        pytest.param(
            {"tools": [WEATHER], "extra_body": {"structured_outputs": {"regex": "a"}}},
            "structured_outputs",
            None,
            "an answer cannot be calls and of another form",
            id="calls and form",
        ),
        pytest.param(
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "x"}},
            },
            "tool_choice",
            None,
            "the name of one of the tools, weather, got 'x'",
            id="unknown",
        ),
        pytest.param(
            {"extra_body": {"chat_template": "{{ 1 }}"}},
            "chat_template",
            "unsupported_parameter",
            "takes no templates from requests",
            id="template",
        ),
        pytest.param(
            {
                "tools": [WEATHER],
                "tool_choice": "required",
                "extra_body": {"ignore_eos": True},
            },
            "ignore_eos",
            None,
            "ends where that does",
            id="ignore_eos",
        ),
        pytest.param({"stop": ["a"] * 65}, "stop", None, "at most 64, got 65", id="stop"),
        pytest.param(
            {"logit_bias": {str(i): 1 for i in range(1025)}},
            "logit_bias",
            None,
            "at most 1024, got 1025",
            id="logit_bias",
        ),
    ],
)
def test_says_what_is_wrong(
    arguments: Any, param: str, code: str | None, text: str, server: Scripted
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.ask(**arguments)

    assert (caught.value.param, caught.value.code) == (param, code)
    assert text in str(caught.value)


def test_a_long_prompt_may_be_cut(server: Scripted) -> None:
    server.writes("Fine.")

    answer = server.ask(extra_body={"truncate_prompt_tokens": 5})

    assert answer.usage.prompt_tokens == 5
    assert PROMPT.endswith(server.prompt)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_goes_away_ends_its_request(is_streamed: bool, server: Scripted) -> None:
    server.writes("word " * 300)
    server.executor.hold.clear()
    before = server.executor.n_forwards
    with client_of(server.port).with_options(timeout=1.0) as client:
        try:
            answer: Any = client.chat.completions.create(
                model="toy", messages=USER, temperature=0, stream=is_streamed
            )
            if is_streamed:
                answer.close()
        except openai.APITimeoutError:
            pass
        finally:
            server.executor.hold.set()
    server.writes("Fine.")

    assert server.ask().choices[0].message.content == "Fine."
    # 300 steps without: the request is gone long before the next one is answered.
    assert server.executor.n_forwards - before < 150


@pytest.fixture(scope="module")
def real(directory: Path) -> Iterator[openai.OpenAI]:
    """A client of a model of chance, without a script."""
    with serving([make_model(directory)]) as port, client_of(port) as client:
        yield client


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_model_of_chance_obeys_a_schema(is_streamed: bool, real: openai.OpenAI) -> None:
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
    }
    tokenizer = make_chat_tokenizer()

    answer: Any = real.chat.completions.create(
        model="toy",
        messages=USER,
        response_format=form,
        # Thoughts of a model of chance have no end.
        reasoning_effort="none",
        # Each of the answers has a seed of its own.
        n=20,
        seed=1,
        temperature=1.0,
        max_tokens=500,
        stream=is_streamed,
        # A number may have any length.
        logit_bias={str(tokenizer.convert_tokens_to_ids(each)): 20 for each in ',}]"'},
    )

    texts, reasons = dict.fromkeys(range(20), ""), dict.fromkeys(range(20), "")
    for part in answer if is_streamed else [answer]:
        for choice in part.choices:
            message = choice.delta if is_streamed else choice.message
            texts[choice.index] += message.content or ""
            reasons[choice.index] += choice.finish_reason or ""
    for text in texts.values():
        jsonschema.validate(orjson.loads(text), SCHEMA)
    assert set(reasons.values()) == {"stop"}
    assert len(set(texts.values())) > 10


def test_a_model_of_chance_calls_where_it_has_to(real: openai.OpenAI) -> None:
    answer = real.chat.completions.create(
        model="toy",
        messages=USER,
        tools=[WEATHER],
        tool_choice="required",
        reasoning_effort="none",
        n=20,
        seed=1,
        temperature=1.0,
        parallel_tool_calls=False,
    )

    for choice in answer.choices:
        calls: Any = choice.message.tool_calls
        jsonschema.validate(
            orjson.loads(calls[0].function.arguments), WEATHER["function"]["parameters"]
        )
        assert (choice.finish_reason, len(calls)) == ("tool_calls", 1)


def test_a_file_may_hold_the_template(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(CHATML, encoding="utf-8")

    model = make_model(directory, chat_template=str(path))
    model.load()
    try:
        assert model._chats.template.text == CHATML
    finally:
        model.stop()


def test_says_that_the_template_is_not_there(directory: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"--chat_template none.jinja: .*No such file"):
        make_model(directory, chat_template="none.jinja").load()
