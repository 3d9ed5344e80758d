import bz2
import gzip
import importlib.util
import logging
import lzma
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier

from kserve.errors import ModelLoadError
from sklearnserver.loading import load_estimator

SCRIPT = Path(__file__).parents[2] / "scripts/allowed_globals.py"
FEATURES = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 1.0]])
LABELS = ["a", "b", "a", "b"]
METHODS = ("predict", "predict_proba", "decision_function", "transform")


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class Evaluated(Hostile):
    """Makes a file through `eval`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


class Executed(Hostile):
    """Makes a file through `exec`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


class Looked(Hostile):
    """Makes a file through `getattr`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.marker.touch, ()


@pytest.fixture(scope="module")
def models() -> ModuleType:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fitted_models(models: ModuleType) -> list[Any]:
    failures: dict[str, str] = {}
    found = [*models.fitted_estimators(failures), *models.typical_models(failures)]
    sys.stdout.write(f"{len(found)} models fitted, not: {failures}\n")
    return found


@pytest.fixture
def classifier() -> Any:
    return LogisticRegression().fit(FEATURES, LABELS)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def dump_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def answers(estimator: Any, features: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in METHODS:
        try:
            answer = getattr(estimator, method)(features)
        except Exception as error:  # some do not answer about what they were fitted on
            found[method] = str(error)
        else:
            found[method] = answer.toarray() if hasattr(answer, "toarray") else np.asarray(answer)
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    for method, answer in expected.items():
        if isinstance(answer, np.ndarray) and answer.dtype.kind == "f":
            # Not to the last bit: BLAS adds in an order that depends on where an array begins.
            np.testing.assert_allclose(found[method], answer, 1e-9, 1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(found[method], answer, name)


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dump", [dump_pickle, joblib.dump], ids=["pickle", "joblib"])
def test_every_estimator_that_can_be_fitted_loads_and_answers_as_before(
    fitted_models: list[Any],
    dump: Callable[[Any, Path], object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model.pkl"

    for fitted in fitted_models:
        dump(fitted.estimator, path)
        loaded = load_estimator(path)
        before = answers(fitted.estimator, fitted.features)
        assert_same(answers(loaded, fitted.features), before, fitted.name)

    n_classes = len({type(fitted.estimator) for fitted in fitted_models})
    with capsys.disabled():
        sys.stdout.write(f" {len(fitted_models)} models of {n_classes} classes loaded safely ")
    assert n_classes >= 195
    assert len(fitted_models) >= 270


@pytest.mark.parametrize(
    ("name", "dump"),
    [
        ("model.joblib", joblib.dump),
        ("model.pkl", joblib.dump),
        ("model.joblib", dump_pickle),
        ("model.pkl", dump_pickle),
        ("model.pickle", dump_pickle),
        ("model.skops", skops.io.dump),
        *(
            ("model.joblib", partial(joblib.dump, compress=(method, 3)))
            for method in ("zlib", "gzip", "bz2", "lzma", "xz")
        ),
        ("model.pkl", lambda value, path: path.write_bytes(gzip.compress(pickle.dumps(value)))),
        ("model.pkl", lambda value, path: path.write_bytes(bz2.compress(pickle.dumps(value)))),
        ("model.pkl", lambda value, path: path.write_bytes(lzma.compress(pickle.dumps(value)))),
        ("model.pkl", lambda value, path: path.write_bytes(zlib.compress(pickle.dumps(value)))),
    ],
)
@pytest.mark.parametrize("allow_pickle", [False, True], ids=["safe", "trusted"])
def test_loads_every_format(
    classifier: Any,
    name: str,
    dump: Callable[[Any, Path], object],
    allow_pickle: bool,
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    dump(classifier, path)

    loaded = load_estimator(str(path), allow_pickle=allow_pickle)

    assert loaded.predict(FEATURES).tolist() == classifier.predict(FEATURES).tolist()


@pytest.mark.parametrize(
    ("hostile", "named"),
    [
        (Hostile, "posix.system"),
        (Evaluated, "builtins.eval"),
        (Executed, "builtins.exec"),
        (Looked, "builtins.getattr"),
    ],
)
@pytest.mark.parametrize(
    ("name", "dump"),
    [
        ("model.pkl", dump_pickle),
        ("model.pkl", lambda value, path: path.write_bytes(pickle.dumps(value, 0))),
        ("model.joblib", lambda value, path: joblib.dump([value, FEATURES], path)),
        ("model.joblib", lambda value, path: joblib.dump([FEATURES, value], path)),
        ("model.joblib", lambda value, path: joblib.dump(np.array([value, None]), path)),
        ("model.joblib", lambda value, path: joblib.dump([FEATURES, value], path, compress=3)),
        ("model.joblib", lambda value, path: joblib.dump(value, path, compress=("xz", 3))),
        ("model.pkl", lambda value, path: dump_pickle(partial(np.power, value), path)),
        ("model.pkl", lambda value, path: path.write_bytes(gzip.compress(pickle.dumps(value)))),
    ],
    ids=[
        "pickle",
        "protocol 0",
        "before an array",
        "after an array",
        "in an object array",
        "after an array, compressed",
        "compressed",
        "in a partial",
        "gzip",
    ],
)
def test_refuses_a_hostile_file_by_name_and_does_not_execute_it(
    hostile: type[Hostile],
    named: str,
    name: str,
    dump: Callable[[Any, Path], object],
    marker: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    dump(hostile(marker), path)

    with pytest.raises(ModelLoadError) as refusal:
        load_estimator(path)

    assert str(refusal.value) == (
        f"{name}: refused, because {named} is not on the list of allowed globals: start with "
        "--allow_pickle or KSERVE_ALLOW_PICKLE=true if you trust the source, or save the model as "
        ".skops with known types (written with an unknown version, installed is scikit-learn "
        f"{sklearn.__version__})"
    )
    assert not marker.exists()
    # The file does what it is refused for.
    with pytest.raises(ModelLoadError, match="expected a fitted estimator"):
        load_estimator(path, allow_pickle=True)
    assert marker.exists()


def test_loads_what_was_refused_when_the_source_is_trusted(classifier: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    model = make_pipeline(FunctionTransformer(os.path.commonpath), classifier)
    dump_pickle(model, path)

    with pytest.raises(ModelLoadError, match=r"posixpath\.commonpath is not on the list"):
        load_estimator(path)

    loaded = load_estimator(path, allow_pickle=True)
    assert loaded.steps[0][1].func is os.path.commonpath


def test_refuses_a_skops_file_by_the_names_of_its_types(classifier: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    skops.io.dump(make_pipeline(FunctionTransformer(os.path.commonpath), classifier), path)

    with pytest.raises(ModelLoadError) as refusal:
        load_estimator(path)

    assert str(refusal.value) == (
        "model.skops: refused, because these are not on the list of allowed types: "
        "posixpath.commonpath: start with --allow_pickle or KSERVE_ALLOW_PICKLE=true if you trust "
        f"the source (written with scikit-learn {sklearn.__version__}, installed is scikit-learn "
        f"{sklearn.__version__})"
    )
    assert load_estimator(path, allow_pickle=True).steps[0][1].func is os.path.commonpath


def test_loads_types_of_a_skops_file_that_are_on_the_list(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    model = make_pipeline(SelectKBest(f_classif, k=1), DecisionTreeClassifier())
    skops.io.dump(model.fit(FEATURES, LABELS), path)
    f_classif_name = "sklearn.feature_selection._univariate_selection.f_classif"
    assert f_classif_name in skops.io.get_untrusted_types(file=path)

    loaded = load_estimator(path)

    assert loaded.predict(FEATURES).tolist() == model.predict(FEATURES).tolist()


PICKLED = pickle.dumps(LogisticRegression().fit(FEATURES, LABELS))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is a text file\n",
        b"x marks a text file that starts like zlib\n",
        b"BZ and one that starts like bzip2\n",
        b"{}",
        b"PK\x03\x04" + b"\0" * 50,
        b"\x80\x05\x8d" + b"\xff" * 8,
        PICKLED[: len(PICKLED) // 2],
        PICKLED[:-1],
        PICKLED[20:],
        gzip.compress(PICKLED)[:-40],
        zlib.compress(PICKLED)[:-40],
        lzma.compress(PICKLED)[:-40],
        b"(" * 10_000,
        b"Vx\n" + b"\x85" * 10_000,
    ],
    ids=lambda data: repr(data[:16]) + str(len(data)),
)
@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib", ".skops"])
@pytest.mark.parametrize("allow_pickle", [False, True], ids=["safe", "trusted"])
def test_damaged_file_is_one_clear_error(
    data: bytes, suffix: str, allow_pickle: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)

    with pytest.raises(ModelLoadError) as failure:
        load_estimator(path, allow_pickle=allow_pickle)

    assert str(failure.value).startswith(f"model{suffix}: cannot be loaded (")
    assert "the file is damaged, or not what its suffix says" in str(failure.value)
    assert f"installed is scikit-learn {sklearn.__version__})" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_joblib_file_that_ends_inside_an_array_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    joblib.dump(np.arange(1000.0), path)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(ModelLoadError, match="an array of 8000 bytes ends after 7"):
        load_estimator(path)


def test_zip_without_a_schema_is_no_skops_file(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")

    with pytest.raises(ModelLoadError, match=r"model\.skops: cannot be loaded \(KeyError"):
        load_estimator(path)


def test_old_joblib_format_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    path.write_bytes(b"ZF0x10              " + zlib.compress(PICKLED))

    with pytest.raises(ModelLoadError, match=r"^model\.joblib: written by joblib 0\.9 or older"):
        load_estimator(path)


def test_lz4_file_loads_where_lz4_is_installed(classifier: Any, tmp_path: Path) -> None:
    pytest.importorskip("lz4")
    path = tmp_path / "model.joblib"
    joblib.dump(classifier, path, compress=("lz4", 3))

    loaded = load_estimator(path)

    assert loaded.predict(FEATURES).tolist() == classifier.predict(FEATURES).tolist()


@pytest.mark.skipif(importlib.util.find_spec("lz4") is not None, reason="lz4 is installed")
def test_lz4_file_names_the_package_that_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    path.write_bytes(b"\x04\x22\x4d\x18" + PICKLED)

    with pytest.raises(ModelLoadError, match=r"^model\.joblib: reading it needs the package lz4$"):
        load_estimator(path)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"model": 1}, "an object of builtins.dict"),
        (np.arange(3), "an object of numpy.ndarray"),
        (None, "an object of builtins.NoneType"),
        (LogisticRegression, "the class sklearn.linear_model._logistic.LogisticRegression"),
    ],
    ids=["dict", "array", "None", "class"],
)
def test_what_is_no_estimator_is_named(value: Any, found: str, tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    joblib.dump(value, path)

    with pytest.raises(ModelLoadError) as failure:
        load_estimator(path)

    assert str(failure.value) == f"model.joblib: expected a fitted estimator, found {found}"


@pytest.mark.parametrize("name", ["model.onnx", "model", "model.skops.zip"])
def test_other_suffix_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as failure:
        load_estimator(tmp_path / name)

    assert str(failure.value) == f"{name}: expected one of .joblib, .pkl, .pickle, .skops"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: None])
def test_what_is_no_file_is_an_error(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    make(path)

    with pytest.raises(ModelLoadError) as failure:
        load_estimator(path)

    assert str(failure.value) == f"model.pkl: there is no such file in {tmp_path}"


def write_with_version(path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a pipeline as another scikit-learn would."""
    model = make_pipeline(DecisionTreeClassifier(), DecisionTreeClassifier())[1:]
    model.fit(FEATURES, LABELS)
    with monkeypatch.context() as patched:
        patched.setattr("sklearn.base.__version__", version)
        dump = skops.io.dump if path.suffix == ".skops" else joblib.dump
        dump(model, path)


