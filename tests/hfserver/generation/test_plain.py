"""Texts over V1, V2, gRPC and `generate`, and tokens: by Triton's client and by hand."""

import queue
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.hfserver.chat.tiny_chat import CHATML
from tests.hfserver.generation.tiny_generators import (
    expected,
    llama,
    make_model,
    save,
    tokenizer,
    wait_for,
)
from tritonclient.utils import InferenceServerException

from hfserver.generation.model import HuggingfaceGenerativeModel
from kserve.testing import Ports, Response, request, serving_ports

PROMPTS = ("Once upon a time", "The sea")
N_TOKENS = 9
GREEDY = {"temperature": 0, "max_tokens": N_TOKENS}
RECEIVE_S = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HuggingfaceGenerativeModel:
    directory = save(tmp_path_factory.mktemp("llama"), llama())
    (directory / "chat_template.jinja").write_text(CHATML)
    return make_model(directory)


@pytest.fixture(scope="module")
def ports(model: HuggingfaceGenerativeModel) -> Iterator[Ports]:
    with serving_ports([model]) as ports:
        yield ports


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [expected(prompt, N_TOKENS)[1] for prompt in PROMPTS]


def post(ports: Ports, path: str, body: Any) -> Response:
    return request(ports.http, "POST", path, orjson.dumps(body))


def predict(ports: Ports, **body: Any) -> Response:
    return post(ports, "/v1/models/toy:predict", body)


def triton_input(client: Any, prompts: Any) -> Any:
    given = client.InferInput("anything", [len(prompts)], "BYTES")
    given.set_data_from_numpy(np.array([prompt.encode() for prompt in prompts], np.object_))
    return given


def test_v1_continues_each_text(ports: Ports, texts: list[str]) -> None:
    instances = [PROMPTS[0], {"text": PROMPTS[1]}]

    answer = predict(ports, instances=instances, parameters=GREEDY)

    assert (answer.status, answer.json()) == (200, {"predictions": texts})


def test_answer_without_a_limit_is_longer_than_16_tokens(ports: Ports) -> None:
    # As completions have it by default.
    text = expected("a", 40)[1]
    stop = text[-3:]
    assert text.index(stop) > 16

    body = {"text_input": "a", "parameters": {"temperature": 0, "stop": stop}}
    answer = post(ports, "/v2/models/toy/generate", body).json()

    assert answer["text_output"] == text[: text.index(stop)]
    assert answer["details"]["finish_reason"] == "stop"
    assert answer["details"]["stop_reason"] == stop


def test_v2_continues_each_text_by_tritons_client(ports: Ports, texts: list[str]) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{ports.http}") as client:
        answer = client.infer(
            "toy", [triton_input(tritonclient.http, PROMPTS)], request_id="7", parameters=GREEDY
        )
        metadata = client.get_model_metadata("toy")

    assert [text.decode() for text in answer.as_numpy("output-0")] == texts
    assert answer.get_response()["id"] == "7"
    assert metadata["platform"] == "huggingface"
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert metadata["outputs"] == [{"name": "output-0", "datatype": "BYTES", "shape": [-1]}]


def test_no_texts_are_no_answers(ports: Ports) -> None:
    assert predict(ports, instances=[]).json() == {"predictions": []}
    empty = {"name": "text", "shape": [0], "datatype": "BYTES", "data": []}
    assert post(ports, "/v2/models/toy/infer", {"inputs": [empty]}).json()["outputs"] == [
        {"name": "output-0", "shape": [0], "datatype": "BYTES", "parameters": None, "data": []}
    ]


