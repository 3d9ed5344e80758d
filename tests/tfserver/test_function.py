"""A concrete function as named tensors."""

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tests.tfserver.models import F32, Spec, saved

from kserve.errors import InvalidInput, ModelLoadError
from kserve.signature import TensorSpec
from tfserver.function import DATATYPES, Function, describe, reason
from tfserver.saved_model import load_saved_model


def load(directory: Path) -> Function:
    return load_saved_model(directory / "saved_model.pb", "serving_default")["serving_default"]


# Two values of each, of which some need all bits.
VALUES = {
    tf.bool: np.array([True, False]),
    tf.int8: np.array([-128, 127], np.int8),
    tf.int16: np.array([-(2**15), 2**15 - 1], np.int16),
    tf.int32: np.array([-(2**31), 2**31 - 1], np.int32),
    tf.int64: np.array([-(2**63), 2**63 - 1]),
    tf.uint8: np.array([0, 255], np.uint8),
    tf.uint16: np.array([0, 2**16 - 1], np.uint16),
    tf.uint32: np.array([0, 2**32 - 1], np.uint32),
    tf.uint64: np.array([0, 2**64 - 1], np.uint64),
    tf.float16: np.array([6.1e-5, 65504], np.float16),
    tf.bfloat16: np.array([0.5, -3.140625], F32),
    tf.float32: np.array([np.nan, -np.inf], F32),
    tf.float64: np.array([0.1, 1e300]),
    tf.string: np.array([b"\xff\x00", "é".encode()], np.object_),
}


@pytest.mark.parametrize("dtype", DATATYPES, ids=lambda dtype: dtype.name)
def test_every_datatype_goes_in_and_out_unchanged(tmp_path: Path, dtype: tf.DType) -> None:
    function = load(saved(tmp_path, lambda x: {"y": tf.identity(x)}, Spec([None], dtype, name="x")))

    (y,) = function.run({"x": VALUES[dtype]}).values()

    np.testing.assert_array_equal(y, VALUES[dtype], strict=True)
    spec = TensorSpec("x", DATATYPES[dtype], (-1,))
    assert (function.signature.inputs, function.dtypes) == ((spec,), {"x": dtype})


def test_fp32_is_rounded_where_the_model_takes_bfloat16(tmp_path: Path) -> None:
    function = load(
        saved(tmp_path, lambda x: {"y": tf.cast(x, tf.float32)}, Spec([], tf.bfloat16, name="x"))
    )

    y = function.run({"x": np.array(2.1, F32)})["y"]

    np.testing.assert_array_equal(y, np.array(2.09375, F32), strict=True)


def test_shapes_are_those_of_the_signature(tmp_path: Path) -> None:
    def serve(scalar: Any, fixed: Any, any_length: Any, unknown: Any) -> Any:
        return {"sum": scalar + tf.reduce_sum(fixed), "rows": any_length, "same": unknown}

    specs = [
        Spec([], tf.float32, name="scalar"),
        Spec([2, 3], tf.float32, name="fixed"),
        Spec([None, None, 4], tf.float32, name="any_length"),
        Spec(None, tf.float32, name="unknown"),
    ]
    function = load(saved(tmp_path, serve, *specs))

    found = {spec.name: (spec.shape, spec.is_ranked) for spec in function.signature.inputs}
    assert found == {
        "scalar": ((), True),
        "fixed": ((2, 3), True),
        "any_length": ((-1, -1, 4), True),
        "unknown": ((-1,), False),
    }
    assert [spec.name for spec in function.signature.outputs] == ["rows", "same", "sum"]
    for shape in ((), (1, 2)):
        tensors = {
            "scalar": np.array(1, F32),
            "fixed": np.ones((2, 3), F32),
            "any_length": np.zeros((0, 2, 4), F32),
            "unknown": np.ones(shape, F32),
        }
        answer = function.run(tensors)
        assert answer["sum"] == np.array(7, F32)
        assert (answer["rows"].shape, answer["same"].shape) == ((0, 2, 4), shape)


