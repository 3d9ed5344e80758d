"""Modules of one model: its own files first, seen by nobody else."""

import gc
import importlib
import io
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pythonserver import namespace
from pythonserver.namespace import Namespace

Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Write files into a folder, and import its `model.py` in a namespace of its own."""
    spaces: list[Namespace] = []

    def load(folder: str = "m", **files: str) -> ModuleType:
        for name, text in files.items():
            path = tmp_path / folder / f"{name.replace('_in_', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        spaces.append(Namespace(tmp_path / folder, folder))
        return spaces[-1].load()

    yield load
    for space in spaces:
        space.close()


def run_script(folder: Path, code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=60)


IMPORTS = [
    pytest.param("import helpers\nvalue = helpers.VALUE", id="import"),
    pytest.param("import helpers as h\nvalue = h.VALUE", id="import as"),
    pytest.param("from helpers import VALUE as value", id="from"),
    pytest.param("from helpers import *\nvalue = VALUE", id="star"),
    pytest.param("from . import helpers\nvalue = helpers.VALUE", id="relative"),
    pytest.param("from .helpers import VALUE as value", id="from relative"),
    pytest.param("import package.part\nvalue = package.part.VALUE", id="submodule"),
    pytest.param("import package.part as p\nvalue = p.VALUE", id="submodule as"),
    pytest.param("from package import part\nvalue = part.VALUE", id="submodule from"),
    pytest.param("from package.part import VALUE as value", id="from submodule"),
    pytest.param("from package.user import VALUE as value", id="module that imports"),
    pytest.param("from folder.part import VALUE as value", id="folder without __init__"),
    pytest.param(
        "import importlib\nvalue = importlib.import_module('helpers').VALUE", id="import_module"
    ),
    pytest.param(
        "import importlib\nvalue = importlib.import_module('package.part').VALUE",
        id="import_module of a submodule",
    ),
    pytest.param("value = __import__('helpers').VALUE", id="__import__"),
]


@pytest.mark.parametrize("code", IMPORTS)
def test_files_beside_it_are_importable_and_its_own(load: Load, code: str) -> None:
    def files(value: int) -> dict[str, str]:
        return {
            "model": code,
            "helpers": f"VALUE = {value}",
            "package_in___init__": "",
            "package_in_part": f"VALUE = {value}",
            "package_in_user": "import helpers\nfrom package.part import VALUE\n"
            "assert helpers.VALUE == VALUE",
            "folder_in_part": f"VALUE = {value}",
        }

    first, second = load("first", **files(1)), load("second", **files(2))

    assert (first.value, second.value) == (1, 2)


def test_an_import_when_a_function_is_called_is_its_own_on_any_thread(load: Load) -> None:
    code = "def value():\n    import helpers\n    return helpers.VALUE"
    models = [load(f"m{i}", model=code, helpers=f"VALUE = {i}") for i in range(2)]
    found: list[list[int]] = [[], []]
    threads = [
        threading.Thread(target=lambda i=i: found[i].append(models[i].value())) for i in (1, 0)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [[0], [1]]


def test_a_model_does_not_see_the_modules_of_another(load: Load) -> None:
    load("first", model="import only_here", only_here="")

    with pytest.raises(ModuleNotFoundError, match="only_here"):
        load("second", model="import only_here")


def test_what_one_imports_by_a_text_another_does_not_see(load: Load) -> None:
    load("first", model="import importlib\nimportlib.import_module('only_here')", only_here="")

    with pytest.raises(ModuleNotFoundError, match="only_here"):
        load("second", model="import only_here")


def test_nobody_else_sees_the_modules_of_a_model(load: Load) -> None:
    load("first", model="import only_here", only_here="")
    load("second", model="", only_here="")

    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("only_here")
    assert "only_here" not in sys.modules


def test_its_files_come_before_installed_modules_for_its_own_code_alone(load: Load) -> None:
    model = load(model="import queue, colorsys\nvalue = queue.VALUE", queue="VALUE = 5")

    import queue

    assert model.value == 5
    assert not hasattr(queue, "VALUE")


def test_a_folder_of_data_does_not_hide_an_installed_module(load: Load) -> None:
    model = load(model="import json\nvalue = json.loads('3')", json_in_data="")

    assert model.value == 3


def test_two_modules_that_import_one_another(load: Load) -> None:
    model = load(
        model="import helpers\nVALUE = 4\nvalue = helpers.get()",
        helpers="def get():\n    import model\n    return model.VALUE",
    )

    assert model.value == 4


def test_a_dataclass_and_its_types_find_their_module(load: Load) -> None:
    model = load(
        model="from __future__ import annotations\n"
        "import dataclasses, typing\n"
        "@dataclasses.dataclass\n"
        "class Point:\n"
        "    x: typing.ClassVar[int] = 1\n"
        "    y: Other | None = None\n"
        "class Other: pass\n"
        "fields = [f.name for f in dataclasses.fields(Point)]\n"
        "hints = typing.get_type_hints(Point)\n"
    )

    assert model.fields == ["y"]
    assert model.hints["y"] == model.Other | None


@pytest.mark.parametrize(
    ("module", "make"),
    [
        pytest.param("helpers", "import helpers; made = helpers.Thing()", id="a helper's class"),
        pytest.param("model", "import model; made = model.Thing()", id="a class of model.py"),
        pytest.param(
            "model",
            "import __main__\nclass Thing: pass\nmade = Thing()",
            id="a class of a script, which model.py has too",
        ),
        pytest.param(
            "package.part", "import package.part; made = package.part.Thing()", id="a submodule's"
        ),
    ],
)
@pytest.mark.parametrize("loader", ["pickle", "pickle._loads"])
def test_a_pickle_finds_the_classes_of_the_model_that_loads_it(
    load: Load, tmp_path: Path, module: str, make: str, loader: str
) -> None:
    thing = "class Thing:\n    VALUE = {}\n"
    call = "pickle._loads" if loader == "pickle._loads" else "pickle.loads"
    models = []
    for value, name in enumerate(("first", "second")):
        files = {
            "helpers": thing.format(value),
            "package_in___init__": "",
            "package_in_part": thing.format(value),
            "model": thing.format(value) + f"def read():\n    import pickle\n"
            f"    with open('thing.pkl', 'rb') as file:\n        return {call}(file.read())\n",
        }
        models.append(load(name, **files))
        run_script(
            tmp_path / name,
            f"import pickle\n{make}\npickle.dump(made, open('thing.pkl', 'wb'))",
        )

    things = [model.read() for model in models]
    again = models[0].read()

    assert [type(thing).VALUE for thing in things] == [0, 1]
    assert type(again) is type(things[0])
    if module == "model":
        assert [type(thing) for thing in things] == [model.Thing for model in models]


def test_a_pickle_is_found_its_class_on_a_thread_of_a_library_if_one_model_has_it(
    load: Load,
) -> None:
    load(model="import unlike", unlike="class Thing:\n    VALUE = 1")
    data = b"cunlike\nThing\n."

    found = pickle.loads(data)
    load("other", model="import unlike", unlike="class Thing:\n    VALUE = 2")

    assert found.VALUE == 1
    with pytest.raises(AttributeError, match="Thing"):
        pickle.Unpickler(io.BytesIO(data)).load()


def test_objects_of_its_classes_can_be_pickled_and_read_again(load: Load) -> None:
    model = load(
        model="import pickle\nclass Thing: pass\nthing = pickle.loads(pickle.dumps(Thing()))"
    )

    assert type(model.thing) is model.Thing


def test_it_opens_files_beside_it_by_relative_path(load: Load, tmp_path: Path) -> None:
    code = "def read():\n    with open('words.txt') as file:\n        return file.read()"
    models = [load(name, model=code) for name in ("first", "second")]
    for name in ("first", "second"):
        (tmp_path / name / "words.txt").write_text(name)

    assert [model.read() for model in models] == ["first", "second"]


def test_a_second_load_sees_each_edit_and_the_first_keeps_its_modules(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    code = "import helpers\ndef value():\n    import helpers, late\n    return helpers.VALUE"
    first = load(model=code, helpers="VALUE = 1", late="")
    # Of the same size, and in the same second.
    second = load(model=code, helpers="VALUE = 2", late="")

    assert (first.value(), second.value()) == (1, 2)
    assert not list(tmp_path.rglob("__pycache__"))


def test_what_is_closed_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(sys.modules)
    (tmp_path / "model.py").write_text(
        "import helpers, importlib\nimportlib.import_module('helpers')"
    )
    (tmp_path / "helpers.py").touch()
    space = Namespace(tmp_path, "m")
    space.load()
    package = space.package

    space.close()
    gc.collect()

    assert set(sys.modules) - before == set()
    assert not [name for name in sys.modules if name.startswith(package)]


def test_closing_one_leaves_what_another_shares(load: Load, tmp_path: Path) -> None:
    code = "import importlib\nhelpers = importlib.import_module('helpers')"
    kept = load("kept", model=code + "\ndef value(): return helpers.VALUE", helpers="VALUE = 1")
    (tmp_path / "model.py").write_text(code)
    (tmp_path / "helpers.py").touch()
    gone = Namespace(tmp_path, "gone")
    gone.load()

    gone.close()

    assert "helpers" in sys.modules
    assert kept.value() == 1


def test_the_collector_may_retire_one_while_another_is_made(tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    first = Namespace(tmp_path, "first")
    first.load()

    with namespace._lock:
        first.retire()
        is_there = first.package in sys.modules
    deadline = time.monotonic() + 30
    while first.package in sys.modules:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert is_there


def test_the_directory_is_taken_off_the_path_of_all(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "m")

    load(model="import helpers", helpers="")

    assert str(tmp_path / "m") not in sys.path
    with pytest.raises(ModuleNotFoundError):
        __import__("no_such_helpers")
