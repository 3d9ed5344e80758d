"""Finding the one artifact of a model directory."""

from pathlib import Path

import pytest

from kserve.artifact import find_artifact, list_model_directories, local_path
from kserve.errors import ModelLoadError, ModelMissingError

SUFFIXES = (".joblib", ".pkl", ".json")


def fill(directory: Path, *names: str) -> None:
    for name in names:
        if name.endswith("/"):
            (directory / name).mkdir()
        else:
            (directory / name).touch()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("/mnt/models", "/mnt/models", id="path"),
        pytest.param("models", "models", id="relative path"),
        pytest.param("file:///mnt/models", "/mnt/models", id="file address"),
        pytest.param("file://localhost/mnt/models", "/mnt/models", id="file address of this host"),
        pytest.param("file:///mnt/my%20models", "/mnt/my models", id="escaped"),
    ],
)
def test_gives_the_path_of_an_address(address: str, expected: str) -> None:
    assert local_path(address) == Path(expected)
    assert local_path(Path("/mnt/models")) == Path("/mnt/models")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        pytest.param(
            "s3://bucket/models",
            "model directory s3://bucket/models: expected a local directory, got s3://",
            id="another scheme",
        ),
        pytest.param(
            "file://mnt/models",
            "model directory file://mnt/models: expected file:///PATH, got the host mnt",
            id="two slashes",
        ),
    ],
)
def test_refuses_addresses_of_other_places(address: str, reason: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        local_path(address)

    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["model.joblib"], "model.joblib", id="alone"),
        pytest.param(["README.md", "model.PKL"], "model.PKL", id="upper case, beside others"),
        pytest.param(
            [".old.joblib", "..data/", "model.joblib"], "model.joblib", id="beside hidden ones"
        ),
        pytest.param(["a.joblib/", "model.pkl"], "model.pkl", id="beside a directory"),
        pytest.param(["model.json", "warmup.json"], "model.json", id="beside a warm-up request"),
    ],
)
def test_finds_the_only_artifact(tmp_path: Path, names: list[str], expected: str) -> None:
    fill(tmp_path, *names)

    assert find_artifact(tmp_path, SUFFIXES) == tmp_path / expected
    assert find_artifact(f"file://{tmp_path}", SUFFIXES) == tmp_path / expected


def test_requirements_are_no_artifact_of_their_suffix(tmp_path: Path) -> None:
    fill(tmp_path, "model.txt", "requirements.txt")

    assert find_artifact(tmp_path, (".txt",)) == tmp_path / "model.txt"


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(["my_model.py", "MODEL.PY", "model.pyc"], id="names that only look like it"),
        pytest.param(["warmup.json"], id="the warm-up request"),
    ],
)
def test_finds_a_file_by_its_whole_name(tmp_path: Path, others: list[str]) -> None:
    fill(tmp_path, "model.py", *others)

    assert find_artifact(tmp_path, ("model.py", ".json")) == tmp_path / "model.py"


def test_says_which_whole_name_is_expected(tmp_path: Path) -> None:
    fill(tmp_path, "my_model.py")

    with pytest.raises(ModelMissingError) as caught:
        find_artifact(tmp_path, ("model.py", ".mar"))

    assert str(caught.value) == (
        f"{tmp_path}: no model file, expected exactly one of model.py, *.mar; found my_model.py"
    )


@pytest.mark.parametrize(
    ("names", "found"),
    [
        pytest.param([], "nothing", id="empty"),
        pytest.param([".model.joblib"], "nothing", id="hidden"),
        pytest.param(["b.bst", "a.joblib/"], "a.joblib, b.bst", id="others"),
        pytest.param(
            [f"{letter}.txt" for letter in "abcdefghijkl"],
            "a.txt, b.txt, c.txt, d.txt, e.txt, f.txt, g.txt, h.txt, i.txt, j.txt and 2 more",
            id="many",
        ),
    ],
)
def test_a_missing_artifact_names_what_was_found_and_expected(
    tmp_path: Path, names: list[str], found: str
) -> None:
    fill(tmp_path, *names)

    with pytest.raises(ModelMissingError) as caught:
        find_artifact(tmp_path, SUFFIXES)

    assert str(caught.value) == (
        f"{tmp_path}: no model file, expected exactly one of *.joblib, *.pkl, *.json; found {found}"
    )


def test_several_artifacts_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "b.pkl", "a.joblib", "notes.txt")

    with pytest.raises(ModelLoadError) as caught:
        find_artifact(tmp_path, SUFFIXES)

    assert str(caught.value) == (
        f"{tmp_path}: More than one model file is detected, expected exactly one of "
        "*.joblib, *.pkl, *.json; found a.joblib, b.pkl"
    )


def test_a_directory_that_is_not_there_is_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError) as caught:
        find_artifact(tmp_path / "none", SUFFIXES)

    assert str(caught.value) == f"{tmp_path}/none: no such directory"


def test_a_file_is_no_model_directory(tmp_path: Path) -> None:
    fill(tmp_path, "model.joblib")

    with pytest.raises(ModelLoadError) as caught:
        find_artifact(tmp_path / "model.joblib", SUFFIXES)

    assert str(caught.value) == f"{tmp_path}/model.joblib: Not a directory"


def test_lists_visible_sub_directories_in_order(tmp_path: Path) -> None:
    fill(tmp_path, "b/", "a/", "..data/", "file")

    assert list_model_directories(str(tmp_path)) == ["a", "b"]


def test_of_several_artifacts_the_preferred_one_is_found(tmp_path: Path) -> None:
    fill(tmp_path, "encoder.pkl", "model.pkl")

    assert find_artifact(tmp_path, SUFFIXES, "model.pkl") == tmp_path / "model.pkl"
    with pytest.raises(ModelLoadError) as caught:
        find_artifact(tmp_path, SUFFIXES, "main.pkl")

    assert str(caught.value) == (
        f"{tmp_path}: More than one model file is detected, expected exactly one of "
        "*.joblib, *.pkl, *.json, or one named main.pkl; found encoder.pkl, model.pkl"
    )


def test_the_only_artifact_need_not_be_the_preferred_one(tmp_path: Path) -> None:
    fill(tmp_path, "encoder.pkl")

    assert find_artifact(tmp_path, SUFFIXES, "model.pkl") == tmp_path / "encoder.pkl"


def test_whole_name_wins_over_files_with_a_suffix(tmp_path: Path) -> None:
    fill(tmp_path, "config.json", "a.gguf", "b.gguf")

    assert find_artifact(tmp_path, ("config.json", ".gguf")) == tmp_path / "config.json"
    with pytest.raises(ModelLoadError):
        find_artifact(tmp_path, (".gguf",))
