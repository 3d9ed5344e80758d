"""A real net that a package carries, as TensorFlow saved it, and its twin of ONNX beside it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tests.packaged_models import BASIC_PITCH, fetch

from kserve.testing import ServerProcess

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(240)]

# Two seconds of sound at 22,050 Hz, as the net takes it.
N_SAMPLES = 43844

# What the twins call the same output.
TWINS = {
    "note": "StatefulPartitionedCall:1",
    "onset": "StatefulPartitionedCall:2",
    "contour": "StatefulPartitionedCall:0",
}


@pytest.fixture(scope="module")
def nets() -> Path:
    """Give the folder of the nets."""
    return fetch(BASIC_PITCH)


def sound(*frequencies: float) -> Any:
    """Give two seconds of tones, shape (1, N_SAMPLES, 1)."""
    t = np.arange(N_SAMPLES) / 22_050
    tones = sum(np.sin(2 * np.pi * frequency * t) for frequency in frequencies)
    return np.asarray(tones, np.float32).reshape(1, -1, 1)


SOUNDS = [sound(440), sound(262, 330, 392), sound(110, 3000)]


def in_process(directory: Path) -> tuple[str, list[dict[str, Any]]]:
    """Give the name of the input, and what TensorFlow itself answers, by another way to load."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(directory))
        signature = loaded.signature_def["serving_default"]
        ((name, fed),) = signature.inputs.items()
        fetched = {key: info.name for key, info in signature.outputs.items()}
        return name, [session.run(fetched, {fed.name: x}) for x in SOUNDS]


def asked(server: ServerProcess, x: Any, name: str) -> Any:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    given = triton.InferInput(name, list(x.shape), "FP32").set_data_from_numpy(x)
    answer = client.infer("nmp", [given])
    client.close()
    return answer


def test_answers_as_in_process_and_as_its_twin(nets: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    shutil.copy(nets / "nmp.onnx", tmp_path / "onnx")
    name, expected = in_process(nets / "nmp")
    names = sorted(expected[0])

    with ServerProcess(
        "tfserver", "--model_dir", str(nets / "nmp"), "--model_name", "nmp"
    ) as server:
        answers = [asked(server, x, name) for x in SOUNDS]
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            given = triton_grpc.InferInput(name, [1, N_SAMPLES, 1], "FP32")
            over_grpc = client.infer("nmp", [given.set_data_from_numpy(SOUNDS[0])])
        metadata = server.request("GET", "/v2/models/nmp").json()
        together = "requests of serving_default run together" in server.stderr
    arguments = ("--model_dir", str(tmp_path / "onnx"), "--model_name", "nmp")
    with ServerProcess("onnxserver", *arguments) as server:
        twins = [asked(server, x, "any") for x in SOUNDS]

    assert metadata["inputs"] == [{"name": name, "datatype": "FP32", "shape": [-1, N_SAMPLES, 1]}]
    assert [each["name"] for each in metadata["outputs"]] == names
    assert together
    for answer, twin, values in zip(answers, twins, expected, strict=True):
        for output in names:
            got = answer.as_numpy(output)
            np.testing.assert_allclose(got, values[output], rtol=0, atol=1e-5)
            other = twin.as_numpy(TWINS[output])
            np.testing.assert_allclose(other, values[output], rtol=0, atol=1e-5)
            np.testing.assert_allclose(other, got, rtol=0, atol=1e-5)
    for output in names:
        np.testing.assert_allclose(
            over_grpc.as_numpy(output), expected[0][output], rtol=0, atol=1e-5
        )
