import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from kserve.errors import ModelLoadError
from lgbserver.loading import load_booster

Trained = Callable[[str], Any]

DAMAGED = "the file is damaged, or holds no LightGBM model"


def refusal(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_booster(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_kind_of_model_is_loaded(tmp_path: Path, kind: str, booster: Trained) -> None:
    booster(kind).save_model(tmp_path / "model.txt")

    loaded = load_booster(tmp_path / "model.txt")

    assert loaded.model_to_string() == booster(kind).model_to_string()
    assert loaded.pandas_categorical == booster(kind).pandas_categorical


def test_a_model_needs_no_parameters(tmp_path: Path, booster: Trained) -> None:
    # As LightGBM before 2.2 wrote it.
    text = booster("number").model_to_string()
    trees = text.partition("\nparameters:")[0]

    assert load_booster(write(tmp_path / "model.txt", trees)).num_trees() == 6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(bytes(range(128)) * 40, DAMAGED, id="no model"),
        pytest.param(b"a,b\n1,2\n", DAMAGED, id="a table"),
        pytest.param(
            b'{"name": "tree", "version": "v4"}',
            "expected a LightGBM model, found JSON: save the model with Booster.save_model, or "
            "serve one of XGBoost with xgbserver",
            id="JSON",
        ),
        pytest.param(
            b"{L\0\0\0\0\0\0\0\x07learner",
            "expected a LightGBM model, found an XGBoost model: serve it with xgbserver",
            id="XGBoost",
        ),
        pytest.param(
            pickle.dumps([1]),
            "expected a LightGBM model, found a pickle: save the model with Booster.save_model",
            id="a pickle",
        ),
    ],
)
def test_names_what_is_no_model(tmp_path: Path, content: bytes, reason: str) -> None:
    assert refusal(write(tmp_path / "model.bst", content)) == reason


def test_names_the_data_that_a_model_trains_on(
    tmp_path: Path, features: NDArray[np.float64]
) -> None:
    data = lightgbm.Dataset(features, params={"verbosity": -1}).construct()
    data.save_binary(tmp_path / "model.bin")

    assert refusal(tmp_path / "model.bin") == (
        "expected a LightGBM model, found a LightGBM Dataset, the data that models train on: save "
        "the model with Booster.save_model"
    )


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_is_cut_off_anywhere_is_refused(tmp_path: Path, booster: Trained) -> None:
    booster("number").save_model(tmp_path / "whole.txt")
    whole = (tmp_path / "whole.txt").read_bytes()
    end = whole.index(b"end of parameters")
    lengths = np.linspace(4, end, 40).astype(int).tolist()

    reasons = {refusal(write(tmp_path / "model.txt", whole[:length])) for length in lengths}

    assert reasons == {
        "the file is cut off: it has no 'end of trees'",
        "the file is cut off: it has no 'end of parameters'",
    }


def test_categories_that_are_cut_off_are_refused(tmp_path: Path, booster: Trained) -> None:
    booster("categories").save_model(tmp_path / "whole.txt")
    whole = (tmp_path / "whole.txt").read_text().rstrip()
    path = write(tmp_path / "model.txt", whole[:-5])

    text = refusal(path)

    assert text.startswith("cannot be loaded (")
    assert text.endswith(DAMAGED)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_damaged_file_never_ends_the_process(tmp_path: Path, booster: Trained) -> None:
    random = np.random.default_rng(3)
    booster("number").save_model(tmp_path / "whole.txt")
    whole = (tmp_path / "whole.txt").read_bytes()
    n_ended = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.integers(5, whole.index(b"end of trees"))] = random.integers(256)
        try:
            load_booster(write(tmp_path / "model.txt", bytes(damaged)))
        except ModelLoadError as exc:
            n_ended += "it ends its process with SIG" in str(exc)

    assert n_ended > 5


def test_a_node_that_leads_nowhere_is_refused(tmp_path: Path, booster: Trained) -> None:
    booster("number").save_model(tmp_path / "whole.txt")
    whole = (tmp_path / "whole.txt").read_text()
    first, _, rest = whole.partition("\nleft_child=")
    size = first.rpartition("tree_sizes=")[2].split()[0]
    node = rest.split(" ")[0]
    # Of the same length, as the sizes of the trees are in the file.
    damaged = rest.replace(node, "9" * len(node), 1)
    assert size.isdigit()

    text = refusal(write(tmp_path / "model.txt", f"{first}\nleft_child={damaged}"))

    assert text.startswith("cannot be loaded (")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.txt") == "cannot be read (No such file or directory)"


def test_nothing_is_printed(
    tmp_path: Path, booster: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    booster("categories").save_model(tmp_path / "model.txt")

    load_booster(tmp_path / "model.txt")

    assert capfd.readouterr() == ("", "")
