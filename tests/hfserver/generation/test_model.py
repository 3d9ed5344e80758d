"""A served model that writes text: its versions, its time, and the commands of its page."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.grpc
from tests.hfserver.chat.tiny_chat import CHATML
from tests.hfserver.generation.tiny_generators import expected, llama, make_model, save, wait_for
from tritonclient.utils import InferenceServerException

from hfserver.checkpoint import open_directory
from hfserver.detect import Task
from hfserver.generation.model import HuggingfaceGenerativeModel
from hfserver.generation.options import GenerationOptions
from hfserver.loading import LoadOptions
from kserve.config import ServerConfig
from kserve.directory_repository import DirectoryRepository
from kserve.model_server import ModelServer
from kserve.testing import Ports, request, serving_ports

PAGE = (Path(__file__).parents[3] / "packages" / "hfserver" / "README.md").read_text("utf-8")
FORMER_LEN, LATEST_LEN = 64, 128
GREEDY = {"temperature": 0, "max_tokens": 5}


def make(name: str, directory: str) -> HuggingfaceGenerativeModel:
    return HuggingfaceGenerativeModel(
        name,
        open_directory(directory),
        options=LoadOptions(),
        generation=GenerationOptions(kv_cache_bytes=1 << 26),
        task=Task.TEXT_GENERATION,
    )


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """Serve two versions of a model."""
    root = tmp_path_factory.mktemp("models")
    former = llama(max_position_embeddings=FORMER_LEN)
    latest = llama(max_position_embeddings=LATEST_LEN, initializer_range=0.5)
    for version, model in (("1", former), ("2", latest)):
        save(root / "m" / version, model)
        (root / "m" / version / "chat_template.jinja").write_text(CHATML)
    repository = DirectoryRepository(make, str(root), suffixes=("config.json",), max_versions=None)
    repository.load_model("m")
    config = ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0)
    with serving_ports([], ModelServer(registered_models=repository, config=config)) as ports:
        yield ports


def triton_input(*prompts: str) -> list[Any]:
    given = tritonclient.grpc.InferInput("text", [len(prompts)], "BYTES")
    given.set_data_from_numpy(np.array([prompt.encode() for prompt in prompts], np.object_))
    return [given]


def test_each_version_writes_its_own_text(ports: Ports) -> None:
    body = {"text_input": "a", **GREEDY}

    former, latest = (
        request(ports.http, "POST", f"/v2/models/m{path}/generate", body).json()
        for path in ("/versions/1", "")
    )
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        called = client.infer("m", triton_input("a"), model_version="1", parameters=GREEDY)

    assert (former["model_version"], latest["model_version"]) == ("1", "2")
    assert former["text_output"] == expected("a", 5)[1] != latest["text_output"]
    assert called.as_numpy("output-0").tolist() == [former["text_output"].encode()]
    assert called.get_response().model_version == "1"


def test_events_have_the_version_and_the_id_of_the_request(ports: Ports) -> None:
    answer = request(
        ports.http,
        "POST",
        "/v2/models/m/versions/1/generate_stream",
        {"text_input": "a", **GREEDY},
        {"x-request-id": "mine"},
    )

    events = [orjson.loads(event[6:]) for event in answer.body.split(b"\n\n")[:-1]]
    assert answer.headers["x-request-id"] == "mine"
    assert {(event["id"], event["model_version"]) for event in events} == {("mine", "1")}


def test_version_that_is_not_there_is_a_404(ports: Ports) -> None:
    for route in ("generate", "generate_stream"):
        path = f"/v2/models/m/versions/3/{route}"
        assert request(ports.http, "POST", path, {"text_input": "a"}).status == 404


def test_the_context_is_that_of_the_latest_version(ports: Ports) -> None:
    cards = request(ports.http, "GET", "/v1/models").json()["data"]
    tokens = request(ports.http, "POST", "/tokenize", {"prompt": "a"}).json()

    assert [(card["id"], card["max_model_len"]) for card in cards] == [("m", LATEST_LEN)]
    assert tokens["max_model_len"] == LATEST_LEN


def test_the_commands_of_the_page_are_answered(ports: Ports) -> None:
    section = PAGE.partition("\n## Models that write text\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(curl .+?)\n```", section, re.DOTALL)
    words = [word for block in blocks for word in shlex.split(block)]
    calls = [words[index : index + 4] for index, word in enumerate(words) if word == "curl"]
    paths = [address.removeprefix("localhost:8080") for _, address, _, _ in calls]

    answers = {
        path: request(ports.http, "POST", path, body.encode())
        for path, (_, _, _, body) in zip(paths, calls, strict=True)
    }

    assert sorted(answers) == [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models/m:predict",
        "/v2/models/m/generate",
        "/v2/models/m/generate_stream",
        "/v2/models/m/infer",
    ]
    assert {path: answer.status for path, answer in answers.items()} == dict.fromkeys(paths, 200)


def test_text_that_takes_too_long_is_given_up_on_every_wire(tmp_path: Path) -> None:
    model = make_model(save(tmp_path, llama()))
    endless = {"max_tokens": 40_000, "ignore_eos": True}
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    bodies: dict[str, Any] = {
        "/v1/models/toy:predict": {"instances": ["a", "b"], "parameters": endless},
        "/v2/models/toy/infer": {"inputs": [tensor], "parameters": endless},
        "/v2/models/toy/generate": {"text_input": "a", **endless},
    }
    with (
        serving_ports([model], request_timeout_s=0.3) as ports,
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client,
    ):
        for path, body in bodies.items():
            answer = request(ports.http, "POST", path, body)
            assert (answer.status, list(answer.json())) == (504, ["error"]), path
        for timeout_s in (None, 0.1):
            with pytest.raises(InferenceServerException) as info:
                client.infer("toy", triton_input("a"), parameters=endless, client_timeout=timeout_s)
            assert info.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        wait_for(lambda: model._engine.stats().n_running == 0)
