"""SavedModels: their signatures, and those that cannot be loaded."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tests.tfserver.models import F32, Net, Spec, own, save, save_words, saved

from kserve.errors import ModelLoadError
from kserve.signature import TensorSpec
from tfserver.saved_model import load_saved_model

SERVING = "serving_default"


def load(directory: Path, default: str = SERVING) -> Any:
    return load_saved_model(directory / "saved_model.pb", default)


def test_answers_as_tensorflow_itself_to_the_last_bit(tmp_path: Path) -> None:
    directory = save(tmp_path, Net())
    function = load(directory)[SERVING]

    for n_rows in (0, 1, 2, 33):
        x = np.random.default_rng(n_rows).standard_normal((n_rows, 4)).astype(F32)
        answer, expected = function.run({"x": x}), own(directory, x=x)
        assert list(answer) == ["label", "logits"]
        for name, array in expected.items():
            np.testing.assert_array_equal(answer[name], array, strict=True)


def test_every_signature_can_be_called(tmp_path: Path) -> None:
    functions = load(save_words(tmp_path))
    text = np.array(["é", b"ab"], np.object_)

    upper = functions[SERVING].run({"text": text})
    cut = functions["cut"].run({"text": text, "n": np.array([2, 1], np.int32)})
    totals = [functions["add"].run({"n": np.array(n)}) for n in (2, 40)]

    assert upper["upper"].tolist() == ["É".encode(), b"AB"]
    assert upper["first_bytes"].tolist() == [b"\xc3", b"a"]
    assert cut["cut"].tolist() == ["é".encode(), b"a"]
    assert totals == [{"total": 2}, {"total": 42}]
    assert functions["count"].run({}) == {"total": 42}
    found = {name: function.changes_state for name, function in functions.items()}
    expected = dict.fromkeys(functions, False) | {"add": True}
    assert found == expected


def test_a_signature_has_the_definition_of_the_artifact(tmp_path: Path) -> None:
    definition = load(save(tmp_path, Net()))[SERVING].definition

    assert definition.inputs["x"].name == "serving_default_x:0"
    assert sorted(definition.outputs) == ["label", "logits"]


def test_tables_and_assets_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat\ndog\n")
    initializer = tf.lookup.TextFileInitializer(
        str(tmp_path / "words.txt"),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    table = tf.lookup.StaticHashTable(initializer, -1)
    spec = Spec([None], tf.string, name="word")
    directory = saved(tmp_path / "m", lambda word: {"id": table.lookup(word)}, spec, table=table)
    (tmp_path / "words.txt").unlink()

    answer = load(directory)[SERVING].run({"word": np.array(["dog", "cow"], np.object_)})

    assert answer["id"].tolist() == [1, -1]


def test_a_model_of_tensorflow_1_is_loaded(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], name="x")
        weight = tf.compat.v1.get_variable("w", [], tf.float32, tf.constant_initializer(3.0))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(
            session, str(tmp_path / "m"), {"x": x}, {"y": x * weight}
        )

    function = load(tmp_path / "m")[SERVING]

    assert function.run({"x": np.ones((1, 2), F32)})["y"].tolist() == [[3.0, 3.0]]
    assert function.signature.inputs == (TensorSpec("x", "FP32", (-1, 2)),)


RAGGED = tf.RaggedTensorSpec([None, None], tf.float32)


def test_a_ragged_input_is_the_tensors_that_it_is_made_of(tmp_path: Path) -> None:
    module = tf.Module()
    module.serve = tf.function(lambda r: {"y": tf.reduce_sum(r, 1)}, input_signature=[RAGGED])
    function = load(save(tmp_path, module))[SERVING]
    values, splits = function.signature.inputs

    answer = function.run({values.name: np.array([1, 2, 4], F32), splits.name: np.array([0, 2, 3])})

    assert (values.datatype, splits.datatype) == ("FP32", "INT64")
    assert answer["y"].tolist() == [3.0, 4.0]


def test_a_ragged_output_is_refused_by_its_name(tmp_path: Path) -> None:
    spec = Spec([None], tf.string, name="s")
    saved(tmp_path, lambda s: {"words": tf.strings.split(s)}, spec)

    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path)

    assert str(caught.value) == (
        "signature 'serving_default': the protocol cannot carry any output: 'words' is a"
        " RaggedTensor of string"
    )


def test_a_signature_that_cannot_be_served_is_left_out_if_it_is_not_the_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    module = Net()
    module.other = tf.function(
        lambda c: {"y": tf.math.real(c)}, input_signature=[Spec([None], tf.complex64, name="c")]
    )
    save(tmp_path, module, {SERVING: module.serve, "other": module.other})

    functions = load(tmp_path)

    assert list(functions) == [SERVING]
    expected = "A signature is left out: signature 'other': input 'c' is a tensor of complex64, "
    assert caplog.messages[0].startswith(expected)
    with pytest.raises(ModelLoadError, match="^signature 'other': input 'c' is a tensor of compl"):
        load(tmp_path, "other")


def test_a_signature_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_words(tmp_path)

    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path, "tokens")

    assert str(caught.value) == (
        "saved_model.pb: --signature_name tokens: it has no such signature, it has 'add',"
        " 'centred', 'count', 'cut', 'serving_default'"
    )


def test_a_model_without_signatures_says_what_to_do(tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path))

    with pytest.raises(ModelLoadError, match="it has none: export it with some$"):
        load(tmp_path)


def test_of_several_graphs_that_for_serving_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, Net()) / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    other = model.meta_graphs.add()
    other.CopyFrom(model.meta_graphs[0])
    other.meta_info_def.tags[:] = ["train"]
    path.write_bytes(model.SerializeToString())

    assert list(load(tmp_path)) == [SERVING]

    model.meta_graphs[0].meta_info_def.tags[:] = ["serve", "gpu"]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path)
    expected = "saved_model.pb: expected one graph with the tag serve, found (serve, gpu), (train)"
    assert str(caught.value) == expected


def test_what_keras_2_saved_with_its_optimizer_is_loaded_without_it(tmp_path: Path) -> None:
    net = Net()
    net.optimizer = tf.Module()
    net.optimizer.momentum = tf.Variable(net.weights)
    path = save(tmp_path / "m", net) / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    nodes = model.meta_graphs[0].object_graph_def.nodes
    children = {child.local_name: child.node_id for child in nodes[0].children}
    optimizer = nodes[children["optimizer"]]
    optimizer.user_object.identifier = "optimizer"
    optimizer.slot_variables.add(
        original_variable_node_id=children["weights"],
        slot_name="momentum",
        slot_variable_node_id=optimizer.children[0].node_id,
    )
    path.write_bytes(model.SerializeToString())
    x = np.ones((1, 4), F32)
    with pytest.raises(AttributeError, match="add_slot"):
        tf.saved_model.load(str(tmp_path / "m"))

    answer = load(tmp_path / "m")[SERVING].run({"x": x})

    np.testing.assert_array_equal(answer["logits"], net.serve(x)["logits"])


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        pytest.param(
            "saved_model.pb",
            lambda data: b"",
            "^saved_model.pb: expected a SavedModel, found an empty file$",
            id="empty",
        ),
        pytest.param(
            "saved_model.pb",
            lambda data: b"version https://git-lfs.github.com/spec/v1\n",
            "found the pointer of Git LFS that stands for it$",
            id="pointer",
        ),
        pytest.param(
            "saved_model.pb",
            lambda data: data[:-40],
            "^saved_model.pb: is damaged, or no SavedModel: ",
            id="truncated",
        ),
        pytest.param(
            "saved_model.pb",
            lambda data: b"\x80\x04pickle",
            "^saved_model.pb: is damaged, or no SavedModel: ",
            id="wrong kind",
        ),
        pytest.param(
            "variables/variables.data-00000-of-00001",
            lambda data: data[:-8],
            r"^saved_model.pb: cannot be loaded: .*\(written by TensorFlow 2\.",
            id="variables",
        ),
        pytest.param(
            "variables/variables.index",
            lambda data: None,
            "^saved_model.pb: cannot be loaded: ",
            id="index missing",
        ),
        pytest.param(
            "saved_model.pb",
            lambda data: data.replace(b"MatMul", b"MotMul"),
            "^saved_model.pb: cannot be loaded: .*MotMul",
            id="unknown operation",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said(tmp_path: Path, file: str, damage: Any, reason: str) -> None:
    path = save(tmp_path, Net()) / file
    data = damage(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)

    with pytest.raises(ModelLoadError, match=reason) as caught:
        load(tmp_path)

    assert "\n" not in str(caught.value)
