"""The server as a process: its flags, its wires, and the answers of every task."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import openai
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.testing import ServerProcess

# It starts processes, each of which imports torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TEXTS = ["the cat sat on a mat", "Anna came back from Berlin", "far away"]
MASKED = "the cat sat on the [MASK]"


class Servers:
    """Starts each server once, when it is first asked for."""

    def __init__(self, directories: dict[str, Path], stack: ExitStack) -> None:
        self._directories = directories
        self._stack = stack
        self._running: dict[tuple[str, ...], ServerProcess] = {}

    def __call__(self, kind: str, *flags: str) -> ServerProcess:
        key = (kind, *flags)
        if key not in self._running:
            process = ServerProcess(
                "hfserver",
                *("--model_dir", str(self._directories[kind]), "--model_name", "m", *flags),
            )
            self._running[key] = self._stack.enter_context(process)
        return self._running[key]


@pytest.fixture(scope="module")
def servers(directories: dict[str, Path]) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(directories, stack)


def v1(server: ServerProcess, instances: list[Any], **parameters: Any) -> Any:
    body = {"instances": instances, **({"parameters": parameters} if parameters else {})}
    answer = server.request("POST", "/v1/models/m:predict", body)
    assert answer.status == 200, answer.body
    return answer.json()["predictions"]


def v2(server: ServerProcess, texts: list[str], **parameters: Any) -> dict[str, Any]:
    body = {
        "inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}],
        "parameters": parameters,
    }
    answer = server.request("POST", "/v2/models/m/infer", body)
    assert answer.status == 200, answer.body
    return {output["name"]: output for output in answer.json()["outputs"]}


def approximate(rows: Any) -> Any:
    """Give a result with numbers that need only be nearly the same."""
    if isinstance(rows, list):
        return [approximate(row) for row in rows]
    if isinstance(rows, dict):
        return {key: approximate(value) for key, value in rows.items()}
    return pytest.approx(float(rows), abs=1e-5) if isinstance(rows, float | np.floating) else rows


def test_classes_are_numbers_as_of_the_original(
    servers: Servers, directories: dict[str, Path]
) -> None:
    reference = pipeline("text-classification", model=str(directories["classes"]))
    names = [row["label"] for row in reference(TEXTS)]
    numbers = [{"bad": 0, "fair": 1, "good": 2}[name] for name in names]
    server = servers("classes")

    assert v1(server, TEXTS) == numbers
    assert v2(server, TEXTS) == {
        "output-0": {
            "name": "output-0",
            "shape": [3],
            "datatype": "INT64",
            "parameters": None,
            "data": numbers,
        }
    }
    metadata = server.request("GET", "/v2/models/m").json()
    assert metadata == {
        "name": "m",
        "versions": None,
        "platform": "huggingface",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "output-0", "datatype": "INT64", "shape": [-1]}],
    }


def test_classes_have_probabilities_or_logits_by_flag_and_by_request(
    servers: Servers, directories: dict[str, Path]
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(directories["classes"])
    tokenizer = AutoTokenizer.from_pretrained(directories["classes"])
    with torch.inference_mode():
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    probabilities = [
        {str(number): round(float(value), 4) for number, value in enumerate(row)}
        for row in torch.softmax(logits, -1)
    ]
    raw = [{str(number): value for number, value in enumerate(row)} for row in logits.tolist()]
    with_flag = servers("classes", "--return_probabilities")
    server = servers("classes")

    assert v1(with_flag, TEXTS) == [pytest.approx(row, abs=1.1e-4) for row in probabilities]
    assert v1(server, TEXTS, return_probabilities=True) == v1(with_flag, TEXTS)
    assert v1(with_flag, TEXTS, return_raw_logits=True) == approximate(raw)
    assert v1(with_flag, TEXTS, return_probabilities=False) == v1(server, TEXTS)
    output = v2(with_flag, TEXTS)["output-0"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [3])
    # As Python writes a dict.
    assert output["data"][0].startswith("{0: 0.")
    assert with_flag.request("GET", "/v2/models/m").json()["outputs"] == [
        {"name": "output-0", "datatype": "BYTES", "shape": [-1]}
    ]


@pytest.mark.parametrize("kind", ["classes", "labels", "ranker"])
def test_rich_results_are_those_of_the_pipeline(
    kind: str, servers: Servers, directories: dict[str, Path]
) -> None:
    reference = pipeline("text-classification", model=str(directories[kind]))
    server = servers(kind)

    assert v1(server, TEXTS, rich_results=True) == approximate(reference(TEXTS))
    assert v1(server, TEXTS, top_k=-1) == approximate(reference(TEXTS, top_k=None))
    outputs = v2(server, TEXTS, rich_results=True)
    assert outputs["label"]["data"] == [row["label"] for row in reference(TEXTS)]
    assert outputs["score"]["data"] == approximate([row["score"] for row in reference(TEXTS)])


def test_pairs_are_read_together(servers: Servers, directories: dict[str, Path]) -> None:
    reference = pipeline("text-classification", model=str(directories["ranker"]))
    pairs = [("the cat", "a dog sat"), ("red fish", "home")]
    objects = [{"text": first, "text_pair": second} for first, second in pairs]
    expected = approximate(reference(objects))
    server = servers("ranker")
    flat = [text for pair in pairs for text in pair]
    tensor = {"name": "x", "shape": [2, 2], "datatype": "BYTES", "data": flat}
    body = {"inputs": [tensor], "parameters": {"rich_results": True}}

    assert v1(server, [list(pair) for pair in pairs], rich_results=True) == expected
    assert v1(server, objects, rich_results=True) == expected
    answer = server.request("POST", "/v2/models/m/infer", body).json()
    scores = next(output for output in answer["outputs"] if output["name"] == "score")
    assert scores["data"] == [row["score"] for row in expected]


def test_tags_are_numbers_or_entities(servers: Servers, directories: dict[str, Path]) -> None:
    reference = pipeline("ner", model=str(directories["tags"]), aggregation_strategy="simple")
    server = servers("tags")
    with_offsets = servers("tags", "--return_offsets_mapping", "--rich_results")

    entities = v1(server, TEXTS, aggregation_strategy="simple")

    assert entities == [approximate(reference(text)) for text in TEXTS]
    assert v1(with_offsets, TEXTS) == entities
    numbers = v1(server, TEXTS)
    assert [len(row) for row in numbers] == [1, 1, 1]
    assert [len(row[0]) for row in numbers] == [8, 7, 4]
    output = v2(server, TEXTS)["output-0"]
    assert (output["shape"], output["datatype"]) == ([3, 1, 8], "INT64")
    assert output["data"][:8] == numbers[0][0]
    assert output["data"][8:16] == [*numbers[1][0], -100]
    offsets = with_offsets.request("POST", "/v1/models/m:predict", {"instances": TEXTS[2:]})
    assert offsets.json()["outputs"] == [
        {
            "name": "offset_mapping",
            "shape": [1, 4, 2],
            "datatype": "INT64",
            "data": [[[0, 0], [0, 3], [4, 8], [0, 0]]],
        }
    ]
    assert v2(with_offsets, TEXTS[2:])["offset_mapping"]["data"] == [0, 0, 0, 3, 4, 8, 0, 0]


def test_masks_are_filled(servers: Servers, directories: dict[str, Path]) -> None:
    reference = pipeline("fill-mask", model=str(directories["masks"]))
    server = servers("masks")
    two = "Anna [MASK] from [MASK] to Berlin"

    assert v1(server, [MASKED], top_k=3) == [approximate(reference(MASKED, top_k=3))]
    assert v1(server, [two], top_k=2) == [approximate(reference(two, top_k=2))]
    assert v1(server, [MASKED], targets=["cat", "dog"]) == [
        approximate(reference(MASKED, targets=["cat", "dog"]))
    ]
    assert v1(server, [MASKED]) == [reference(MASKED, top_k=1)[0]["token_str"]]
    assert v2(server, [MASKED])["output-0"]["data"] == v1(server, [MASKED])
    tokens = v2(server, [MASKED], targets='["cat", "dog"]')["token_str"]
    assert (tokens["shape"], sorted(tokens["data"])) == ([1, 2], ["cat", "dog"])
    refused = server.request("POST", "/v1/models/m:predict", {"instances": ["no mask"]})
    assert refused.status == 400
    assert "expected at least one [MASK]" in refused.json()["error"]


def embed(directory: Path, texts: list[str]) -> Any:
    """Give mean-pooled embeddings of length 1 as transformers' own forward makes them."""
    model = AutoModel.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = []
    with torch.inference_mode():
        for text in texts:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
    return np.stack(rows)


