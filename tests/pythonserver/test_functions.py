"""Models that are two functions, over real sockets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kserve.testing import request, serving
from pythonserver import make_model

LOAD = "def load(model_dir):\n    return 2\n"
DOUBLE = "def predict(model, instances):\n    return instances * model\n"
TENSOR = {"name": "x", "shape": [2], "datatype": "FP64", "data": [1, 2]}


@contextmanager
def served(tmp_path: Path, code: str) -> Iterator[int]:
    (tmp_path / "model.py").write_text(code)
    with serving(make_model("m", str(tmp_path))) as port:
        yield port


def v1(port: int, instances: list[Any]) -> Any:
    return request(port, "POST", "/v1/models/m:predict", {"instances": instances}).json()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(LOAD + DOUBLE, id="plain"),
        pytest.param(f"async {LOAD}async {DOUBLE}", id="async"),
        pytest.param(f"async {LOAD}{DOUBLE}", id="async load"),
    ],
)
def test_predict_gets_what_load_gave_and_the_instances(tmp_path: Path, code: str) -> None:
    with served(tmp_path, code) as port:
        first = v1(port, [1, 2])
        second = request(port, "POST", "/v2/models/m/infer", {"inputs": [TENSOR]}).json()

    assert first == {"predictions": [2, 4]}
    assert second["outputs"] == [
        {"name": "output-0", "shape": [2], "datatype": "FP64", "parameters": None, "data": [2, 4]}
    ]


def test_load_is_told_the_directory(tmp_path: Path) -> None:
    code = (
        "def load(model_dir):\n    return model_dir\n"
        "def predict(model, instances):\n    return [model for _ in instances]\n"
    )
    with served(tmp_path, code) as port:
        answer = v1(port, ["a", "b"])

    assert answer == {"predictions": [str(tmp_path)] * 2}


@pytest.mark.parametrize("word", ["def", "async def"])
def test_what_it_yields_is_streamed(tmp_path: Path, word: str) -> None:
    code = f"{LOAD}{word} predict(model, instances):\n    for x in instances:\n        yield x\n"
    with served(tmp_path, code) as port:
        answer = request(port, "POST", "/v1/models/m:predict", {"instances": ["a", "b"]})

    assert (answer.status, answer.body) == (200, b"ab")


def test_a_request_without_instances_is_the_clients_mistake(tmp_path: Path) -> None:
    with served(tmp_path, LOAD + DOUBLE) as port:
        answer = request(port, "POST", "/v1/models/m:predict", {"rows": []})

    assert answer.status == 400