@pytest.mark.parametrize("name", ["model.joblib", "model.skops"])
@pytest.mark.parametrize("allow_pickle", [False, True], ids=["safe", "trusted"])
def test_artifact_of_another_version_loads_with_one_warning(
    name: str,
    allow_pickle: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / name
    write_with_version(path, "1.2.2", monkeypatch)

    with caplog.at_level(logging.WARNING, logger="kserve"):
        loaded = load_estimator(path, allow_pickle=allow_pickle)

    assert loaded.predict(FEATURES).tolist() == LABELS
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} was written with scikit-learn 1.2.2, and scikit-learn {sklearn.__version__} is "
        "installed: its answers may differ; save it again, or install the version it was written "
        "with"
    ]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_failed_load_names_both_versions(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pkl"
    with monkeypatch.context() as patched:
        patched.setattr("sklearn.base.__version__", "0.24.2")
        path.write_bytes(pickle.dumps([LogisticRegression(), os.getcwd], protocol))

    with pytest.raises(ModelLoadError) as failure:
        load_estimator(path)

    assert str(failure.value).endswith(
        f"(written with scikit-learn 0.24.2, installed is scikit-learn {sklearn.__version__})"
    )


def test_listed_global_that_is_not_installed_is_named_with_advice(
    classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pkl"
    dump_pickle(classifier, path)
    monkeypatch.delattr("sklearn.linear_model._logistic.LogisticRegression")

    with pytest.raises(ModelLoadError) as failure:
        load_estimator(path)

    assert str(failure.value) == (
        "model.pkl: cannot be loaded (AttributeError: module 'sklearn.linear_model._logistic' has "
        "no attribute 'LogisticRegression'): it needs code that is not installed here; install the "
        f"packages it was saved with (written with scikit-learn {sklearn.__version__}, installed "
        f"is scikit-learn {sklearn.__version__})"
    )


def test_import_loads_no_framework() -> None:
    code = (
        "import sys, sklearnserver.loading;"
        "print([name for name in ('sklearn', 'joblib', 'skops') if name in sys.modules])"
    )

    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout

    assert output == b"[]\n"