def test_arrays_may_be_read_only_and_of_any_strides(tmp_path: Path) -> None:
    function = load(
        saved(tmp_path, lambda x: {"y": x * 2.0}, Spec([None, None], tf.float32, name="x"))
    )
    x = np.arange(12, dtype=F32).reshape(3, 4)
    x.flags.writeable = False

    for given in (x, x.T, x[::2, ::-1]):
        np.testing.assert_array_equal(function.run({"x": given})["y"], given * 2)


def test_what_is_no_dense_tensor_is_refused_by_its_name() -> None:
    ragged = tf.RaggedTensorSpec([None, None], tf.float32)
    tensor = Spec([None], tf.float32)

    with pytest.raises(ModelLoadError) as caught:
        describe(lambda tensors: tensors, {"x": tensor, "r": ragged}, {"y": tensor}, "m")

    assert str(caught.value) == (
        "m: input 'r' is a RaggedTensor of float32, which the protocol cannot carry: the model has"
        " to take a dense tensor of numbers or strings"
    )


def test_a_dtype_that_the_protocol_lacks_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="input 'x' is a tensor of complex64, which"):
        describe(lambda t: t, {"x": Spec([], tf.complex64)}, {"y": Spec([], tf.float32)}, "m")


def test_outputs_that_cannot_be_carried_are_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    outputs = {"r": tf.RaggedTensorSpec([None, None], tf.string), "y": Spec([], tf.float32)}

    function = describe(lambda t: {"r": None, "y": tf.constant(1.0)}, {}, outputs, "m")

    assert function.run({}) == {"y": np.array(1, F32)}
    expected = "m: left out, as the protocol cannot carry them: 'r' is a RaggedTensor of string"
    assert caplog.messages == [expected]


def test_without_an_output_that_can_be_carried_it_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="any output: 'y' is a tensor of complex64$"):
        describe(lambda tensors: tensors, {}, {"y": Spec([], tf.complex64)}, "m")


def test_null_is_no_text(tmp_path: Path) -> None:
    function = load(saved(tmp_path, lambda x: {"y": x}, Spec([None], tf.string, name="x")))

    with pytest.raises(InvalidInput, match="^input 'x': expected text, got null$"):
        function.run({"x": np.array(["a", None], np.object_)})


def test_values_that_do_not_suit_the_graph_are_the_clients_mistake(tmp_path: Path) -> None:
    function = load(
        saved(
            tmp_path,
            lambda i: {"y": tf.gather(tf.constant([1.0, 2.0]), i)},
            Spec([None], tf.int64, name="i"),
        )
    )

    with pytest.raises(InvalidInput) as caught:
        function.run({"i": np.array([0, 7])})

    expected = "the model cannot run on these inputs: indices[1] = 7 is not in [0, 2)"
    assert str(caught.value) == expected


def test_other_errors_are_the_models_own() -> None:
    def call(tensors: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    function = describe(call, {}, {"y": Spec([], tf.float32)}, "m")

    with pytest.raises(tf.errors.ResourceExhaustedError):
        function.run({})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain  words\nin lines", "plain words in lines"),
        ("", "ValueError"),
        (
            "Graph execution error:\n\nDetected at node a/b defined at (most recent call last):\n"
            "<stack traces unavailable>\nno good\n\t [[{{node a/b}}]] [Op:__inference_f_1]",
            "a/b: no good",
        ),
        (
            "2 root error(s) found.\n  (0) INVALID_ARGUMENT:  first\n\t [[{{node a}}]]\n"
            "  (1) INVALID_ARGUMENT:  second\n0 successful operations.",
            "first",
        ),
    ],
)
def test_a_reason_is_one_line_without_places(text: str, expected: str) -> None:
    assert reason(ValueError(text)) == expected


def test_a_call_that_waits_lets_other_threads_run() -> None:
    queue = tf.queue.FIFOQueue(1, [tf.float32], shapes=[[]])
    waiting = tf.function(lambda: queue.dequeue()).get_concrete_function()
    function = describe(lambda tensors: {"y": waiting()}, {}, {"y": Spec([], tf.float32)}, "m")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function.run({})["y"]))

    # It would never end if it kept the interpreter's lock.
    thread.start()
    queue.enqueue(3.0)
    thread.join(60)

    assert answers == [3.0]
