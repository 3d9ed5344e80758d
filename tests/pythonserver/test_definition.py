"""Which model a `model.py` defines, and how it is made."""

from pathlib import Path

import pytest

from kserve.errors import ModelLoadError, ModelMissingError
from kserve.model import BaseKServeModel
from pythonserver import make_model

ONE = "import kserve\nclass One(kserve.Model):\n    pass\n"
TWO = f"{ONE}class Two(kserve.Model):\n    pass\n"
FUNCTIONS = "def load(model_dir):\n    return 1\ndef predict(model, instances):\n    return model\n"


def make(tmp_path: Path, code: str, model_class: str | None = None) -> BaseKServeModel:
    (tmp_path / "model.py").write_text(code)
    return make_model("m", str(tmp_path), model_class=model_class)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(ONE, "One", id="a subclass of Model"),
        pytest.param(
            "from kserve import TensorModel\nclass T(TensorModel): pass", "T", id="tensor"
        ),
        pytest.param(
            "import kserve\nclass _Base(kserve.Model): pass\nclass M(_Base): pass",
            "M",
            id="a private base",
        ),
        pytest.param(
            "import abc, kserve\nclass B(kserve.Model, abc.ABC):\n"
            "    @abc.abstractmethod\n    def f(self): pass\n"
            "class M(B):\n    def f(self): pass",
            "M",
            id="an abstract base",
        ),
        pytest.param(f"{ONE}Alias = One", "One", id="a second name"),
        pytest.param(ONE + FUNCTIONS, "One", id="functions beside it"),
        pytest.param(FUNCTIONS, "FunctionModel", id="functions"),
        pytest.param(
            FUNCTIONS.replace("def predict", "async def predict"), "AsyncFunctionModel", id="async"
        ),
        pytest.param(
            f"{ONE}kserve.ModelServer(http_port=0, enable_grpc=False).start([One('x')])",
            "One",
            id="started without a guard",
        ),
        pytest.param(
            f"{ONE}if __name__ == '__main__':\n    raise SystemExit(3)", "One", id="a guard"
        ),
    ],
)
def test_finds_the_model_without_configuration(tmp_path: Path, code: str, expected: str) -> None:
    model = make(tmp_path, code)

    assert type(model).__name__ == expected
    assert model.name == "m"


@pytest.mark.parametrize(
    ("code", "model_class", "reason"),
    [
        pytest.param(
            TWO,
            None,
            "it defines several models, One, Two; choose one with --model_class",
            id="several",
        ),
        pytest.param(
            "x = 1\ndef helper(): pass",
            None,
            "expected one subclass of kserve.Model, or functions load(model_dir) and "
            "predict(model, instances), found helper",
            id="none",
        ),
        pytest.param(
            "def predict(model, instances): pass",
            None,
            "expected one subclass of kserve.Model, or functions load(model_dir) and "
            "predict(model, instances), found predict; load is missing",
            id="one function",
        ),
        pytest.param(
            TWO,
            "Three",
            "--model_class Three is no subclass of kserve.Model there, it defines One, Two",
            id="no such class",
        ),
        pytest.param(
            "import kserve\nclass M(kserve.Model):\n    def __init__(self, name, path): pass",
            None,
            "the constructor of M takes path without a default, "
            "expected name and model_dir at most",
            id="another constructor",
        ),
        pytest.param(
            f"{TWO}kserve.ModelServer(http_port=0, enable_grpc=False).start([One('a'), Two('b')])",
            None,
            "it starts several models, a, b; choose one with --model_class, "
            "by the name of its class",
            id="several started",
        ),
    ],
)
def test_says_what_was_expected_and_what_is_there(
    tmp_path: Path, code: str, model_class: str | None, reason: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        make(tmp_path, code, model_class)

    assert str(caught.value) == f"{tmp_path / 'model.py'}: {reason}"


@pytest.mark.parametrize("model_class", ["One", "Two"])
def test_takes_the_class_that_is_asked_for(tmp_path: Path, model_class: str) -> None:
    assert type(make(tmp_path, TWO, model_class)).__name__ == model_class


def test_takes_a_class_that_another_file_defines_if_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text(ONE)

    assert type(make(tmp_path, "from helpers import One", "One")).__name__ == "One"


@pytest.mark.parametrize(
    "constructor",
    [
        pytest.param("def __init__(self, name): super().__init__(name)", id="name"),
        pytest.param("def __init__(self, n, /): super().__init__(n)", id="by position"),
        pytest.param("def __init__(self): super().__init__('other')", id="nothing"),
        pytest.param("def __init__(self, **options): super().__init__('x')", id="keywords"),
        pytest.param("def __init__(self, name, k=3): super().__init__(name)", id="with defaults"),
        pytest.param(
            "def __init__(self, model_dir, name='x'):\n        super().__init__(name)\n"
            "        assert model_dir.startswith('/')",
            id="the directory",
        ),
        pytest.param(
            "def __init__(self, name, *, model_dir):\n        super().__init__(name)\n"
            "        self.model_dir = model_dir",
            id="the directory by keyword",
        ),
    ],
)
def test_constructors_get_what_they_take(tmp_path: Path, constructor: str) -> None:
    model = make(tmp_path, f"import kserve\nclass M(kserve.Model):\n    {constructor}\n")

    assert model.name == "m"
    assert vars(model)["model_dir"] == str(tmp_path)
    assert vars(model)["platform"] == "python"


def test_what_the_class_says_itself_stays(tmp_path: Path) -> None:
    model = make(tmp_path, f"{ONE}    platform = 'spacy'\n    model_dir = '/elsewhere'\n")

    assert [getattr(model, name) for name in ("platform", "model_dir")] == ["spacy", "/elsewhere"]


def test_a_directory_without_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ModelMissingError, match=r"expected exactly one of model\.py; found nothing"
    ):
        make_model("m", str(tmp_path))
