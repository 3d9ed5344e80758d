import io
import logging
import pickle
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from kserve.errors import ModelLoadError
from xgbserver.loading import load_model

Trained = Callable[[str], Any]
Features = NDArray[np.float32]

DAMAGED = "the file is damaged, or holds no XGBoost model"


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(path, nthread=1, **options)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def raw(booster: Any, raw_format: str) -> bytes:
    """Give a booster as bytes, in the old format without the warning that it is old."""
    with xgboost.config_context(verbosity=0):
        return bytes(booster.save_raw(raw_format))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("raw_format", ["ubj", "json", "deprecated"])
@pytest.mark.parametrize("name", ["model.bst", "model.json", "model.ubj", "MODEL.BST"])
def test_loads_every_format_under_the_names_that_xgboost_reads_it_by(
    tmp_path: Path, booster: Trained, features: Features, name: str, raw_format: str
) -> None:
    trained = booster("named")
    path = write(tmp_path / name, raw(trained, raw_format))
    if name.lower() != "model.bst" and raw_format != Path(name).suffix[1:]:
        refusal(path)
        return

    loaded = load_model(path, nthread=1)

    data = xgboost.DMatrix(features, feature_names=trained.feature_names)
    np.testing.assert_array_equal(loaded.predict(data), trained.predict(data))


def test_every_kind_of_model_is_loaded(tmp_path: Path, kind: str, booster: Trained) -> None:
    booster(kind).save_model(tmp_path / "model.ubj")

    loaded = load_model(tmp_path / "model.ubj", nthread=1)

    assert loaded.save_raw("json") == booster(kind).save_raw("json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(bytes(range(256)) * 40, DAMAGED, id="no model"),
        pytest.param(
            b"tree\nversion=v4\n",
            "expected an XGBoost model, found a LightGBM model: serve it with lgbserver",
            id="LightGBM",
        ),
        pytest.param(
            b"______LightGBM_Binary_File_Token______\n\0",
            "expected an XGBoost model, found a LightGBM Dataset, the data that models train on",
            id="a LightGBM Dataset",
        ),
        pytest.param(
            pickle.dumps([1]),
            "expected an XGBoost model, found a pickle: name it .pkl, or save the model with "
            "Booster.save_model",
            id="a pickle",
        ),
        pytest.param(
            b"\x1f\x8b\x08",
            "expected an XGBoost model, found a gzip archive: unpack it",
            id="gzip",
        ),
    ],
)
def test_names_what_is_no_model(tmp_path: Path, content: bytes, reason: str) -> None:
    assert refusal(write(tmp_path / "model.bst", content)) == reason


def test_names_the_data_that_a_model_trains_on(tmp_path: Path, features: Features) -> None:
    xgboost.DMatrix(features).save_binary(tmp_path / "model.bst")

    assert refusal(tmp_path / "model.bst") == (
        "expected an XGBoost model, found a DMatrix, the data that models train on"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b'{"learner": {"attrib', "Expecting", id="cut off"),
        pytest.param(b'{"a": [1, 2]}', "Invalid cast", id="other JSON"),
        pytest.param(b'{"version": [3, 0, 5], "learner": {}}', "", id="a learner of nothing"),
    ],
)
def test_names_what_is_wrong_with_json(tmp_path: Path, content: bytes, reason: str) -> None:
    text = refusal(write(tmp_path / "model.json", content))

    assert text.startswith("cannot be loaded (")
    assert text.endswith(f"): {DAMAGED}")
    assert reason in text


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("raw_format", ["ubj", "json", "deprecated"])
def test_what_is_cut_off_anywhere_is_refused(
    tmp_path: Path, booster: Trained, raw_format: str
) -> None:
    whole = raw(booster("number"), raw_format)
    lengths = np.linspace(1, len(whole) - 1, 40).astype(int).tolist()

    texts = [refusal(write(tmp_path / "model.bst", whole[:length])) for length in lengths]

    assert all(DAMAGED in text for text in texts)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_damaged_file_never_ends_the_process(tmp_path: Path, booster: Trained) -> None:
    random = np.random.default_rng(3)
    n_refused = 0
    for raw_format in ("ubj", "deprecated"):
        whole = raw(booster("number"), raw_format)
        for _ in range(40):
            damaged = bytearray(whole)
            for position in random.integers(0, len(whole), 4):
                damaged[position] = random.integers(256)
            try:
                load_model(write(tmp_path / "model.bst", bytes(damaged)), nthread=1)
            except ModelLoadError:
                n_refused += 1

    # Others have another number in the place of one.
    assert n_refused > 10


