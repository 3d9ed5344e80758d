"""The server from the outside: V1 as TensorFlow Serving's clients know it, V2, gRPC, versions."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tests.tfserver.models import F32, Net, Spec, own, save, save_words, saved

from kserve.servers import fitting_servers, installed_servers
from kserve.testing import Response, ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

X = np.array([[1, -2, 0.5, 4], [0, 1, -1, 2]], F32)
AVAILABLE = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


def started(directory: Path, *flags: str) -> ServerProcess:
    return ServerProcess("tfserver", "--model_dir", str(directory), "--model_name", "m", *flags)


def v2_input(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def infer(server: ServerProcess, *inputs: dict[str, Any], **more: Any) -> Response:
    return server.request("POST", "/v2/models/m/infer", {"inputs": list(inputs), **more})


def outputs(response: Response) -> dict[str, Any]:
    assert response.status == 200, response.body
    return {each["name"]: (each["shape"], each["data"]) for each in response.json()["outputs"]}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with started(save_words(tmp_path_factory.mktemp("words"))) as server:
        yield server


def test_serves_a_net_over_every_protocol_and_says_nothing_of_tensorflow(tmp_path: Path) -> None:
    expected = own(save(tmp_path, Net()), x=X)

    with started(tmp_path) as server:
        v1 = server.request("POST", "/v1/models/m:predict", {"instances": X.tolist()}).json()
        v2 = outputs(infer(server, v2_input("x", [2, 4], "FP32", X.ravel().tolist())))
        given = triton.InferInput("x", [2, 4], "FP32").set_data_from_numpy(X)
        binary = triton.InferenceServerClient(f"127.0.0.1:{server.port}").infer("m", [given])
        grpc_given = triton_grpc.InferInput("x", [2, 4], "FP32").set_data_from_numpy(X)
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            over_grpc = client.infer("m", [grpc_given])
            grpc_metadata = client.get_model_metadata("m", as_json=True)
        metadata = server.request("GET", "/v2/models/m").json()
        stderr = server.stderr

    logits, label = expected["logits"], expected["label"]
    predictions = v1["predictions"]
    np.testing.assert_array_equal(np.array([each["logits"] for each in predictions], F32), logits)
    assert [each["label"] for each in predictions] == label.tolist()
    assert v2["label"] == ([2], label.tolist())
    np.testing.assert_array_equal(np.array(v2["logits"][1], F32), logits.ravel())
    for answer in (binary, over_grpc):
        np.testing.assert_array_equal(answer.as_numpy("logits"), logits, strict=True)
        np.testing.assert_array_equal(answer.as_numpy("label"), label, strict=True)
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        ],
    }
    assert metadata == {
        "name": "m",
        "versions": ["1"],
        "platform": "tensorflow",
        **signature,
        "signatures": {"serving_default": signature},
    }
    assert grpc_metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    for line in stderr.splitlines():
        assert "kserve" in line, line


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            b'{"instances": ["ab", {"b64": "w6k="}]}',
            b'{"predictions":[{"first_bytes":{"b64":"YQ=="},"upper":"AB"},'
            b'{"first_bytes":{"b64":"ww=="},"upper":"\xc3\x89"}]}',
            id="rows",
        ),
        pytest.param(
            b'{"signature_name": "cut", "instances": [{"text": "abc", "n": 2}]}',
            b'{"predictions":["ab"]}',
            id="rows of several inputs",
        ),
        pytest.param(
            b'{"signature_name": "cut", "inputs": {"text": ["abc", "def"], "n": [1, 3]}}',
            b'{"outputs":["a","def"]}',
            id="columns",
        ),
        pytest.param(
            b'{"inputs": {"text": ["a"]}}',
            b'{"outputs":{"first_bytes":[{"b64":"YQ=="}],"upper":["A"]}}',
            id="columns of several outputs",
        ),
        pytest.param(b'{"signature_name": "count", "inputs": {}}', b'{"outputs":0}', id="nothing"),
        pytest.param(
            b'{"signature_name": "centred", "instances": [[0.2], [0.4]]}',
            b'{"predictions":[[-0.10000000000000003],[0.09999999999999998]]}',
            id="FP64",
        ),
    ],
)
def test_answers_in_the_form_of_the_request(
    words: ServerProcess, body: bytes, expected: bytes
) -> None:
    answer = words.request("POST", "/v1/models/m:predict", body)

    assert (answer.status, answer.body) == (200, expected)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param(
            b'{"signature_name": "none", "instances": [1]}',
            "the model has no signature 'none', it has 'add', 'centred', 'count', 'cut', "
            "'serving_default'",
            id="unknown signature",
        ),
        pytest.param(
            b'{"signature_name": "centred", "instances": [[1, 2], [3]]}',
            "input 'x': row 1 has 1 value, row 0 has 2 values",
            id="ragged",
        ),
        pytest.param(
            b'{"instances": ["a"], "inputs": ["a"]}',
            'Expected either "instances" or "inputs" in a JSON object, got both',
            id="both forms",
        ),
        pytest.param(
            b'{"signature_name": "cut", "instances": [{"text": "a"}]}',
            "expected inputs 'n', 'text': missing 'n'",
            id="missing input",
        ),
        pytest.param(b'{"instances": [null]}', "input 'text': expected text, got null", id="null"),
    ],
)
def test_says_what_is_wrong_with_a_request(words: ServerProcess, body: bytes, error: str) -> None:
    answer = words.request("POST", "/v1/models/m:predict", body)

    assert (answer.status, answer.json()) == (400, {"error": error})


def test_tells_state_and_signatures_as_tensorflow_serving(words: ServerProcess) -> None:
    status = words.request("GET", "/v1/models/m").json()
    metadata = words.request("GET", "/v1/models/m/metadata").json()
    v2 = words.request("GET", "/v2/models/m").json()

    assert status == {
        "name": "m",
        "ready": True,
        "model_version_status": [{"version": "1", **AVAILABLE}],
    }
    assert metadata["model_spec"] == {"name": "m", "signature_name": "", "version": "1"}
    definitions = metadata["metadata"]["signature_def"]["signature_def"]
    names = ["add", "centred", "count", "cut", "serving_default"]
    assert sorted(definitions) == sorted(v2["signatures"]) == names
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert definitions["cut"]["inputs"]["n"] == {
        "dtype": "DT_INT32",
        "tensor_shape": shape,
        "name": "cut_n:0",
    }


def test_every_signature_can_be_called_over_v2_and_grpc(words: ServerProcess) -> None:
    text, n = v2_input("text", [1], "BYTES", ["abc"]), v2_input("n", [1], "INT32", [2])
    chosen = {"parameters": {"signature_name": "cut"}}

    over_v2 = outputs(infer(words, n, text, **chosen))
    default = outputs(infer(words, text, outputs=[{"name": "upper"}]))
    wrong = infer(words, text, parameters={"signature_name": "none"})
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{words.grpc_port}") as client:
        x = triton_grpc.InferInput("x", [2, 1], "FP64")
        x.set_data_from_numpy(np.array([[1.0], [3.0]]))
        over_grpc = client.infer("m", [x], parameters={"signature_name": "centred"})

    assert over_v2 == {"cut": ([1], ["ab"])}
    assert default == {"upper": ([1], ["ABC"])}
    assert wrong.status == 400
    assert over_grpc.as_numpy("y").tolist() == [[-1.0], [1.0]]


def test_serves_versions_and_what_is_known_of_them(tmp_path: Path) -> None:
    for version, factor in (("0001", 2.0), ("3", 3.0)):
        spec = Spec([None], tf.float32, name="x")
        saved(tmp_path / version, lambda x, factor=factor: {"y": x * factor}, spec)
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "saved_model.pb").write_bytes(b"\x80\x04pickle")

    with started(tmp_path, "--max_versions", "all") as server:

        def predict(path: str) -> Any:
            answer = server.request("POST", f"/v1/models/m{path}:predict", {"instances": [1.5]})
            return answer.status, answer.json()

        newest, first, third = map(predict, ("", "/versions/1", "/versions/3"))
        missing, broken = predict("/versions/2"), predict("/versions/4")
        status = server.request("GET", "/v1/models/m").json()
        of_first = server.request("GET", "/v1/models/m/versions/1").json()
        metadata = server.request("GET", "/v1/models/m/versions/3/metadata").json()

    assert newest == third == (200, {"predictions": [4.5]})
    assert first == (200, {"predictions": [3.0]})
    assert (missing[0], broken[0]) == (404, 503)
    states = {each["version"]: each["state"] for each in status["model_version_status"]}
    assert list(states.items()) == [("4", "END"), ("3", "AVAILABLE"), ("1", "AVAILABLE")]
    assert of_first["model_version_status"] == [{"version": "1", **AVAILABLE}]
    assert metadata["model_spec"]["version"] == "3"


def test_requests_of_several_clients_run_together_and_a_culprit_fails_alone(
    tmp_path: Path,
) -> None:
    table = np.arange(10, dtype=F32).reshape(5, 2)
    spec = Spec([None], tf.int64, name="i")
    saved(tmp_path, lambda i: {"y": tf.gather(tf.constant(table), i)}, spec)
    answers: dict[int, Response] = {}
    flags = ("--max_batch_size", "4", "--max_batch_delay_ms", "60000")

    with started(tmp_path, *flags) as server:

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
    assert (answers[99].status, answers[99].json()["error"]) == (
        400,
        "the model cannot run on these inputs: indices[0] = 99 is not in [0, 5)",
    )
    # The one that all waited for, and its parts.
    assert 'kserve_batches_total{model_name="m",reason="full",runs_on="thread"} 1.0' in metrics
    assert 'reason="retry"' in metrics


def test_a_state_is_changed_by_requests_alone(tmp_path: Path) -> None:
    save_words(tmp_path)

    with started(tmp_path, "--signature_name", "add") as server:
        answers = [
            server.request("POST", "/v1/models/m:predict", body).json()
            for body in (b'{"inputs": 2}', b'{"inputs": {"n": 40}}')
        ]

    assert answers == [{"outputs": 2}, {"outputs": 42}]


def test_takes_every_flag_and_a_frozen_graph(tmp_path: Path) -> None:
    from tests.tfserver.models import save_frozen

    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        tf.multiply(x, 2.0, name="double")
        tf.multiply(x, 3.0, name="triple")

    save_frozen(tmp_path / "graph.pb", build)
    flags = ("--inputs", "x", "--outputs", "triple", "double", "--signature_name", "s")
    threads = ("--intra_op_threads", "1", "--inter_op_threads", "1", "--allow_lambda")

    with started(tmp_path, *flags, *threads) as server:
        answer = outputs(infer(server, v2_input("x", [1], "FP32", [1.5])))

    assert answer == {"triple": ([1], [4.5]), "double": ([1], [3.0])}


def test_a_failed_start_ends_with_the_reason(tmp_path: Path) -> None:
    (save(tmp_path, Net()) / "variables" / "variables.index").unlink()

    done = subprocess.run(
        [
            *(sys.executable, "-m", "tfserver", "--host", "127.0.0.1", "--http_port", "0"),
            *("--model_dir", str(tmp_path), "--model_dir_wait_s", "0"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "saved_model.pb: cannot be loaded: " in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_help_imports_no_framework() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['tfserver', '--help']\n"
        "try:\n"
        "    runpy.run_module('tfserver', run_name='__main__')\n"
        "except SystemExit:\n"
        "    print(sorted({'keras', 'tensorflow'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    for flag in ("--signature_name", "--intra_op_threads", "--outputs", "--allow_lambda"):
        assert any(flag in line for line in lines)


def test_the_server_of_a_directory_is_found_by_what_it_holds(tmp_path: Path) -> None:
    net = Net()
    for place in ("plain", "versions/1", "versions/2", "models/a", "models/b/1"):
        save(tmp_path / place, net)
    (tmp_path / "frozen").mkdir()
    (tmp_path / "frozen" / "graph.pb").write_bytes(b"")
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "model.keras").write_bytes(b"")
    servers = installed_servers()

    found = {
        path.name: dict(fitting_servers(path, servers.values())) for path in tmp_path.iterdir()
    }

    assert {"onnxserver", "tfserver"} <= set(servers)
    assert found == {
        "plain": {"tfserver": "saved_model.pb"},
        "versions": {"tfserver": "1/saved_model.pb"},
        "models": {"tfserver": "a/saved_model.pb"},
        "frozen": {"tfserver": "graph.pb"},
        "keras": {"tfserver": "model.keras"},
    }


def test_the_command_of_the_core_serves_a_directory_of_versions(tmp_path: Path) -> None:
    save(tmp_path / "1", Net())
    expected = own(tmp_path / "1", x=X)["label"].tolist()

    with ServerProcess("kserve", str(tmp_path), "--model_name", "m") as server:
        answer = server.request("POST", "/v1/models/m:predict", {"inputs": {"x": X.tolist()}})

    assert answer.json()["outputs"]["label"] == expected