@pytest.mark.parametrize(
    "parameters",
    [
        {"stop": "e", **GREEDY},
        {"stop": '["e", "Q"]', **GREEDY},
        {"temperature": "0", "max_tokens": "9", "stop": "e"},
        {**GREEDY, "stop": "e", "sequence_id": 5, "binary_data_output": False, "timeout": 9},
    ],
    ids=["text", "list as a text", "numbers as texts", "of the protocol"],
)
def test_parameters_of_v2_are_scalars(ports: Ports, parameters: dict[str, Any]) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["q"]}
    whole = expected("q", N_TOKENS)[1]
    stop = min((char for char in "eQ" if char in whole), key=whole.index, default=None)

    answer = post(
        ports, "/v2/models/toy/infer", {"inputs": [tensor], "parameters": parameters}
    ).json()

    assert answer["outputs"][0]["data"] == [whole.split(stop)[0] if stop == "e" else whole]


def test_structure_may_be_json_in_a_text(ports: Ports) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["q"]}
    parameters = {"structured_outputs": '{"choice": ["yes"]}', "seed": 1}

    answer = post(ports, "/v2/models/toy/infer", {"inputs": [tensor], "parameters": parameters})

    assert answer.json()["outputs"][0]["data"] == ["yes"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"instances": ["a"], "parameters": {"max_new_tokens": 5}}, "got max_new_tokens"),
        ({"instances": [], "parameters": {"n": 5}}, "got n"),
        ({"instances": ["a"], "parameters": {"top_p": 2}}, "'top_p': expected a number <= 1"),
        ({"instances": ["a"], "parameters": {"max_tokens": 99999}}, "context has 50000 tokens"),
        ({"instances": [["a", "b"]]}, """instances[0]: expected a text, or {"text": ...}, got"""),
        ({"instances": [""]}, "expected a prompt of at least one token"),
        ({"text": "a"}, 'Expected "instances" or "inputs" in a JSON object'),
    ],
)
def test_v1_says_what_is_wrong(ports: Ports, body: Any, reason: str) -> None:
    answer = predict(ports, **body)

    assert answer.status == 400
    assert reason in answer.json()["error"]


def test_v2_says_what_is_wrong(ports: Ports) -> None:
    tensor = {"name": "a", "shape": [1], "datatype": "INT64", "data": [1]}
    pairs = {"name": "a", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "b"]}
    for inputs, reason in (
        ([tensor], "input 'a': expected datatype BYTES, got INT64"),
        ([pairs], "input 'a': expected shape [-1], got [1, 2]"),
        ([pairs, {**pairs, "name": "b"}], "expected one input, got 2: 'a', 'b'"),
    ):
        answer = post(ports, "/v2/models/toy/infer", {"inputs": inputs})
        assert (answer.status, answer.json()["error"]) == (400, reason)


def test_generate_gives_a_text_and_how_it_ended(ports: Ports, texts: list[str]) -> None:
    body = {"id": "7", "text_input": PROMPTS[0], "parameters": GREEDY}

    answer = post(ports, "/v2/models/toy/generate", body)

    details = {"finish_reason": "length", "prompt_tokens": 16, "completion_tokens": N_TOKENS}
    assert (answer.status, answer.json()) == (
        200,
        {"id": "7", "model_name": "toy", "text_output": texts[0], "details": details},
    )


def test_generate_stream_gives_pieces(ports: Ports, texts: list[str]) -> None:
    body = {"text_input": PROMPTS[0], **GREEDY, "stop": ["Q", "\n"]}

    answer = post(ports, "/v2/models/toy/generate_stream", body)

    events = [orjson.loads(line[6:]) for line in answer.body.split(b"\n\n")[:-1]]
    assert len(events) > 3
    assert "".join(event["text_output"] for event in events) == texts[0]
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["details"]["completion_tokens"] == N_TOKENS


def test_generate_stream_refuses_with_a_status(ports: Ports) -> None:
    body = {"text_input": "a", "parameters": {"heat": 0}}

    answer = post(ports, "/v2/models/toy/generate_stream", body)

    assert answer.status == 400
    assert answer.json()["error"].endswith("got heat")


