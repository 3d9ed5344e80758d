"""The server as a process: every wire gives XGBoost's own values, and bad artifacts end it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
import xgboost
from numpy.typing import NDArray

from kserve.testing import ServerProcess

Trained = Callable[[str], Any]
Features = NDArray[np.float32]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

# Each with a server of its own.
KINDS = ("named", "classes", "targets", "dart", "categories")
METHODS = {
    "output-0": {},
    "margin": {"output_margin": True},
    "contributions": {"pred_contribs": True},
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
                booster(kind).save_model(folder / kind / "model.ubj")
            server = ServerProcess("xgbserver", "--model_dir", str(folder))
            started.append(server.__enter__())
        return started[0]

    yield start
    for server in started:
        server.__exit__(None, None, None)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rows(kind: str, features: Features, categorical: pd.DataFrame) -> Features:
    """Give rows as the server takes them: some values missing, categories as codes."""
    if kind != "categories":
        return features
    codes = [categorical[name].cat.codes.replace(-1, np.nan) for name in ("colour", "size")]
    return np.column_stack([categorical["age"], *codes]).astype(np.float32)


@pytest.fixture
def expected(
    kind: str, booster: Trained, features: Features, categorical: pd.DataFrame
) -> dict[str, NDArray[Any]]:
    trained = booster(kind)
    data = (
        xgboost.DMatrix(categorical, enable_categorical=True)
        if kind == "categories"
        else xgboost.DMatrix(features, feature_names=trained.feature_names)
    )
    return {name: trained.predict(data, **options) for name, options in METHODS.items()}


def nulls(rows: Features) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in rows.tolist()]


def test_v1_gives_the_values_of_xgboost(
    servers: Callable[..., ServerProcess],
    kind: str,
    booster: Trained,
    rows: Features,
    expected: dict[str, NDArray[Any]],
) -> None:
    server = servers(booster)

    answer = server.request("POST", f"/v1/models/{kind}:predict", {"instances": nulls(rows)})

    assert answer.json() == {"predictions": expected["output-0"].tolist()}


def test_v2_json_gives_the_values_of_xgboost(
    servers: Callable[..., ServerProcess],
    kind: str,
    booster: Trained,
    rows: Features,
    expected: dict[str, NDArray[Any]],
) -> None:
    server = servers(booster)
    tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": nulls(rows)}
    outputs = [{"name": name} for name in METHODS]

    answer = server.request(
        "POST", f"/v2/models/{kind}/infer", {"inputs": [tensor], "outputs": outputs}
    )

    given = {output["name"]: output for output in answer.json()["outputs"]}
    assert list(given) == list(METHODS)
    for name, array in expected.items():
        assert (given[name]["datatype"], given[name]["shape"]) == ("FP32", list(array.shape))
        assert given[name]["data"] == array.ravel().tolist()


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_binary_tensors_give_the_values_of_xgboost(
    servers: Callable[..., ServerProcess],
    kind: str,
    booster: Trained,
    rows: Features,
    expected: dict[str, NDArray[Any]],
    wire: str,
) -> None:
    server = servers(booster)
    client, port = (http_client, server.port) if wire == "http" else (grpc_client, server.grpc_port)
    tensor = client.InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    outputs = [client.InferRequestedOutput(name) for name in METHODS]

    with client.InferenceServerClient(f"127.0.0.1:{port}") as connection:
        answer = connection.infer(kind, [tensor], outputs=outputs)

    for name, array in expected.items():
        given = answer.as_numpy(name)
        assert (given.dtype, given.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(given, array)


def test_v1_explains(
    servers: Callable[..., ServerProcess], booster: Trained, features: Features
) -> None:
    server = servers(booster)
    trained = booster("named")

    answer = server.request("POST", "/v1/models/named:explain", {"instances": nulls(features[:2])})

    data = xgboost.DMatrix(features[:2], feature_names=trained.feature_names)
    names = [*trained.feature_names, "bias_"]
    assert answer.json() == {
        "explanations": [
            dict(zip(names, row.tolist(), strict=True))
            for row in trained.predict(data, pred_contribs=True)
        ]
    }


def start(folder: Path, *flags: str) -> ServerProcess:
    arguments = ("--model_dir", str(folder), "--model_dir_wait_s", "0", *flags)
    return ServerProcess("xgbserver", *arguments)


def reason_of(server: ServerProcess) -> str:
    with pytest.raises(RuntimeError, match="did not start"), server:
        pass
    assert server.process.returncode == 1
    return server.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        pytest.param("model.ubj", lambda whole: b"", "the file is empty", id="empty"),
        pytest.param(
            "model.ubj",
            lambda whole: whole[:200],
            "the file is damaged, or holds no XGBoost model",
            id="cut off",
        ),
        pytest.param(
            "model.bst",
            lambda whole: b"tree\nversion=v4\n",
            "expected an XGBoost model, found a LightGBM model: serve it with lgbserver",
            id="LightGBM",
        ),
        pytest.param(
            "model.pkl",
            lambda whole: whole,
            "or save the model with save_model as .ubj or .json",
            id="a pickle",
        ),
        pytest.param(
            "notes.md",
            lambda whole: whole,
            "expected exactly one of *.bst, *.json, *.ubj, *.joblib, *.pkl, *.pickle; found "
            "notes.md",
            id="none",
        ),
    ],
)
def test_an_artifact_that_cannot_be_served_ends_the_start(
    tmp_path: Path, booster: Trained, name: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    (tmp_path / name).write_bytes(change(bytes(booster("number").save_raw("ubj"))))

    line = reason_of(start(tmp_path))

    assert line.startswith(f"xgbserver: {tmp_path}")
    assert line.endswith(reason)


def test_a_method_that_the_model_lacks_ends_the_start(tmp_path: Path, booster: Trained) -> None:
    booster("linear").save_model(tmp_path / "model.json")

    line = reason_of(start(tmp_path, "--method", "leaf"))

    assert "has no method leaf (gblinear does not support prediction of leaf index)" in line


def test_a_damaged_model_beside_a_good_one_is_unavailable(
    tmp_path: Path, booster: Trained, features: Features
) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        booster("number").save_model(tmp_path / name / "model.ubj")
    whole = (tmp_path / "bad" / "model.ubj").read_bytes()
    # Of those that make XGBoost itself end the process.
    (tmp_path / "bad" / "model.ubj").write_bytes(whole[: len(whole) // 2])
    body = {"instances": nulls(features[:1])}

    with start(tmp_path) as server:
        good = server.request("POST", "/v1/models/good:predict", body)
        bad = server.request("POST", "/v1/models/bad:predict", body)

    assert (good.status, bad.status) == (200, 503)
    assert "is not ready" in bad.json()["error"]