def test_embeddings_are_the_same_on_all_wires(
    servers: Servers, directories: dict[str, Path]
) -> None:
    expected = embed(directories["embeddings"], TEXTS)
    server = servers("embeddings")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/openai/v1", api_key="none")

    of_v1 = v1(server, TEXTS)
    output = v2(server, TEXTS)["output-0"]
    response = client.embeddings.create(model="m", input=TEXTS)
    shorter = client.embeddings.create(model="m", input=TEXTS[0], dimensions=4)

    np.testing.assert_allclose(of_v1, expected, atol=1e-5)
    assert (output["datatype"], output["shape"]) == ("FP64", [3, 32])
    np.testing.assert_allclose(np.reshape(output["data"], (3, 32)), expected, atol=1e-5)
    np.testing.assert_allclose([each.embedding for each in response.data], expected, atol=1e-5)
    assert response.usage.prompt_tokens == 8 + 7 + 4
    kept = expected[0, :4] / np.linalg.norm(expected[0, :4])
    np.testing.assert_allclose(shorter.data[0].embedding, kept, atol=1e-5)
    client.close()


def test_embeds_over_grpc_and_in_binary_form(
    servers: Servers, directories: dict[str, Path]
) -> None:
    expected = embed(directories["embeddings"], TEXTS)
    server = servers("embeddings")
    texts = np.array([text.encode() for text in TEXTS], dtype=np.object_)

    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        tensor = tritonclient.http.InferInput("text", [3], "BYTES")
        tensor.set_data_from_numpy(texts, binary_data=True)
        of_http = client.infer("m", [tensor]).as_numpy("output-0")
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as grpc_client:
        tensor = tritonclient.grpc.InferInput("text", [3], "BYTES")
        tensor.set_data_from_numpy(texts)
        of_grpc = grpc_client.infer("m", [tensor]).as_numpy("output-0")
    message = pb.ModelInferRequest(model_name="m")
    contents = pb.InferTensorContents(bytes_contents=[text.encode() for text in TEXTS])
    message.inputs.add(name="x", shape=[3], datatype="BYTES", contents=contents)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        of_stub = stub.ModelInfer(message, timeout=20).outputs[0].contents.fp64_contents

    for values in (of_http, of_grpc, np.reshape(of_stub, (3, 32))):
        assert values is not None
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_a_text_that_is_too_long_is_cut_or_refused_as_asked(servers: Servers) -> None:
    long = "cat " * 100
    server = servers("embeddings")
    refusing = servers("embeddings", "--truncation", "none")

    cut = v1(server, [long])
    same = v1(server, ["cat " * 62])
    refused = refusing.request("POST", "/v1/models/m:predict", {"instances": ["cat", long]})
    of_openai = server.request("POST", "/v1/embeddings", {"model": "m", "input": long})
    cut_there = server.request(
        "POST", "/v1/embeddings", {"model": "m", "input": long, "truncation": "right"}
    )

    np.testing.assert_allclose(cut, same, atol=1e-6)
    assert v1(refusing, [long], truncation="right") == cut
    assert refused.status == 400
    assert refused.json()["error"].startswith("text 1: expected at most 64 tokens, got 102")
    assert of_openai.status == 400
    error = of_openai.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    np.testing.assert_allclose([cut_there.json()["data"][0]["embedding"]], cut, atol=1e-6)


