"""The model in a server of this process: what waits, what fails, and what comes first."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from hfserver.checkpoint import open_directory
from hfserver.model import HuggingfaceEncoderModel
from hfserver.options import Options
from hfserver.server import make_model
from kserve.config import ServerConfig
from kserve.errors import ModelLoadError
from kserve.model_server import ModelServer
from kserve.testing import Response, request, serving

pytestmark = pytest.mark.timeout(60)

WAIT_S = 20


class Gate:
    """Stands for the executor of an engine, and lets nothing through until it is opened."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self.is_entered = threading.Event()
        self._may_go = threading.Event()

    @property
    def kind(self) -> str:
        return str(self._executor.kind)

    def run(self, texts: Any) -> Any:
        self.is_entered.set()
        assert self._may_go.wait(WAIT_S)
        return self._executor.run(texts)

    def open(self) -> None:
        self._may_go.set()


def making(directory: Path, name: str = "m", **options: Any) -> HuggingfaceEncoderModel:
    model = make_model(name, open_directory(directory), Options(**options))
    assert isinstance(model, HuggingfaceEncoderModel)
    model.load()
    return model


def gated(model: HuggingfaceEncoderModel) -> Gate:
    engine = model.reader.engine
    gate = Gate(engine._executor)
    engine._executor = gate
    return gate


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def predicting(
    pool: ThreadPoolExecutor, port: int, name: str = "m", *texts: str
) -> "Future[Response]":
    body = {"instances": list(texts or ("cat",))}
    return pool.submit(request, port, "POST", f"/v1/models/{name}:predict", body)


def test_probes_and_another_model_come_first_while_a_forward_is_blocked(
    directories: dict[str, Path], pool: ThreadPoolExecutor
) -> None:
    blocked = making(directories["classes"], "blocked")
    other = making(directories["embeddings"], "other")
    gate = gated(blocked)
    with serving([blocked, other]) as port:
        waiting = predicting(pool, port, "blocked")
        assert gate.is_entered.wait(WAIT_S)

        probes = [
            request(port, "GET", path).status
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/blocked/ready")
        ]
        embedded = request(port, "POST", "/v1/embeddings", {"model": "other", "input": "a dog"})
        predicted = request(port, "POST", "/v1/models/other:predict", {"instances": ["a dog"]})
        was_waiting = not waiting.done()
        gate.open()
        answer = waiting.result(WAIT_S)

    assert probes == [200, 200, 200]
    assert (embedded.status, predicted.status) == (200, 200)
    assert was_waiting
    assert answer.status == 200


def test_a_request_in_flight_finishes_when_the_server_stops(
    directories: dict[str, Path], pool: ThreadPoolExecutor
) -> None:
    model = making(directories["classes"])
    gate = gated(model)
    server = ModelServer(
        config=ServerConfig(host="127.0.0.1", http_port=0, enable_grpc=False, drain_delay_s=0)
    )
    with serving([model], server) as port:
        waiting = predicting(pool, port)
        assert gate.is_entered.wait(WAIT_S)
        server.stop()
        gate.open()
        answer = waiting.result(WAIT_S)

    assert answer.status == 200


def test_a_client_that_has_gone_leaves_the_queue(
    directories: dict[str, Path], pool: ThreadPoolExecutor
) -> None:
    model = making(directories["classes"])
    gate = gated(model)
    with serving([model]) as port:
        first = predicting(pool, port)
        assert gate.is_entered.wait(WAIT_S)
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/models/m:predict", b'{"instances": ["the cat sat"]}')
        wait_until(lambda: model.reader.engine.n_queued_tokens > 0)
        connection.close()
        wait_until(lambda: model.reader.engine.n_queued_tokens == 0)
        gate.open()
        answer = first.result(WAIT_S)

    assert answer.status == 200


