"""The model that is made of a directory, and what goes with it."""

import argparse
import gc
import os
import sys
import time
import weakref
from pathlib import Path

import pytest

from kserve.errors import ModelLoadError
from pythonserver import PythonModel, make_model

MODEL = "import kserve, helpers\nclass M(kserve.Model):\n    def load(self):\n        return True\n"


def write(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "model.py").write_text(MODEL)
    (directory / "helpers.py").touch()
    return directory


def modules(directory: Path) -> list[str]:
    found = [
        (name, getattr(module, "__file__", None)) for name, module in list(sys.modules.items())
    ]
    return [name for name, file in found if file and Path(file).parent == directory]


@pytest.mark.parametrize("is_loaded", [True, False])
def test_the_modules_go_with_the_model(tmp_path: Path, is_loaded: bool) -> None:
    model = make_model("m", str(write(tmp_path)))
    if is_loaded:
        model.load()
    before, reference = modules(tmp_path), weakref.ref(model)

    del model
    gc.collect()

    assert len(before) == 2
    assert reference() is None
    deadline = time.monotonic() + 30
    while modules(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_model_that_fails_leaves_no_modules(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.py").write_text("import helpers\n1 / 0\n")

    with pytest.raises(ModelLoadError):
        make_model("m", str(tmp_path))

    assert modules(tmp_path) == []


def test_load_is_the_users_own_and_may_be_called_again(tmp_path: Path) -> None:
    model = make_model("m", str(write(tmp_path)))

    assert model.load() is True
    assert "load" not in vars(model)
    assert model.load() is True


@pytest.mark.parametrize("model_dir", ["{}", "file://{}"])
@pytest.mark.parametrize(
    ("served", "stays"), [pytest.param("", True, id="one"), pytest.param("m", False, id="several")]
)
def test_the_process_stays_in_the_directory_of_a_single_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_dir: str, served: str, stays: bool
) -> None:
    monkeypatch.chdir("/")
    directory = write(tmp_path / served)
    args = argparse.Namespace(
        model_dir=model_dir.format(tmp_path), model_class=None, install_requirements=False
    )

    PythonModel.from_args("m", str(directory), args)

    assert os.getcwd() == (str(directory) if stays else "/")