def test_reranks_with_a_cross_encoder(servers: Servers, directories: dict[str, Path]) -> None:
    reference = pipeline("text-classification", model=str(directories["ranker"]))
    documents = ["a dog", "the red fish", "Berlin and home"]
    scores = [
        row["score"] for row in reference([{"text": "cat", "text_pair": d} for d in documents])
    ]
    order = np.argsort(scores)[::-1].tolist()
    server = servers("ranker")
    body = {"model": "m", "query": "cat", "documents": documents, "return_documents": True}

    answers = [
        server.request("POST", path, {**body, "top_n": 2})
        for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/openai/v1/rerank")
    ]
    score = server.request(
        "POST", "/score", {"model": "m", "text_1": "cat", "text_2": documents}
    ).json()
    pooled = server.request("POST", "/pooling", {"model": "m", "input": "cat", "task": "score"})

    for answer in answers:
        results = answer.json()["results"]
        assert [result["index"] for result in results] == order[:2]
        assert [result["relevance_score"] for result in results] == approximate(
            sorted(scores, reverse=True)[:2]
        )
        assert [result["document"]["text"] for result in results] == [
            documents[index] for index in order[:2]
        ]
    assert [each["score"] for each in score["data"]] == approximate(scores)
    assert pooled.json()["data"][0]["data"] == approximate([reference("cat")[0]["score"]])


