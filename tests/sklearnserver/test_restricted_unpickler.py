import copyreg
import io
import operator
import os
import pickle
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn._loss._loss
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from scipy import special, stats
from sklearn.metrics import make_scorer
from sklearn.svm import SVC

from sklearnserver.restricted_unpickler import (
    AllowedUse,
    RefusedPickleError,
    RestrictedUnpickler,
    allowed_globals,
    allowed_type_names,
)

EXTENSION_CODE = 0x6B53
SVC_INSTANCE = b"csklearn.svm._classes\nSVC\n)\x81"


def load(stream: bytes) -> Any:
    return RestrictedUnpickler(io.BytesIO(stream)).load()


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.reduced


@pytest.fixture
def extension() -> Iterator[int]:
    copyreg.add_extension("posix", "getcwd", EXTENSION_CODE)
    yield EXTENSION_CODE
    copyreg.remove_extension("posix", "getcwd", EXTENSION_CODE)
    copyreg.clear_extension_cache()


def test_list_is_of_exact_pairs_without_a_way_out() -> None:
    listed = allowed_globals()

    names = {name for pair in listed for name in pair}
    assert not names & {"getattr", "eval", "exec", "compile", "open", "__import__", "import_module"}
    assert not names & {"attrgetter", "methodcaller", "_reconstructor", "memmap", "Memory"}
    assert {module.split(".")[0] for module, _ in listed} == {
        "_codecs", "_loss", "builtins", "collections", "numpy", "scipy", "sklearn",
    }  # fmt: skip
    assert [pair for pair in listed if "." in pair[1] or "*" in pair[1]] == []


def test_names_for_skops_leave_out_what_executes_its_state_or_only_serves_pickle() -> None:
    names = allowed_type_names()

    assert {"sklearn.tree._tree.Tree", "functools.partial"} <= names
    assert not [name for name in names if name.startswith("scipy.stats.") or "newObj" in name]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        np.log1p,
        special.expit,
        partial(np.power, 2.0),
        {1, 2},
        b"\x00\xff",
        slice(1, 2),
        OrderedDict(a=1),
        defaultdict(int, a=1),
    ],
    ids=repr,
)
def test_reads_values_and_functions_that_models_hold(value: Any, protocol: int) -> None:
    found = load(pickle.dumps(value, protocol))

    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", None, 1.5], dtype=object),
        np.array(["NaT", "2024-01-01"], "M8[ns]"),
        np.array([("a", (1.5, 2.5), None)], [("n", "U3"), ("f", "f8", (2,)), ("o", "O")]),
        np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.ma.MaskedArray([1, 2], [True, False]),
        np.zeros((0, 3)),
        np.array(3),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_reads_arrays_of_every_kind(array: Any, protocol: int) -> None:
    in_joblib = io.BytesIO()
    joblib.dump([array, array.T], in_joblib, protocol=protocol)

    from_pickle = load(pickle.dumps(array, protocol))
    from_joblib, transposed = load(in_joblib.getvalue())

    np.testing.assert_array_equal(from_pickle, array)
    np.testing.assert_array_equal(from_joblib, array)
    np.testing.assert_array_equal(transposed, array.T)
    assert from_pickle.dtype == pickle.loads(pickle.dumps(array, protocol)).dtype
    assert from_joblib.dtype == array.dtype.newbyteorder("=")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(numpy_st.arrays(numpy_st.scalar_dtypes(), numpy_st.array_shapes(min_dims=0, min_side=0)))
def test_reads_back_any_array_that_joblib_writes(array: Any) -> None:
    stream = io.BytesIO()
    joblib.dump(array, stream)

    found = load(stream.getvalue())

    np.testing.assert_array_equal(found, array)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0), st.integers(0, 255))
def test_damaged_stream_gives_a_value_or_an_error(index: int, byte: int) -> None:
    stream = bytearray(pickle.dumps({"a": np.arange(3), "b": [np.log, "text"]}, 4))
    stream[index % len(stream)] = byte

    try:
        load(bytes(stream))
    except Exception as error:
        assert not isinstance(error, AssertionError)


def test_reads_python_2_names_of_old_protocols() -> None:
    assert load(b"cfunctools\npartial\n(cnumpy.core.umath\nexp\ntR.").func is np.exp