def test_a_node_that_leads_nowhere_is_refused(tmp_path: Path, booster: Trained) -> None:
    whole = raw(booster("one tree"), "json")
    start = whole.index(b'"left_children":[') + len(b'"left_children":[')
    end = whole.index(b",", start)
    damaged = whole[:start] + b"123456789" + whole[end:]

    text = refusal(write(tmp_path / "model.json", damaged))

    assert text.startswith("cannot be loaded (")


def test_the_old_binary_format_needs_its_name(tmp_path: Path, booster: Trained) -> None:
    path = write(tmp_path / "model.ubj", raw(booster("number"), "deprecated"))

    assert refusal(path) == (
        "the binary format of XGBoost before 2.1: name the file .bst, or save the model again with "
        "XGBoost 3.0"
    )


def test_a_newer_xgboost_tells_how_to_save_the_old_binary_format_again(
    tmp_path: Path, booster: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model.bst", raw(booster("number"), "deprecated"))
    monkeypatch.setattr(metadata, "version", lambda name: "3.1.2")

    assert refusal(path) == (
        "the binary format of XGBoost before 2.1, which XGBoost 3.1.2 does not read: load it with "
        "XGBoost 3.0 and save it again as .ubj or .json"
    )


def test_what_xgboost_says_while_it_loads_is_logged(
    tmp_path: Path, booster: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "model.bst", raw(booster("number"), "deprecated"))

    with caplog.at_level(logging.WARNING):
        load_model(path, nthread=1)

    assert all(message.startswith("model.bst: ") for message in caplog.messages)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.ubj") == "cannot be read (No such file or directory)"


# Pickles.


@pytest.fixture
def classifier(features: Features, labels: dict[str, NDArray[Any]]) -> Any:
    return xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(features, labels["classes"])


@pytest.mark.parametrize("name", ["model.joblib", "model.pkl", "model.pickle"])
def test_a_pickle_is_refused_unless_it_is_trusted(
    tmp_path: Path, classifier: Any, features: Features, name: str
) -> None:
    if name == "model.joblib":
        joblib.dump(classifier, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(classifier))

    assert refusal(tmp_path / name) == (
        "refused, because a pickle can run any code: start with --allow_pickle or "
        "KSERVE_ALLOW_PICKLE=true if you trust the source, or save the model with save_model as "
        ".ubj or .json"
    )
    loaded = load_model(tmp_path / name, nthread=1, allow_pickle=True)
    np.testing.assert_array_equal(loaded.predict(features), classifier.predict(features))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            lambda: [1, 2],
            "expected a model of XGBoost, found an object of builtins.list; a pipeline of "
            "scikit-learn is served by sklearnserver",
            id="a list",
        ),
        pytest.param(
            lambda: make_pipeline(LinearRegression()),
            "expected a model of XGBoost, found an object of sklearn.pipeline.Pipeline; a pipeline "
            "of scikit-learn is served by sklearnserver",
            id="a pipeline",
        ),
    ],
)
def test_names_what_a_pickle_holds(tmp_path: Path, make: Callable[[], Any], reason: str) -> None:
    path = write(tmp_path / "model.pkl", pickle.dumps(make()))

    assert refusal(path, allow_pickle=True) == reason


def test_a_pickle_that_is_cut_off_is_refused(tmp_path: Path, classifier: Any) -> None:
    buffer = io.BytesIO()
    joblib.dump(classifier, buffer)
    path = write(tmp_path / "model.joblib", buffer.getvalue()[:-100])

    text = refusal(path, allow_pickle=True)

    assert text.startswith("cannot be loaded (")
    assert text.endswith(DAMAGED)


def test_a_pickle_that_ends_its_process_ends_a_trial(tmp_path: Path) -> None:
    # GLOBAL os abort, no arguments, REDUCE.
    path = write(tmp_path / "model.pkl", b"cos\nabort\n(tR.")

    assert refusal(path, allow_pickle=True) == (
        f"cannot be loaded (it ends its process with SIGABRT): {DAMAGED}"
    )