def test_grpc_gives_a_text_at_once_or_as_it_is_made(ports: Ports, texts: list[str]) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    given = [triton_input(tritonclient.grpc, PROMPTS)]
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        whole = client.infer("toy", given, parameters=GREEDY)
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer("toy", given, parameters=GREEDY, enable_empty_final_response=True)
        pieces = []
        while True:
            answer = answers.get(timeout=RECEIVE_S)
            assert not isinstance(answer, InferenceServerException), answer
            if answer.get_response().parameters["triton_final_response"].bool_param:
                break
            pieces.append(answer)
        client.stop_stream()

    assert [text.decode() for text in whole.as_numpy("output-0")] == texts
    assert len(pieces) > N_TOKENS
    for row, text in enumerate(texts):
        joined = [piece.as_numpy("output-0")[row].decode() for piece in pieces]
        assert "".join(joined) == text
        reasons = [piece.as_numpy("finish_reason")[row].decode() for piece in pieces]
        assert [reason for reason in reasons if reason] == ["length"]


def test_client_of_any_wire_that_goes_away_frees_the_engine(
    model: HuggingfaceGenerativeModel, ports: Ports
) -> None:
    engine = model._engine
    endless = {"max_tokens": 40_000, "ignore_eos": True}
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    bodies = {
        "/v1/models/toy:predict": {"instances": ["a", "b"], "parameters": endless},
        "/v2/models/toy/infer": {"inputs": [tensor], "parameters": endless},
        "/v2/models/toy/generate": {"text_input": "a", **endless},
        "/v2/models/toy/generate_stream": {"text_input": "a", **endless},
    }
    for path, document in bodies.items():
        body = orjson.dumps(document)
        with socket.create_connection(("127.0.0.1", ports.http)) as client:
            client.sendall(
                b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
                % (path.encode(), len(body), body)
            )
            wait_for(lambda: engine.stats().n_running > 0)
        wait_for(lambda: engine.stats().n_running == 0)

    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as triton:
        triton.start_stream(lambda result, error: None)
        triton.async_stream_infer("toy", [triton_input(tritonclient.grpc, "a")], parameters=endless)
        wait_for(lambda: engine.stats().n_running > 0)
        triton.stop_stream(cancel_requests=True)
    wait_for(lambda: engine.stats().n_running == 0)


def test_tokens_of_a_text_and_back(ports: Ports) -> None:
    body = {"prompt": "Was für ein Tag", "return_token_strs": True}

    answer = post(ports, "/tokenize", body).json()

    ids = tokenizer()("Was für ein Tag").input_ids
    assert (answer["tokens"], answer["count"]) == (ids, len(ids))
    assert answer["max_model_len"] == 50_000
    assert answer["token_strs"] == tokenizer().convert_ids_to_tokens(ids)
    back = post(ports, "/detokenize", {"tokens": answer["tokens"]}).json()
    assert back == {"prompt": "Was für ein Tag"}


def test_tokens_of_a_chat_are_those_of_its_prompt(ports: Ports) -> None:
    chat = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "chat_template_kwargs": {"enable_thinking": False},
    }

    tokens = post(ports, "/tokenize", chat).json()["tokens"]

    text = post(ports, "/detokenize", {"tokens": tokens}).json()["prompt"]
    assert '"name": "f"' in text
    assert text.endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    asked = {**chat, "max_tokens": 1, "return_token_ids": True}
    assert post(ports, "/v1/chat/completions", asked).json()["prompt_token_ids"] == tokens
    without = post(ports, "/tokenize", {**chat, "add_generation_prompt": False}).json()["tokens"]
    assert len(without) < len(tokens)


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/tokenize", {}, "expected either 'prompt' or 'messages', got neither"),
        ("/tokenize", {"prompt": "a", "messages": []}, "got both"),
        (
            "/tokenize",
            {
                "messages": [{"role": "assistant", "content": "a"}],
                "continue_final_message": True,
            },
            "'continue_final_message' and 'add_generation_prompt' cannot both be true",
        ),
        ("/detokenize", {"tokens": [999]}, "'tokens': expected token ids from 0 to 257, got 999"),
    ],
)
def test_wrong_questions_for_tokens(ports: Ports, path: str, body: Any, reason: str) -> None:
    answer = post(ports, path, body)

    assert answer.status == 400
    assert reason in answer.json()["error"]["message"]


