"""Servers that follow their model directory, over real sockets."""

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from kserve.config import ServerConfig
from kserve.directory_repository import DirectoryRepository
from kserve.model import PredictOptions, TensorModel
from kserve.model_repository import ModelRepository
from kserve.model_server import ModelServer
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.testing import request, serving

WAIT_S = 15
INTERVAL_S = 0.02
READY_PATHS = ("v2/models/model/ready", "v1/models/model")
ROW = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [0]}]}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    return caplog


class Number(TensorModel):
    """Answers with the number in its file, twice; to the first request with -1."""

    artifact_suffixes = (".num",)

    def load(self) -> bool:
        assert self.model_dir is not None
        self.number = float((Path(self.model_dir) / "m.num").read_text())
        self.signature = Signature((TensorSpec("x", "FP64", (-1,)),))
        self.is_warm = False
        self.ready = True
        return True

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        number = np.full(1, self.number if self.is_warm else -1)
        self.is_warm = True
        return {"first": number, "second": number}


def write(directory: Path, number: float | str) -> None:
    """Put an artifact in its place at once, as whoever writes while it is watched should."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".m.num").write_text(str(number))
    (directory / ".m.num").rename(directory / "m.num")


@contextmanager
def watching(models_dir: Path, interval_s: float = INTERVAL_S) -> Iterator[int]:
    repository = DirectoryRepository(Number, str(models_dir))
    asyncio.run(repository.load_at_start())
    config = ServerConfig(
        host="127.0.0.1",
        http_port=0,
        repository_api=True,
        watch=True,
        watch_interval_s=interval_s,
    )
    with serving([], ModelServer(registered_models=repository, config=config)) as port:
        yield port


def number(port: int, path: str = "model") -> float | int:
    """Give the number that a model answers with, or the status of a refusal."""
    response = request(port, "POST", f"/v2/models/{path}/infer", ROW)
    if response.status != 200:
        return -response.status
    (value,) = {output["data"][0] for output in response.json()["outputs"]}
    return float(value)


def index(port: int) -> list[tuple[str, ...]]:
    return [tuple(e.values()) for e in request(port, "POST", "/v2/repository/index").json()]


def eventually(condition: Callable[[], Any]) -> None:
    deadline = monotonic() + WAIT_S
    while not condition():
        assert monotonic() < deadline
        sleep(INTERVAL_S / 2)


def test_a_changed_artifact_is_loaded_and_warm(tmp_path: Path) -> None:
    write(tmp_path, 1)

    with watching(tmp_path) as port:
        write(tmp_path, 2)
        numbers = [number(port)]
        while numbers[-1] != 2:
            numbers.append(number(port))

    # A model that is not warm answers -1.
    assert set(numbers) == {1, 2}


def test_a_volume_of_kubernetes_that_turns_its_link_is_a_change(tmp_path: Path) -> None:
    write(tmp_path / "..2026_01", 1)
    write(tmp_path / "..2026_02", 2)
    (tmp_path / "..data").symlink_to("..2026_01")
    (tmp_path / "m.num").symlink_to("..data/m.num")

    with watching(tmp_path) as port:
        first = number(port)
        (tmp_path / "..data_tmp").symlink_to("..2026_02")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        eventually(lambda: number(port) == 2)

    assert first == 1


def test_a_new_version_serves_and_the_old_one_goes(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)

    with watching(tmp_path) as port:
        write(tmp_path / "2", 2)
        eventually(lambda: number(port) == 2)
        entries = index(port)
        old = number(port, "model/versions/1")

    assert entries == [("model", "2", "READY", "")]
    assert old == -404


def test_a_version_that_is_taken_away_leaves_the_one_before(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)
    write(tmp_path / "2", 2)

    with watching(tmp_path) as port:
        shutil.rmtree(tmp_path / "2")
        eventually(lambda: number(port) == 1)

        assert index(port) == [("model", "1", "READY", "")]


def test_models_come_and_go_with_their_directories(tmp_path: Path) -> None:
    write(tmp_path / "stays", 1)
    write(tmp_path / "goes", 2)

    with watching(tmp_path) as port:
        write(tmp_path / "comes", 3)
        shutil.rmtree(tmp_path / "goes")
        eventually(lambda: number(port, "comes") == 3 and number(port, "goes") == -404)
        stays = number(port, "stays")
        entries = index(port)

    assert stays == 1
    assert sorted(entries) == [("comes", "", "READY", ""), ("stays", "", "READY", "")]


def test_a_directory_that_comes_back_is_new(tmp_path: Path) -> None:
    write(tmp_path / "stays", 1)
    write(tmp_path / "m", 2)

    with watching(tmp_path) as port:
        os.rename(tmp_path / "m", tmp_path / ".aside")
        eventually(lambda: number(port, "m") == -404)
        os.rename(tmp_path / ".aside", tmp_path / "m")
        eventually(lambda: number(port, "m") == 2)


def test_a_failed_load_leaves_the_old_one_until_the_next_change(tmp_path: Path, log: Any) -> None:
    write(tmp_path / "m", 1)

    with watching(tmp_path) as port:
        write(tmp_path / "m", "broken")
        eventually(lambda: index(port)[0][3] != "")
        entries = index(port)
        still = number(port, "m")
        write(tmp_path / "m", 2)
        eventually(lambda: number(port, "m") == 2)
        mended = index(port)

    errors = [record.message for record in log.records if record.levelname == "ERROR"]
    reason = "Its load raised ValueError; the log says more."
    assert (entries, still) == ([("m", "", "READY", reason)], 1)
    assert mended == [("m", "", "READY", "")]
    assert errors == [
        "Model m cannot be loaded: ValueError: could not convert string to float: 'broken'"
    ]


def test_a_model_that_was_unloaded_stays_so_until_it_changes(tmp_path: Path) -> None:
    write(tmp_path / "m", 1)
    write(tmp_path / "other", 1)

    with watching(tmp_path) as port:
        request(port, "POST", "/v2/repository/models/m/unload")
        # A change that is followed shows that the directory was looked at since.
        write(tmp_path / "other", 2)
        eventually(lambda: number(port, "other") == 2)
        unloaded = number(port, "m")
        write(tmp_path / "m", 3)
        eventually(lambda: number(port, "m") == 3)

    assert unloaded == -404


def test_a_file_that_is_still_written_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "m", 1)
    written = threading.Event()
    numbers = set()

    def write_slowly() -> None:
        with (tmp_path / "m" / "m.num").open("w") as file:
            for _ in range(50):
                # Faster than two looks.
                file.write("0")
                file.flush()
                sleep(INTERVAL_S / 4)
            file.write("7")
        written.set()

    with watching(tmp_path, interval_s=0.1) as port:
        writer = threading.Thread(target=write_slowly)
        writer.start()
        while not written.is_set():
            numbers.add(number(port, "m"))
        writer.join()
        eventually(lambda: number(port, "m") == 7)

    assert numbers == {1}


def test_a_single_model_whose_directory_is_gone_serves_on(tmp_path: Path, log: Any) -> None:
    model_dir = tmp_path / "model"
    write(model_dir, 1)

    with watching(model_dir) as port:
        model_dir.rename(tmp_path / "aside")
        eventually(lambda: "cannot be followed" in log.text)
        still = number(port)
        write(model_dir, 2)
        eventually(lambda: number(port) == 2)

    complaints = [r.message for r in log.records if "cannot be followed" in r.message]
    assert still == 1
    assert complaints == [f"The model directory cannot be followed: {model_dir}: no such directory"]


def test_no_request_fails_and_none_sees_a_mixture_while_versions_come(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)
    done = threading.Event()

    def ask(port: int) -> list[float]:
        answers = []
        while not done.is_set():
            answers.append(number(port))
        return answers

    with watching(tmp_path) as port, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, port) for _ in range(4)]
        for version in range(2, 12):
            write(tmp_path / str(version), version)
            while number(port) != version:
                pass
        done.set()
        answers = [client.result(WAIT_S) for client in clients]

    for seen in answers:
        assert seen == sorted(seen)
        assert seen[0] >= 1


def test_a_watch_without_a_directory_is_told(log: Any) -> None:
    config = ServerConfig(host="127.0.0.1", http_port=0, watch=True)

    with serving([], ModelServer(registered_models=ModelRepository(), config=config)) as port:
        alive = request(port, "GET", "/").json()

    assert alive == {"status": "alive"}
    assert "watch: there is no model directory to follow" in log.text


def test_readiness_says_why_the_old_artifact_still_serves(tmp_path: Path) -> None:
    write(tmp_path, 1)

    with watching(tmp_path) as port:
        before = request(port, "GET", "/v2/models/model/ready").json()
        write(tmp_path, "no number")
        eventually(lambda: "reason" in request(port, "GET", "/v2/models/model/ready").json())
        answers = [request(port, "GET", f"/{path}") for path in READY_PATHS]
        still = number(port)
        write(tmp_path, 2)
        eventually(lambda: number(port) == 2)
        after = request(port, "GET", "/v2/models/model/ready").json()

    reason = "Its load raised ValueError; the log says more."
    assert [(answer.status, answer.json()) for answer in answers] == [
        (200, {"name": "model", "ready": True, "reason": reason})
    ] * 2
    assert still == 1
    assert before == after == {"name": "model", "ready": True}


def test_readiness_names_the_version_that_cannot_be_loaded(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)

    with watching(tmp_path) as port:
        write(tmp_path / "2", "no number")
        eventually(lambda: "reason" in request(port, "GET", "/v2/models/model/ready").json())
        model = request(port, "GET", "/v2/models/model/ready").json()

    reason = "version 2: Its load raised ValueError; the log says more."
    assert model == {"name": "model", "ready": True, "reason": reason}