@pytest.mark.parametrize(
    ("stream", "named"),
    [
        (pickle.dumps(Call(os.system, "true")), "posix.system"),
        (pickle.dumps(Call(eval, "1")), "builtins.eval"),
        (pickle.dumps(Call(exec, "pass")), "builtins.exec"),
        (pickle.dumps(partial(print)), "builtins.print"),
        (pickle.dumps(Call(getattr, SVC, "fit")), "builtins.getattr"),
        (pickle.dumps(SVC().fit), "builtins.getattr"),
        (pickle.dumps(operator.attrgetter("__globals__")), "operator.attrgetter"),
        (pickle.dumps(np.load), "numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0bufunc.mro.x\x93.", "numpy.ufunc.mro.x"),
        (b"cnumpy\ntesting.print_assert_equal\n.", "numpy.testing.print_assert_equal"),
        (b"cscipy.special.evil\nsystem\n.", "scipy.special.evil.system"),
        (b"c__builtin__\nexecfile\n.", "execfile"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'true'\no.", "os.system"),
        (b"cjoblib.numpy_pickle_compat\nNDArrayWrapper\n.", "NDArrayWrapper"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_a_global_by_name(stream: bytes, named: str) -> None:
    with pytest.raises(RefusedPickleError) as refusal:
        load(stream)

    assert f"{named} is not on the list of allowed globals" in str(refusal.value)


def test_takes_the_losses_of_old_versions_from_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "_loss", ModuleType("_loss"))

    found = load(b"c_loss\nCyHalfSquaredError\n.")

    assert found is sklearn._loss._loss.CyHalfSquaredError


def test_refuses_before_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "planted.py").write_text(f"open({str(marker)!r}, 'w').close()\nthing = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(RefusedPickleError, match="planted.thing"):
        load(b"cplanted\nthing\n.")

    assert not marker.exists()
    assert "planted" not in sys.modules


@pytest.mark.parametrize("is_cached", [False, True], ids=["registered", "in the cache"])
def test_refuses_extension_codes(extension: int, is_cached: bool) -> None:
    stream = pickle.dumps(os.getcwd, 2)
    assert stream.startswith(b"\x80\x02\x83")
    if is_cached:
        assert pickle.loads(stream) is os.getcwd

    with pytest.raises(RefusedPickleError, match=f"extension code {extension}"):
        load(stream)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (
            b"csklearn.metrics._classification\nf1_score\n(tR.",
            "f1_score may be referred to, but not used to call",
        ),
        (b"cbuiltins\nint\n)\x81.", "int may be referred to, but not used to new"),
        (b"cbuiltins\nint\n)}\x92.", "int may be referred to, but not used to new"),
        (b"csklearn.svm._classes\nSVC\n(tR.", "SVC may be referred to, but not used to call"),
        (b"(csklearn.svm._classes\nSVC\no.", "SVC may be referred to, but not used to call"),
        (b"cfunctools\npartial\n(cnumpy\nexp\ntR(tR.", "partial'> may not be used to call"),
        (SVC_INSTANCE + b")\x81.", "SVC'> may not be used to new"),
        (SVC_INSTANCE + b"I1\na.", "may not be appended to an object of"),
        (SVC_INSTANCE + b"(I1\ne.", "may not be appended to an object of"),
        (SVC_INSTANCE + b"I1\nI1\ns.", "may not be set in an object of"),
        (SVC_INSTANCE + b"(I1\nI1\nu.", "may not be set in an object of"),
        (SVC_INSTANCE + b"(I1\n\x90.", "may not be added to an object of"),
        (b"csklearn.svm._classes\nSVC\n}Vfit\nI1\nsb.", "a global, may not be changed"),
        (b"csklearn.svm._classes\nSVC\n(N}Vfit\nI1\nstb.", "a global, may not be changed"),
        (SVC_INSTANCE + b"}V__setstate__\nI1\nsb.", "'__setstate__' may not be set"),
        (SVC_INSTANCE + b"(N}Vfit\nI1\nstb.", "not a dict"),
        (
            b"cfunctools\npartial\n(cnumpy\nexp\ntR(cnumpy\nexp\n(t}}V__new__\nI1\nstb.",
            "'__new__' may not be set",
        ),
        (SVC_INSTANCE + b"ccollections\nOrderedDict\n(tRb.", "not a dict"),
        (b"cnumpy\nndarray\n(tR.", "may be referred to, but not used to call"),
        (b"cnumpy\nndarray\n)\x81.", "may be referred to, but not used to new"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(csklearn.svm._classes\nSVC\n(I0\ntVb\ntR.",
            "is no class of arrays",
        ),
        (
            b"cnumpy.ma.core\n_mareconstruct\n(csklearn.svm._classes\nSVC\ncnumpy\nndarray\n"
            b"(I0\ntVb\ntR.",
            "is no class of masked arrays",
        ),
    ],
)
def test_refuses_what_reaches_code_without_naming_it(stream: bytes, reason: str) -> None:
    with pytest.raises(RefusedPickleError) as refusal:
        load(stream)

    assert reason in str(refusal.value)


def test_refuses_source_code_in_the_state_of_a_distribution(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    distribution = stats.uniform(0, 1).dist
    distribution._parse_arg_template += f"\nopen({str(marker)!r}, 'w').close()"
    stream = pickle.dumps(distribution)

    with pytest.raises(RefusedPickleError, match="source code that is not its own"):
        load(stream)

    assert not marker.exists()
    pickle.loads(stream)
    assert marker.exists()


def test_refuses_a_scorer_that_calls_a_special_method() -> None:
    scorer = make_scorer(np.add)
    scorer._response_method = ("predict", "__getattribute__")

    with pytest.raises(RefusedPickleError, match="may not be the _response_method"):
        load(pickle.dumps(scorer))


@pytest.mark.parametrize("constructor", ["__generator_ctor", "__randomstate_ctor"])
def test_refuses_to_call_the_second_argument_of_random_constructors(constructor: str) -> None:
    function = getattr(np.random._pickle, constructor)  # type: ignore[attr-defined]

    with pytest.raises(RefusedPickleError, match="is no bit generator"):
        load(pickle.dumps(Call(function, 1.0, np.exp)))


DTYPE = b"cnumpy\ndtype\n(S'%s'\nI00\nI01\ntR(I3\nS'%s'\nN%bI%d\nI%d\nI%d\ntb."


@pytest.mark.parametrize(
    "stream",
    [
        DTYPE % (b"O8", b"|", b"NN", -1, -1, 0),
        DTYPE % (b"f8", b"<", b"NN", -1, -1, 63),
        DTYPE % (b"V8", b"|", b"(Va\nt}Va\n(cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR(I3\nS'|'\n"
                 b"NNNI-1\nI-1\nI63\ntbI0\nts", 8, 1, 0),
        DTYPE % (b"V8", b"|", b"(Va\nt}Va\n(cnumpy\ndtype\n(S'f8'\nI00\nI01\ntR(I3\nS'<'\n"
                 b"NNNI-1\nI-1\nI0\ntbI800\nts", 8, 1, 0),
    ],
    ids=["objects passed off as bytes", "floats as objects", "field of objects", "offset outside"],
)  # fmt: skip
def test_refuses_a_dtype_that_lies_about_its_memory(stream: bytes) -> None:
    with pytest.raises((RefusedPickleError, ValueError)):
        load(stream)


def test_refuses_to_change_an_array_in_use() -> None:
    array = np.arange(3.0)
    state: Any = array.__reduce__()[2]
    stream = pickle.dumps(array, 2)[:-1] + pickle.dumps(state, 2)[2:-1] + b"b."
    assert pickle.loads(stream).tolist() == [0, 1, 2]

    with pytest.raises(RefusedPickleError, match="an array with data may not be changed"):
        load(stream)


def test_refuses_an_array_whose_dtype_is_another_object() -> None:
    stream = (
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81"
        b"(dVdtype\ncbuiltins\nint\nsVshape\n(I1\ntsVorder\nVC\nsb."
    )

    with pytest.raises(RefusedPickleError, match="as its dtype"):
        load(stream)


def test_refuses_inside_the_object_array_of_a_joblib_file() -> None:
    stream = io.BytesIO()
    joblib.dump({"a": np.array([Call(os.system, "true")], dtype=object)}, stream)

    with pytest.raises(RefusedPickleError, match=r"posix\.system"):
        load(stream.getvalue())


def test_uses_the_list_it_is_given() -> None:
    allowed = {("collections", "deque"): AllowedUse(call=True)}

    found = RestrictedUnpickler(io.BytesIO(pickle.dumps(deque([1, 2]))), allowed).load()

    assert found == deque([1, 2])