def test_reranks_with_embeddings_by_their_cosine(
    servers: Servers, directories: dict[str, Path]
) -> None:
    query, *documents = vectors = embed(directories["embeddings"], ["cat", "a dog", "fish"])
    server = servers("embeddings")

    answer = server.request(
        "POST", "/rerank", {"model": "m", "query": "cat", "documents": ["a dog", "fish"]}
    ).json()

    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    expected = {index: float(query @ document) for index, document in enumerate(documents)}
    assert scores == approximate(expected)
    assert answer["usage"]["prompt_tokens"] == 3 + 4 + 3
    assert len(vectors) == 3


def test_classifies_on_the_route_of_vllm(servers: Servers, directories: dict[str, Path]) -> None:
    reference = pipeline("text-classification", model=str(directories["classes"]), top_k=None)
    server = servers("classes")
    body = {"model": "m", "input": TEXTS}

    answer = server.request("POST", "/classify", body).json()
    best = server.request("POST", "/classify", {**body, "top_k": 1}).json()
    tags = servers("tags").request("POST", "/classify", body).json()

    expected = reference(TEXTS)
    for data, row in zip(answer["data"], expected, strict=True):
        assert data["label"] == row[0]["label"]
        assert data["num_classes"] == 3
        assert dict(zip(data["labels"], data["probs"], strict=True)) == approximate(
            {cell["label"]: cell["score"] for cell in row}
        )
    assert [data["labels"] for data in best["data"]] == [[row[0]["label"]] for row in expected]
    ner = pipeline("ner", model=str(directories["tags"]), aggregation_strategy="simple")
    assert [data["entities"] for data in tags["data"]] == [approximate(ner(text)) for text in TEXTS]


def test_what_a_model_does_not_do_is_refused_on_every_route(servers: Servers) -> None:
    for kind, path, body in (
        ("classes", "/v1/embeddings", {"input": "a"}),
        ("classes", "/rerank", {"query": "a", "documents": ["b"]}),
        ("embeddings", "/classify", {"input": "a"}),
        ("masks", "/pooling", {"input": "a"}),
        ("classes", "/v1/completions", {"prompt": "a"}),
    ):
        answer = servers(kind).request("POST", path, {"model": "m", **body})

        assert answer.status == 400, path
        assert "does not support" in answer.json()["error"]["message"]


def test_tokenizes_and_back(servers: Servers) -> None:
    server = servers("embeddings")
    client = {"model": "m", "prompt": "the cats sat", "return_token_strs": True}

    tokens = server.request("POST", "/tokenize", client).json()
    bare = server.request("POST", "/tokenize", {**client, "add_special_tokens": False}).json()
    text = server.request("POST", "/detokenize", {"model": "m", "tokens": bare["tokens"]}).json()
    chat = server.request(
        "POST", "/tokenize", {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    )

    assert tokens["token_strs"] == ["[CLS]", "the", "cat", "##s", "sat", "[SEP]"]
    assert (tokens["count"], tokens["max_model_len"]) == (6, 64)
    assert tokens["tokens"][1:-1] == bare["tokens"]
    assert text == {"prompt": "the cat ##s sat"}
    assert chat.status == 400


def test_pools_texts(servers: Servers, directories: dict[str, Path]) -> None:
    body = {"model": "m", "input": [TEXTS[0]]}

    whole = servers("embeddings").request("POST", "/pooling", body).json()
    tags = servers("tags").request("POST", "/pooling", body).json()
    wrong = servers("embeddings").request("POST", "/pooling", {**body, "task": "classify"})

    expected = embed(directories["embeddings"], TEXTS[:1])
    np.testing.assert_allclose([whole["data"][0]["data"]], expected, atol=1e-5)
    scores = np.array(tags["data"][0]["data"])
    assert scores.shape == (8, 5)
    np.testing.assert_allclose(scores.sum(axis=1), np.ones(8), atol=1e-5)
    assert wrong.status == 400
    assert wrong.json()["error"]["message"] == "'task': expected embed, got 'classify'"


def test_takes_token_ids(servers: Servers) -> None:
    server = servers("embeddings")
    ids = server.request("POST", "/tokenize", {"model": "m", "prompt": TEXTS[0]}).json()["tokens"]

    of_ids = server.request("POST", "/v1/embeddings", {"model": "m", "input": [ids]}).json()
    of_text = server.request("POST", "/v1/embeddings", {"model": "m", "input": TEXTS[0]}).json()
    beyond = server.request("POST", "/v1/embeddings", {"model": "m", "input": [9999]})

    assert of_ids["data"] == of_text["data"]
    assert of_ids["usage"] == of_text["usage"]
    assert beyond.status == 400


def test_no_text_gives_no_prediction(servers: Servers) -> None:
    server = servers("classes")

    assert v1(server, []) == []
    assert v2(server, [])["output-0"]["shape"] == [0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param({"instances": [1]}, "instances[0]: expected a text", id="a number"),
        pytest.param({"instances": "a"}, 'Expected "instances" to be a list', id="a text"),
        pytest.param({"instances": ["a"], "parameters": {"top_k": 0}}, "'top_k'", id="a parameter"),
    ],
)
def test_a_client_reads_what_is_wrong(body: dict[str, Any], message: str, servers: Servers) -> None:
    answer = servers("classes").request("POST", "/v1/models/m:predict", body)

    assert answer.status == 400
    assert message in answer.json()["error"]


