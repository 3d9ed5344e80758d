"""The server as a process: every wire gives LightGBM's own values, and bad artifacts end it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from numpy.typing import NDArray

from kserve.testing import ServerProcess

Trained = Callable[[str], Any]
Features = NDArray[np.float64]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

KINDS = ("named", "classes", "dart", "categories")
METHODS: dict[str, dict[str, bool]] = {
    "output-0": {},
    "raw_score": {"raw_score": True},
    "leaf": {"pred_leaf": True},
    "contributions": {"pred_contrib": True},
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ServerProcess]]:
    """Serve all kinds of models from one process, each under the name of its kind."""
    started: list[ServerProcess] = []

    def start(booster: Trained) -> ServerProcess:
        if not started:
            folder = tmp_path_factory.mktemp("models")
            for kind in KINDS:
                (folder / kind).mkdir()
                booster(kind).save_model(folder / kind / "model.txt")
            server = ServerProcess("lgbserver", "--model_dir", str(folder))
            started.append(server.__enter__())
        return started[0]

    yield start
    for server in started:
        server.__exit__(None, None, None)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(kind: str, features: Features, categorical: pd.DataFrame) -> Any:
    """Give what LightGBM predicts for."""
    return categorical if kind == "categories" else features


@pytest.fixture
def expected(kind: str, booster: Trained, data: Any) -> dict[str, NDArray[Any]]:
    return {name: booster(kind).predict(data, **options) for name, options in METHODS.items()}


def columns_of(data: Any, names: list[str]) -> dict[str, list[Any]]:
    """Give named columns of plain values, None where one is missing."""
    frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(data, columns=names)
    return {
        name: [None if pd.isna(value) else value for value in frame[name].tolist()]
        for name in names
    }


def test_v1_gives_the_values_of_lightgbm(
    servers: Callable[..., ServerProcess],
    kind: str,
    booster: Trained,
    data: Any,
    expected: dict[str, NDArray[Any]],
) -> None:
    server = servers(booster)
    columns = columns_of(data, booster(kind).feature_name())
    rows = [list(row) for row in zip(*columns.values(), strict=True)]

    by_name = server.request("POST", f"/v1/models/{kind}:predict", {"inputs": columns})
    by_position = server.request("POST", f"/v1/models/{kind}:predict", {"instances": rows})

    for answer in (by_name, by_position):
        assert answer.json() == {"predictions": expected["output-0"].tolist()}


def test_v2_json_gives_the_values_of_lightgbm(
    servers: Callable[..., ServerProcess],
    kind: str,
    booster: Trained,
    data: Any,
    expected: dict[str, NDArray[Any]],
) -> None:
    server = servers(booster)
    tensors = [
        {"name": name, "shape": [len(values)], "datatype": "FP64", "data": values}
        for name, values in columns_of(data, booster(kind).feature_name()).items()
    ]
    for tensor in tensors:
        if any(isinstance(value, str) for value in tensor["data"]):
            # V2 has no missing text: one that training has not seen is missing, too.
            tensor |= {"datatype": "BYTES", "data": [text or "" for text in tensor["data"]]}
        elif any(isinstance(value, bool) for value in tensor["data"]):
            tensor |= {"datatype": "BOOL"}
    outputs = [{"name": name} for name in METHODS]

    answer = server.request(
        "POST", f"/v2/models/{kind}/infer", {"inputs": tensors, "outputs": outputs}
    )

    given = {output["name"]: output for output in answer.json()["outputs"]}
    assert list(given) == list(METHODS)
    for name, array in expected.items():
        datatype = "INT32" if name == "leaf" else "FP64"
        assert (given[name]["datatype"], given[name]["shape"]) == (datatype, list(array.shape))
        assert given[name]["data"] == array.ravel().tolist()


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_binary_tensors_give_the_values_of_lightgbm(
    servers: Callable[..., ServerProcess],
    kind: str,
    booster: Trained,
    data: Any,
    expected: dict[str, NDArray[Any]],
    wire: str,
) -> None:
    server = servers(booster)
    client, port = (http_client, server.port) if wire == "http" else (grpc_client, server.grpc_port)
    inputs = []
    for name, values in columns_of(data, booster(kind).feature_name()).items():
        if any(isinstance(value, str) for value in values):
            array = np.array([(text or "").encode() for text in values], object)
        else:
            array = np.array(values, np.float64)
        datatype = "BYTES" if array.dtype == object else "FP64"
        tensor = client.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [client.InferRequestedOutput(name) for name in METHODS]

    with client.InferenceServerClient(f"127.0.0.1:{port}") as connection:
        answer = connection.infer(kind, inputs, outputs=outputs)

    for name, array in expected.items():
        given = answer.as_numpy(name)
        assert (given.dtype, given.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(given, array)


def test_v1_explains(
    servers: Callable[..., ServerProcess], booster: Trained, features: Features
) -> None:
    server = servers(booster)
    rows = np.nan_to_num(features[:2])

    answer = server.request("POST", "/v1/models/named:explain", {"instances": rows.tolist()})

    names = ["age", "height", "bias", "x_y", "bias_"]
    assert answer.json() == {
        "explanations": [
            dict(zip(names, row.tolist(), strict=True))
            for row in booster("named").predict(rows, pred_contrib=True)
        ]
    }


def start(folder: Path, *flags: str) -> ServerProcess:
    arguments = ("--model_dir", str(folder), "--model_dir_wait_s", "0", *flags)
    return ServerProcess("lgbserver", *arguments)


def reason_of(server: ServerProcess) -> str:
    with pytest.raises(RuntimeError, match="did not start"), server:
        pass
    assert server.process.returncode == 1
    return server.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        pytest.param("model.txt", lambda whole: b"", "the file is empty", id="empty"),
        pytest.param(
            "model.bst",
            lambda whole: whole[:1500],
            "the file is cut off: it has no 'end of trees'",
            id="cut off",
        ),
        pytest.param(
            "model.txt",
            # A size that is not that of the tree.
            lambda whole: whole.replace(b"tree_sizes=", b"tree_sizes=9", 1),
            "the file is damaged, or holds no LightGBM model",
            id="damaged",
        ),
        pytest.param(
            "model.bst",
            lambda whole: b'{"learner":{}}',
            "or serve one of XGBoost with xgbserver",
            id="XGBoost",
        ),
        pytest.param(
            "notes.md",
            lambda whole: whole,
            "expected exactly one of *.txt, *.bin, *.bst; found notes.md",
            id="none",
        ),
    ],
)
def test_an_artifact_that_cannot_be_served_ends_the_start(
    tmp_path: Path, booster: Trained, name: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    (tmp_path / name).write_bytes(change(booster("number").model_to_string().encode()))

    line = reason_of(start(tmp_path))

    assert line.startswith(f"lgbserver: {tmp_path}")
    assert line.endswith(reason)


def test_a_dataset_ends_the_start_by_name(tmp_path: Path, features: Features) -> None:
    data = lightgbm.Dataset(features, params={"verbosity": -1}).construct()
    data.save_binary(tmp_path / "model.bin")

    assert "found a LightGBM Dataset, the data that models train on" in reason_of(start(tmp_path))


def test_the_command_line_says_how_to_serve(
    tmp_path: Path, booster: Trained, features: Features
) -> None:
    booster("classes").save_model(tmp_path / "model.txt")
    rows = np.nan_to_num(features[:2])
    flags = ("--nthread", "-1", "--method", "raw_score", "--num_iteration", "2")

    with start(tmp_path, *flags) as server:
        answer = server.request("POST", "/v1/models/model:predict", {"instances": rows.tolist()})
        metadata = server.request("GET", "/v2/models/model").json()

    values = booster("classes").predict(rows, raw_score=True, num_iteration=2)
    assert answer.json() == {"predictions": values.tolist()}
    assert metadata["platform"] == "lightgbm"
    assert metadata["outputs"] == [{"name": "output-0", "datatype": "FP64", "shape": [-1, 3]}]
