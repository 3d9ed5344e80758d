"""The real nets that the package onnx carries without their weights, with recorded outputs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from tests.onnxserver.graphs import own_session, uncovered

from kserve.testing import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# Their folder, by which the cases name them.
LIGHT = Path(onnx.__file__).parents[1]

CASES = {case.model_name: case for case in load_model_tests(kind="real")}


def test_every_net_answers_as_recorded_and_as_in_process(tmp_path: Path) -> None:
    for name, case in CASES.items():
        (tmp_path / name).mkdir()
        shutil.copy(LIGHT / case.url, tmp_path / name / "model.onnx")
    arguments = ("--model_dir", str(tmp_path), "--intra_op_threads", "1")

    with ServerProcess("onnxserver", *arguments, env=uncovered()) as server:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=60)
        answered = {name: ask(client, name, case) for name, case in CASES.items()}
        client.close()

    assert len(answered) == 9
    for name, (output, array, x) in answered.items():
        case = CASES[name]
        recorded = (LIGHT / case.url).with_name(f"light_{name}_output_0.pb").read_bytes()
        expected = numpy_helper.to_array(onnx.TensorProto.FromString(recorded))
        Runner.assert_similar_outputs([expected], [array], case.rtol, case.atol)
        session = own_session(tmp_path / name / "model.onnx")
        (own,) = session.run([output], {session.get_inputs()[0].name: x})
        np.testing.assert_array_equal(array, own, strict=True)


def ask(client: triton.InferenceServerClient, name: str, case: Any) -> tuple[str, Any, Any]:
    model = onnx.load(LIGHT / case.url)
    constants = {each.name for each in model.graph.initializer}
    (node,) = [each for each in model.graph.input if each.name not in constants]
    x = Runner.generate_dummy_data(node, name=name)
    given = triton.InferInput(node.name, list(x.shape), "FP32").set_data_from_numpy(x)
    answer = client.infer(name, [given])
    (output,) = answer.get_response()["outputs"]
    return output["name"], answer.as_numpy(output["name"]), x