def test_python_m_kserve_finds_the_server(directories: dict[str, Path]) -> None:
    with ServerProcess("kserve", str(directories["classes"]), "--rich_results") as server:
        models = server.request("GET", "/v1/models").json()

    assert [model["id"] for model in models["data"]] == ["model"]
    assert models["models"] == ["model"]
    assert "config.json is served by hfserver" in server.stderr


def test_a_directory_of_models_serves_all_of_them(directories: dict[str, Path]) -> None:
    root = directories["classes"].parent

    with ServerProcess("hfserver", "--model_dir", str(root)) as server:
        answers = {
            name: server.request("POST", f"/v1/models/{name}:predict", {"instances": [MASKED]})
            for name in directories
        }

    assert {name: answer.status for name, answer in answers.items()} == dict.fromkeys(
        directories, 200
    )


@pytest.mark.parametrize(
    ("files", "flags", "reason"),
    [
        pytest.param(
            {"config.json": '{"architectures": ["LlamaForCausalLM"]}'},
            [],
            "models that write text are not served yet",
            id="generative",
        ),
        pytest.param(
            {"config.json": '{"architectures": ["BertForQuestionAnswering"]}'},
            [],
            "question_answering is not served",
            id="another task",
        ),
        pytest.param({"a.txt": ""}, [], "no model file", id="nothing"),
        pytest.param(
            {"config.json": '{"architectures": ["BertModel"], "model_type": "bert"}'},
            [],
            "expected *.safetensors",
            id="no weights",
        ),
    ],
)
def test_a_failed_start_says_why(
    files: dict[str, str], flags: list[str], reason: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    done = subprocess.run(
        [
            *(sys.executable, "-m", "hfserver", "--model_dir", str(tmp_path), "--http_port", "0"),
            *("--grpc_port", "0", "--host", "127.0.0.1", "--model_dir_wait_s", "0", *flags),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert reason in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            ["--predictor_host", "h"], "predicts itself and takes no predictor", id="host"
        ),
        pytest.param(["--backend", "vllm"], "install the package vllm", id="vllm"),
        pytest.param(["--backend", "upstream"], "expected --upstream_url too", id="no url"),
        pytest.param(["--tasks", "x"], "did you mean --task?", id="misspelt"),
    ],
)
def test_a_wrong_command_line_ends_with_code_2(flags: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hfserver", "--model_dir", "x", *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, message in done.stderr) == (2, True)


def test_texts_are_logged_only_if_asked_for(directories: dict[str, Path]) -> None:
    flags = ("--model_dir", str(directories["classes"]), "--model_name", "m")
    with ServerProcess("hfserver", *flags) as silent:
        v1(silent, TEXTS)
        silent.stop(signal.SIGTERM)
    with ServerProcess("hfserver", *flags, "--enable_log_requests", "--max_log_len", "7") as server:
        v1(server, TEXTS)
        server.stop(signal.SIGTERM)

    assert "the cat" not in silent.stderr
    assert "['the cat', 'Anna ca', 'far awa']" in server.stderr
