"""A real net that a package carries: transcribes music, 230 kB, converted from TensorFlow."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tests.onnxserver.graphs import own_session
from tests.packaged_models import BASIC_PITCH, fetch

from kserve.testing import ServerProcess

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(240)]

# Two seconds of sound at 22,050 Hz, as the net takes it.
N_SAMPLES = 43844


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory with the net alone."""
    net = shutil.copy(fetch(BASIC_PITCH) / "nmp.onnx", tmp_path_factory.mktemp("basic-pitch"))
    return Path(net).parent


def sound(*frequencies: float) -> np.ndarray:
    """Give two seconds of tones, shape (1, N_SAMPLES, 1)."""
    t = np.arange(N_SAMPLES) / 22_050
    tones = sum(np.sin(2 * np.pi * frequency * t) for frequency in frequencies)
    return np.asarray(tones, np.float32).reshape(1, -1, 1)


def test_answers_as_in_process(directory: Path) -> None:
    session = own_session(directory / "nmp.onnx")
    (node,) = session.get_inputs()
    names = [each.name for each in session.get_outputs()]
    sounds = [sound(440), sound(262, 330, 392), sound(110, 3000)]
    expected = [session.run(names, {node.name: x}) for x in sounds]
    arguments = ("--model_dir", str(directory), "--model_name", "nmp", "--intra_op_threads", "1")

    with ServerProcess("onnxserver", *arguments) as server:
        metadata = server.request("GET", "/v2/models/nmp").json()
        rest = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        given = [
            triton.InferInput("sound", list(x.shape), "FP32").set_data_from_numpy(x) for x in sounds
        ]
        answers = [rest.infer("nmp", [each]) for each in given]
        rest.close()
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            x = sounds[0]
            tensor = triton_grpc.InferInput(node.name, list(x.shape), "FP32")
            over_grpc = client.infer("nmp", [tensor.set_data_from_numpy(x)])

    assert metadata["inputs"] == [
        {"name": node.name, "datatype": "FP32", "shape": [-1, N_SAMPLES, 1]}
    ]
    assert [each["name"] for each in metadata["outputs"]] == names
    for answer, values in zip([*answers, over_grpc], [*expected, expected[0]], strict=True):
        for name, value in zip(names, values, strict=True):
            np.testing.assert_array_equal(answer.as_numpy(name), value, strict=True)


def test_sounds_of_several_clients_run_together(directory: Path) -> None:
    session = own_session(directory / "nmp.onnx")
    (node,) = session.get_inputs()
    output = session.get_outputs()[0]
    sounds = [sound(110 * 2**i) for i in range(5)]
    expected = [session.run([output.name], {node.name: x})[0] for x in sounds]
    arguments = (
        *("--model_dir", str(directory), "--model_name", "nmp"),
        *("--max_batch_size", str(len(sounds)), "--max_batch_delay_ms", "60000"),
    )

    with ServerProcess("onnxserver", *arguments) as server:

        def ask(x: np.ndarray) -> np.ndarray:
            client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
            given = triton.InferInput(node.name, list(x.shape), "FP32").set_data_from_numpy(x)
            answer: np.ndarray = client.infer("nmp", [given]).as_numpy(output.name)
            client.close()
            return answer

        with ThreadPoolExecutor(len(sounds)) as pool:
            answers = list(pool.map(ask, sounds))
        metrics = server.request("GET", "/metrics").body.decode()

    # Kernels differ in the last bits with the number of rows.
    for answer, value in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, value, rtol=0, atol=1e-4)
    assert "requests run together" in server.stderr
    assert 'kserve_batches_total{model_name="nmp",reason="full",runs_on="thread"} 1.0' in metrics
