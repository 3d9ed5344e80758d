"""The request that a model answers before it is ready."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kserve.errors import ModelLoadError
from kserve.model import PredictOptions, TensorModel
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.warmup import warm_up

INPUTS = (
    TensorSpec("image", "FP32", (-1, 2, 3)),
    TensorSpec("count", "UINT8", (-1,)),
    TensorSpec("flag", "BOOL", (-1, 1)),
    TensorSpec("text", "BYTES", (-1,)),
)


class Recorder(TensorModel):
    """Keeps what it was asked, or raises."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...] = INPUTS,
        model_dir: str | None = None,
        error: Exception | None = None,
    ) -> None:
        super().__init__("recorder", model_dir)
        self.signature = Signature(inputs)
        self.asked: list[Tensors] = []
        self.error = error

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        self.asked.append(tensors)
        if self.error is not None:
            raise self.error
        return dict(tensors)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    return caplog


def test_invents_nothing_for_a_model_that_a_call_changes() -> None:
    model = Recorder()
    model.is_stateful = True

    warm_up(model)

    assert model.asked == []


def test_invents_one_row_of_every_input() -> None:
    model = Recorder()

    warm_up(model)

    (tensors,) = model.asked
    assert {name: (array.dtype.name, array.tolist()) for name, array in tensors.items()} == {
        "image": ("float32", [[[0.0] * 3] * 2]),
        "count": ("uint8", [0]),
        "flag": ("bool", [[False]]),
        "text": ("object", [""]),
    }


def test_sends_nothing_to_a_model_that_tells_no_inputs() -> None:
    model = Recorder(())

    warm_up(model)

    assert model.asked == []


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Recorder(error=RuntimeError("cold")), id="the model raises"),
        pytest.param(
            Recorder((TensorSpec("x", "FP64", (10**6, 10**6, 10**6)),)), id="too large to invent"
        ),
    ],
)
def test_an_invented_row_that_fails_only_warns(model: Recorder, log: Any) -> None:
    warm_up(model)

    assert [record.levelname for record in log.records] == ["WARNING"]
    assert log.records[0].message.startswith("Model recorder: an invented warm-up request failed (")
    assert log.records[0].message.endswith("); put a warmup.json beside the artifact")


def test_sends_the_file_beside_the_artifact_instead(tmp_path: Path) -> None:
    (tmp_path / "warmup.json").write_bytes(
        b'{"inputs":[{"name":"n","shape":[2],"datatype":"INT64","data":[1,2]}]}'
    )
    model = Recorder((TensorSpec("n", "INT64", (-1,)),), f"file://{tmp_path}")

    warm_up(model)

    assert [{name: list(array) for name, array in asked.items()} for asked in model.asked] == [
        {"n": [1, 2]}
    ]


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        pytest.param(
            b'{"inputs":[{"name":"n","shape":[2],"datatype":"INT64","data":[1,2]}]}',
            RuntimeError("out of memory"),
            "out of memory",
            id="the model raises",
        ),
        pytest.param(
            b"[]", None, "expected an inference request, a JSON object", id="no V2 request"
        ),
    ],
)
def test_a_file_that_fails_fails_the_load(
    tmp_path: Path, content: bytes, error: Exception | None, reason: str
) -> None:
    (tmp_path / "warmup.json").write_bytes(content)
    model = Recorder((TensorSpec("n", "INT64", (-1,)),), str(tmp_path), error)

    with pytest.raises(ModelLoadError) as caught:
        warm_up(model)

    assert str(caught.value) == f"{tmp_path}/warmup.json: the warm-up request failed: {reason}"


def test_sends_the_example_row_of_a_model_that_has_one() -> None:
    class Choosy(Recorder):
        def example_row(self) -> Tensors:
            return {"text": np.array(["Ghent"], dtype=np.object_)}

    model = Choosy((TensorSpec("text", "BYTES", (-1,)),))

    warm_up(model)

    assert [tensors["text"].tolist() for tensors in model.asked] == [["Ghent"]]