def test_the_list_of_models_has_the_context(ports: Ports) -> None:
    card = request(ports.http, "GET", "/openai/v1/models/toy").json()

    assert (card["id"], card["max_model_len"]) == ("toy", 50_000)


def test_parameter_that_is_null_has_not_been_sent(ports: Ports) -> None:
    parameters = {"max_tokens": 3, "min_tokens": None, "stop": None, "add_special_tokens": None}

    answer = predict(ports, instances=["a"], parameters={**parameters, "temperature": 0})

    assert (answer.status, answer.json()) == (200, {"predictions": [expected("a", 3)[1]]})


class Stream:
    """A stream of Triton's client: what it gives, by `next`."""

    def __init__(self, ports: Ports) -> None:
        self._client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}")
        self._answers: queue.Queue[Any] = queue.Queue()

    def __enter__(self) -> "Stream":
        self._client.start_stream(lambda result, error: self._answers.put(error or result))
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream()
        self._client.close()

    def ask(self, prompts: Any, **parameters: Any) -> None:
        given = [triton_input(tritonclient.grpc, prompts)]
        self._client.async_stream_infer("toy", given, parameters=parameters)

    def next(self) -> Any:
        return self._answers.get(timeout=RECEIVE_S)

    def next_error(self) -> str:
        while not isinstance(answer := self.next(), InferenceServerException):
            pass
        return str(answer.message())


def test_model_that_fails_amid_a_stream_ends_it_with_an_error(
    model: HuggingfaceGenerativeModel, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = model._engine._executor
    run, calls = executor.run, iter(range(1000))

    def fail_at_last(chunks: Any) -> Any:
        if next(calls) >= 5:
            raise RuntimeError("out of order")
        return run(chunks)

    # Letters, of which each token is one: nothing is held back.
    letters = {"ignore_eos": True, "logit_bias": '{"65": 100}'}
    monkeypatch.setattr(executor, "run", fail_at_last)
    answer = post(ports, "/v2/models/toy/generate_stream", {"text_input": "a", **letters})
    calls = iter(range(1000))
    with Stream(ports) as stream:
        stream.ask(["a"], **letters)
        assert stream.next().as_numpy("output-0").shape == (1,)
        error = stream.next_error()
        # The stream goes on for another request.
        monkeypatch.undo()
        stream.ask(["a"], **GREEDY)
        assert stream.next().as_numpy("output-0").shape == (1,)

    *events, last = answer.body.split(b"\n\n")[:-1]
    assert answer.status == 200
    assert [orjson.loads(event[6:])["text_output"] for event in events] == ["A"] * 5
    assert last == b'data: {"error":"Internal server error"}'
    assert error == "Internal server error"
    assert model.ready


def test_texts_beyond_the_queue_get_429(model: HuggingfaceGenerativeModel, ports: Ports) -> None:
    texts = ["a"] * 2000
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    for path, body in (
        ("/v1/models/toy:predict", {"instances": texts}),
        ("/v2/models/toy/infer", {"inputs": [tensor]}),
    ):
        answer = post(ports, path, {**body, "parameters": {"max_tokens": 1000}})
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert "--max_waiting_requests" in answer.json()["error"]
    with Stream(ports) as stream:
        stream.ask(texts, max_tokens=1000)
        assert "--max_waiting_requests" in stream.next_error()
    # Those that had been taken are given up.
    wait_for(lambda: model._engine.stats().n_running == model._engine.stats().n_waiting == 0)


def test_unary_call_that_is_cancelled_frees_the_engine(
    model: HuggingfaceGenerativeModel, ports: Ports
) -> None:
    engine = model._engine
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        call = client.async_infer(
            "toy",
            [triton_input(tritonclient.grpc, ["a", "b"])],
            lambda result, error: None,
            parameters={"max_tokens": 40_000, "ignore_eos": True},
        )
        wait_for(lambda: engine.stats().n_running == 2)
        call.cancel()
        wait_for(lambda: engine.stats().n_running == 0)
