"""The server from the outside: its command line, both protocols, many models, failed starts."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tests.onnxserver.graphs import (
    FLOAT,
    INT64,
    STRING,
    classifier,
    graph,
    node,
    own_session,
    save,
    sequence,
    tensor,
    unary,
)

from kserve.testing import Response, ServerProcess

F32 = np.float32
ROWS = [[1.0, -2.0, 0.5, 4.0], [0.0, 1.0, -1.0, 2.0]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


def v2_input(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def infer(
    server: ServerProcess, *inputs: dict[str, Any], model: str = "m", **more: Any
) -> Response:
    return server.request("POST", f"/v2/models/{model}/infer", {"inputs": list(inputs), **more})


def outputs(response: Response) -> dict[str, Any]:
    assert response.status == 200, response.body
    return {each["name"]: (each["shape"], each["data"]) for each in response.json()["outputs"]}


def test_serves_a_classifier_over_every_protocol(tmp_path: Path) -> None:
    directory = save(tmp_path, classifier(["no", "yes"]))
    x = np.array(ROWS, F32)
    labels, maps = own_session(directory / "model.onnx").run(None, {"x": x})
    names = ["label", "probability-no", "probability-yes"]
    columns = [labels, *(np.array([row[key] for row in maps], F32) for key in ("no", "yes"))]

    with ServerProcess("onnxserver", "--model_dir", str(directory), "--model_name", "m") as server:
        v1 = server.request("POST", "/v1/models/m:predict", {"instances": ROWS}).json()
        v2 = outputs(infer(server, v2_input("any", [2, 4], "FP32", sum(ROWS, []))))
        given = triton.InferInput("x", [2, 4], "FP32").set_data_from_numpy(x)
        binary = triton.InferenceServerClient(f"127.0.0.1:{server.port}").infer("m", [given])
        grpc_given = triton_grpc.InferInput("x", [2, 4], "FP32").set_data_from_numpy(x)
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            over_grpc = client.infer("m", [grpc_given])
        metadata = server.request("GET", "/v2/models/m").json()

    assert v1 == {
        "predictions": [
            dict(zip(names, row, strict=True))
            for row in zip(*(column.tolist() for column in columns), strict=True)
        ]
    }
    assert v2 == {name: ([2], column.tolist()) for name, column in zip(names, columns, strict=True)}
    for name, column in zip(names, columns, strict=True):
        np.testing.assert_array_equal(binary.as_numpy(name), column, strict=True)
        np.testing.assert_array_equal(over_grpc.as_numpy(name), column, strict=True)
    assert metadata == {
        "name": "m",
        "versions": None,
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probability-no", "datatype": "FP32", "shape": [-1]},
            {"name": "probability-yes", "datatype": "FP32", "shape": [-1]},
        ],
    }


def everything() -> onnx.ModelProto:
    """Give a graph of several inputs and outputs: scalars, text, an optional one, a sequence."""
    nodes = [
        node("Mul", ["x", "scale"], ["z"]),
        node("Add", ["z", "shift"], ["y"]),
        node("SplitToSequence", ["x"], ["parts"], axis=0, keepdims=0),
        node("Identity", ["text"], ["same"]),
        node("Size", ["text"], ["n"]),
    ]
    inputs = [
        tensor("x", FLOAT, ["rows", 2]),
        tensor("scale", FLOAT, []),
        tensor("text", STRING, ["words"]),
        tensor("shift", FLOAT, [1]),
    ]
    results = [
        tensor("y", FLOAT, ["rows", 2]),
        sequence("parts"),
        tensor("same", STRING, ["words"]),
        tensor("n", INT64, []),
    ]
    return graph(nodes, inputs, results, {"shift": np.array([1], F32)})


def test_serves_scalars_texts_optional_inputs_and_sequences(tmp_path: Path) -> None:
    save(tmp_path, everything())
    x = v2_input("x", [2, 2], "FP32", [1, 2, 3, 4])
    scale = v2_input("scale", [], "FP32", [10])
    text = v2_input("text", [3], "BYTES", ["a", "é", ""])
    shift = v2_input("shift", [1], "FP32", [5])
    v1_inputs = {"x": [[1, 2]], "scale": 10, "text": ["a", "b"], "shift": [0]}

    with ServerProcess("onnxserver", "--model_dir", str(tmp_path), "--model_name", "m") as server:
        everything_given = outputs(infer(server, x, scale, text, shift))
        asked_for = outputs(
            infer(server, x, scale, text, outputs=[{"name": "parts"}, {"name": "n"}])
        )
        missing = infer(server, x, scale)
        v1 = server.request("POST", "/v1/models/m:predict", {"inputs": v1_inputs}).json()

    assert everything_given == {
        "y": ([2, 2], [15, 25, 35, 45]),
        "parts-0": ([2], [1, 2]),
        "parts-1": ([2], [3, 4]),
        "same": ([3], ["a", "é", ""]),
        "n": ([], [3]),
    }
    assert asked_for == {"parts-0": ([2], [1, 2]), "parts-1": ([2], [3, 4]), "n": ([], [3])}
    assert (missing.status, missing.json()["error"]) == (
        400,
        "expected inputs 'x', 'scale', 'text' and perhaps 'shift': missing 'text'",
    )
    assert v1 == {"predictions": {"y": [[10, 20]], "parts-0": [1, 2], "same": ["a", "b"], "n": 2}}


def test_requests_of_all_wires_run_together_and_a_culprit_fails_alone(tmp_path: Path) -> None:
    table = np.arange(10, dtype=F32).reshape(5, 2)
    look_up = node("Gather", ["table", "i"], ["y"])
    inputs, results = [tensor("i", INT64, ["N"])], [tensor("y", FLOAT, ["N", 2])]
    save(tmp_path, graph([look_up], inputs, results, {"table": table}))
    arguments = (
        *("--model_dir", str(tmp_path), "--model_name", "m"),
        *("--max_batch_size", "4", "--max_batch_delay_ms", "60000"),
    )
    answers: dict[int, Response] = {}

    with ServerProcess("onnxserver", *arguments) as server:

        def ask(i: int) -> None:
            answers[i] = infer(server, v2_input("i", [1], "INT64", [i]))

        threads = [threading.Thread(target=ask, args=(i,)) for i in (0, 1, 2, 99)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        metrics = server.request("GET", "/metrics").body.decode()

    for i in range(3):
        assert outputs(answers[i]) == {"y": ([1, 2], table[i].tolist())}
    assert answers[99].status == 400
    assert (
        answers[99]
        .json()["error"]
        .startswith(
            "the model cannot run on these inputs: Gather: indices element out of data bounds"
        )
    )
    # The one that all waited for, and its parts.
    assert 'kserve_batches_total{model_name="m",reason="full",runs_on="thread"} 1.0' in metrics
    assert 'reason="retry"' in metrics
    assert "ONNXRuntimeError" not in server.stderr


def test_a_shape_or_datatype_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save(tmp_path, unary())

    with ServerProcess("onnxserver", "--model_dir", str(tmp_path), "--model_name", "m") as server:
        shape = infer(server, v2_input("x", [1, 3], "FP32", [1, 2, 3]))
        datatype = infer(server, v2_input("x", [1, 4], "BYTES", ["a"] * 4))
        wider = infer(server, v2_input("x", [1, 4], "INT64", [1, -2, 3, -4]))

    assert (shape.status, shape.json()["error"]) == (
        400,
        "input 'x': expected shape [-1, 4], got [1, 3]",
    )
    assert (datatype.status, datatype.json()["error"]) == (
        400,
        "input 'x': expected datatype FP32, got BYTES",
    )
    assert outputs(wider) == {"y": ([1, 4], [1, 0, 3, 0])}


def test_serves_directories_versions_and_external_data(tmp_path: Path) -> None:
    for version, op in (("1", "Relu"), ("2", "Neg")):
        save(tmp_path / "versioned" / version, unary(op))
    large = tmp_path / "large"
    large.mkdir()
    weights = {"w": np.ones((4, 500), F32)}
    product = node("MatMul", ["x", "w"], ["y"])
    model = graph([product], [tensor("x")], [tensor("y", FLOAT, ["N", 500])], weights)
    onnx.save(
        model,
        large / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.onnx").write_bytes(b"no model")
    row = v2_input("x", [1, 4], "FP32", [1, -2, 3, -4])
    arguments = ("--model_dir", str(tmp_path), "--max_versions", "all")

    with ServerProcess("onnxserver", *arguments) as server:
        first = outputs(infer(server, row, model="versioned/versions/1"))
        newest = outputs(infer(server, row, model="versioned"))
        external = outputs(infer(server, row, model="large"))
        broken = infer(server, row, model="broken")

    assert first == {"y": ([1, 4], [1, 0, 3, 0])}
    assert newest == {"y": ([1, 4], [-1, 2, -3, 4])}
    assert external == {"y": ([1, 500], [-2.0] * 500)}
    assert (broken.status, broken.json()["error"].partition(" (")[0]) == (
        503,
        "Model with name broken is not ready. model.onnx: cannot be loaded: Protobuf parsing "
        "failed.",
    )


def test_writes_the_optimised_graph_and_takes_every_flag(tmp_path: Path) -> None:
    target = tmp_path / "optimised.onnx"
    arguments = (
        *("--model_dir", str(save(tmp_path / "m", unary())), "--model_name", "m"),
        *("--providers", "CPU", "--intra_op_threads", "1", "--inter_op_threads", "2"),
        *("--optimization_level", "extended", "--optimized_model_path", str(target)),
        *("--session_config", "session.set_denormal_as_zero=1", "--outputs", "y"),
    )

    with ServerProcess("onnxserver", *arguments) as server:
        answer = infer(server, v2_input("x", [1, 4], "FP32", [1, -2, 3, -4]))

    assert outputs(answer) == {"y": ([1, 4], [1, 0, 3, 0])}
    assert onnx.load(target).graph.node[0].op_type == "Relu"


@pytest.mark.parametrize(
    ("data", "flags", "reason"),
    [
        pytest.param(None, [], "no model file, expected exactly one of *.onnx", id="none"),
        pytest.param(b"", [], "expected an ONNX model, found an empty file", id="empty"),
        pytest.param(
            unary().SerializeToString()[:-9],
            [],
            "model.onnx: cannot be loaded: Protobuf parsing failed. (",
            id="truncated",
        ),
        pytest.param(
            b"\x80\x04\x95pickle", [], "model.onnx: cannot be loaded: Protobuf", id="wrong kind"
        ),
        pytest.param(
            unary("NoSuchOp").SerializeToString(),
            [],
            "No Op registered for NoSuchOp with domain_version of 18",
            id="unknown operator",
        ),
        pytest.param(
            unary().SerializeToString(),
            ["--providers", "CUDA"],
            "provider CUDA: this build of onnxruntime ",
            id="unknown provider",
        ),
    ],
)
def test_a_failed_start_ends_with_the_reason(
    tmp_path: Path, data: bytes | None, flags: list[str], reason: str
) -> None:
    if data is not None:
        (tmp_path / "model.onnx").write_bytes(data)

    done = subprocess.run(
        [
            *(sys.executable, "-m", "onnxserver", "--host", "127.0.0.1", "--http_port", "0"),
            *("--model_dir", str(tmp_path), "--model_dir_wait_s", "0", *flags),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert reason in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_help_imports_no_framework() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['onnxserver', '--help']\n"
        "try:\n"
        "    runpy.run_module('onnxserver', run_name='__main__')\n"
        "except SystemExit:\n"
        "    print(sorted({'onnx', 'onnxruntime'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    for flag in ("--providers", "--intra_op_threads", "--outputs", "--optimized_model_path"):
        assert any(flag in line for line in lines)