def test_more_tokens_than_may_wait_are_refused(
    directories: dict[str, Path], pool: ThreadPoolExecutor
) -> None:
    model = making(directories["classes"], max_queued_tokens=4)
    gate = gated(model)
    with serving([model]) as port:
        first = predicting(pool, port)
        assert gate.is_entered.wait(WAIT_S)
        second = predicting(pool, port)
        wait_until(lambda: model.reader.engine.n_queued_tokens > 0)
        refused = request(port, "POST", "/v1/models/m:predict", {"instances": ["cat"]})
        openai = request(port, "POST", "/v1/classify", {"model": "m", "input": "cat"})
        gate.open()
        answers = [first.result(WAIT_S), second.result(WAIT_S)]

    assert [answer.status for answer in answers] == [200, 200]
    assert (refused.status, openai.status) == (429, 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert int(openai.headers["retry-after"]) >= 1


def test_a_request_that_takes_too_long_is_given_up(
    directories: dict[str, Path], pool: ThreadPoolExecutor
) -> None:
    model = making(directories["classes"])
    gate = gated(model)
    with serving([model], request_timeout_s=0.2) as port:
        late = request(port, "POST", "/v1/models/m:predict", {"instances": ["cat"]})
        gate.open()
        wait_until(lambda: not model.reader.engine._is_running)
        again = request(port, "POST", "/v1/models/m:predict", {"instances": ["cat"]})

    assert (late.status, again.status) == (504, 200)


def test_a_dead_engine_takes_the_model_out_and_ends_liveness(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = making(directories["classes"], "dead")
    other = making(directories["embeddings"], "other")

    def run(texts: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(model.reader.engine._executor, "run", run)
    with serving([model, other]) as port:
        before = request(port, "GET", "/v2/health/live").status
        first = request(port, "POST", "/v1/models/dead:predict", {"instances": ["cat"]})
        second = request(port, "POST", "/v1/models/dead:predict", {"instances": ["cat"]})
        openai = request(port, "POST", "/v1/classify", {"model": "dead", "input": "cat"})
        live = request(port, "GET", "/v2/health/live")
        ready = request(port, "GET", "/v2/health/ready")
        of_other = request(port, "POST", "/v1/models/other:predict", {"instances": ["cat"]})

    assert before == 200
    assert first.status in (500, 503)
    assert (second.status, openai.status) == (503, 503)
    assert second.json()["error"].startswith("Model with name dead is not ready. Its device failed")
    assert (live.status, ready.status) == (503, 503)
    assert of_other.status == 200


def test_a_hung_batch_takes_the_model_out_until_it_returns(
    directories: dict[str, Path], pool: ThreadPoolExecutor
) -> None:
    model = making(directories["classes"], hang_timeout_s=0.05)
    gate = gated(model)
    with serving([model]) as port:
        waiting = predicting(pool, port)
        wait_until(lambda: model.reader.engine.has_hung)
        live = request(port, "GET", "/v2/health/live")
        refused = request(port, "POST", "/v1/models/m:predict", {"instances": ["cat"]})
        gate.open()
        answer = waiting.result(WAIT_S)
        wait_until(lambda: not model.reader.engine.has_hung)
        again = request(port, "GET", "/v2/health/live")

    assert (live.status, refused.status) == (503, 503)
    assert "has not returned for 0.05 s (--hang_timeout_s)" in live.json()["error"]
    assert (answer.status, again.status) == (200, 200)


def test_one_bad_text_fails_its_own_request_alone(
    directories: dict[str, Path], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = making(directories["classes"])
    gate = gated(model)
    run = gate._executor.run
    (bad_id,) = model.reader.tokenizer.convert_tokens_to_ids(["fish"])

    def refusing(texts: Any) -> Any:
        if any(bad_id in text.input_ids for text in texts):
            raise RuntimeError("no fish")
        return run(texts)

    monkeypatch.setattr(gate._executor, "run", refusing)
    with serving([model]) as port:
        first = predicting(pool, port)
        assert gate.is_entered.wait(WAIT_S)
        good = predicting(pool, port, "m", "a dog")
        bad = predicting(pool, port, "m", "red fish", "a cat")
        wait_until(lambda: model.reader.engine.n_queued_tokens >= 11)
        gate.open()
        statuses = [each.result(WAIT_S).status for each in (first, good, bad)]

    assert statuses == [200, 200, 500]


def test_a_warm_up_request_that_fails_fails_the_load(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    copytree(directories["masks"], directory)
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["no mask"]}
    (directory / "warmup.json").write_bytes(orjson.dumps({"inputs": [tensor]}))

    with pytest.raises(ModelLoadError, match=r"warmup\.json: the warm-up request failed: expected"):
        making(directory)


def test_a_large_answer_is_made_away_from_the_event_loop(directories: dict[str, Path]) -> None:
    model = making(directories["embeddings"])
    texts = ["cat"] * 1000

    with serving([model]) as port:
        answer = request(port, "POST", "/v1/models/m:predict", {"instances": texts})

    rows = answer.json()["predictions"]
    assert len(rows) == 1000
    np.testing.assert_allclose(rows[-1], rows[0], atol=1e-6)


def test_prompts_are_put_before_texts_and_the_sides_of_a_search_have_their_own(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    copytree(directories["embeddings"], directory)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    (directory / "modules.json").write_bytes(orjson.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_bytes(
        orjson.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True})
    )
    (directory / "config_sentence_transformers.json").write_bytes(
        orjson.dumps({"prompts": {"query": "query : ", "document": "in "}})
    )
    model = making(directory)

    def embed(port: int, text: str, **more: Any) -> Any:
        answer = request(port, "POST", "/v1/embeddings", {"model": "m", "input": text, **more})
        assert answer.status == 200, answer.body
        return np.array(answer.json()["data"][0]["embedding"])

    with serving([model]) as port:
        plain = embed(port, "query : cat")
        by_name = embed(port, "cat", prompt_name="query")
        by_text = embed(port, "cat", prompt="query : ")
        of_v1 = request(
            port,
            "POST",
            "/v1/models/m:predict",
            {"instances": ["cat"], "parameters": {"prompt_name": "query", "normalize": True}},
        ).json()["predictions"][0]
        document = embed(port, "in Berlin")
        rerank = request(
            port, "POST", "/rerank", {"model": "m", "query": "cat", "documents": ["Berlin"]}
        ).json()["results"][0]["relevance_score"]
        unknown = request(
            port, "POST", "/v1/embeddings", {"model": "m", "input": "a", "prompt_name": "x"}
        )
        both = request(
            port,
            "POST",
            "/v1/embeddings",
            {"model": "m", "input": "a", "prompt_name": "query", "prompt": "x"},
        )

    np.testing.assert_allclose(by_name, plain, atol=1e-6)
    np.testing.assert_allclose(by_text, plain, atol=1e-6)
    np.testing.assert_allclose(of_v1, plain / np.linalg.norm(plain), atol=1e-6)
    # The files ask for no length of 1.
    assert abs(np.linalg.norm(plain) - 1) > 0.1
    cosine = plain @ document / np.linalg.norm(plain) / np.linalg.norm(document)
    assert rerank == pytest.approx(cosine, abs=1e-5)
    assert (unknown.status, both.status) == (400, 400)


def test_a_cross_encoder_may_ask_for_its_logits(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    copytree(directories["ranker"], directory)
    config = orjson.loads((directory / "config.json").read_bytes())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (directory / "config.json").write_bytes(orjson.dumps(config))
    body = {"model": "m", "text_1": "cat", "text_2": "dog"}

    with serving([making(directory), making(directories["ranker"], "sigmoid")]) as port:
        logit = request(port, "POST", "/score", body).json()["data"][0]["score"]
        activated = request(port, "POST", "/score", {**body, "use_activation": True}).json()
        score = request(port, "POST", "/score", {**body, "model": "sigmoid"}).json()

    assert score["data"][0]["score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    assert activated["data"] == score["data"]
    config["sentence_transformers"] = {"activation_fn": "torch.nn.Tanh"}
    (directory / "config.json").write_bytes(orjson.dumps(config))
    with pytest.raises(ModelLoadError, match="expected Identity or Sigmoid of torch"):
        making(directory)


def test_documents_are_cut_to_so_many_tokens(directories: dict[str, Path]) -> None:
    body = {"model": "m", "query": "cat", "documents": ["the red fish", "the red"]}

    with serving([making(directories["ranker"])]) as port:
        whole = request(port, "POST", "/rerank", body).json()["results"]
        cut = request(port, "POST", "/rerank", {**body, "max_tokens_per_doc": 2}).json()["results"]

    assert whole[0]["relevance_score"] != whole[1]["relevance_score"]
    assert cut[0]["relevance_score"] == pytest.approx(cut[1]["relevance_score"], abs=1e-6)


def wait_until(condition: Any) -> None:
    """Look again and again until something is so."""
    pause = threading.Event()
    for _ in range(WAIT_S * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to be so")
