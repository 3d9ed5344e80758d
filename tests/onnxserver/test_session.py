"""How a session is opened, and what its errors say."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tests.onnxserver.graphs import FLOAT, INT64, graph, node, save, tensor, unary

from kserve.cpu import cpu_count
from kserve.errors import InvalidInput, ModelLoadError
from kserve.logging import logger
from onnxserver.model_file import read_model_file
from onnxserver.session import open_session, run_error, run_options
from onnxserver.settings import SessionSettings


def opened(
    path: Path, settings: SessionSettings | None = None, name: str = "m"
) -> ort.InferenceSession:
    return open_session(path, settings or SessionSettings(), read_model_file(path), name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "model", unary()) / "model.onnx"


def test_uses_the_cpus_of_the_container_and_no_plans_for_each_shape(path: Path) -> None:
    options = opened(path).get_session_options()

    assert options.intra_op_num_threads == cpu_count()
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_plans_its_memory_where_shapes_are_fixed(tmp_path: Path) -> None:
    path = save(tmp_path, unary(shape=(2, 4))) / "model.onnx"

    assert opened(path).get_session_options().enable_mem_pattern


def test_is_opened_as_the_settings_say(path: Path) -> None:
    settings = SessionSettings(
        providers=("cpu",),
        intra_op_threads=3,
        inter_op_threads=2,
        optimization_level="basic",
        config={"session.intra_op.allow_spinning": "1", "session.set_denormal_as_zero": "1"},
    )

    session = opened(path, settings)
    options = session.get_session_options()

    assert session.get_providers() == ["CPUExecutionProvider"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("disable", ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
        ("extended", ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    ],
)
def test_every_level_is_one_of_the_runtime(path: Path, level: str, expected: Any) -> None:
    options = opened(path, SessionSettings(optimization_level=level)).get_session_options()

    assert options.graph_optimization_level == expected


@pytest.mark.parametrize("name", ["CUDA", "NoSuchExecutionProvider"])
def test_a_provider_that_is_not_built_in_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        opened(path, SessionSettings(providers=(name, "CPU")))

    assert str(caught.value).startswith(f"provider {name}: this build of onnxruntime ")
    assert "CPUExecutionProvider" in str(caught.value)


def test_a_provider_that_cannot_be_used_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A build for CUDA on a machine without a GPU: it is available, and sessions go without it.
    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: known)

    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ModelLoadError, match=r"^model.onnx: the provider CUDAExecutionProvider can"),
    ):
        opened(path, SessionSettings(providers=("cuda", "cpu")))


def test_the_optimised_graph_is_written_to_a_file(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "optimised.onnx"

    opened(path, SessionSettings(optimized_model_path=str(target)))

    assert onnx.load(target).graph.node[0].op_type == "Relu"


def test_the_optimised_graph_of_each_model_is_written_to_a_directory(
    path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "optimised"
    target.mkdir()

    for name in ("a", "b-2"):
        opened(path, SessionSettings(optimized_model_path=str(target)), name)

    assert sorted(each.name for each in target.iterdir()) == ["a.onnx", "b-2.onnx"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        pytest.param("model/o.onnx", "expected a place outside of the model dir", id="inside"),
        pytest.param("model/1/o.onnx", "expected a place outside of the model dir", id="below"),
        pytest.param("none/o.onnx", "there is no such directory", id="missing"),
    ],
)
def test_a_place_that_suits_no_optimised_graph_is_refused(
    path: Path, tmp_path: Path, target: str, reason: str
) -> None:
    settings = SessionSettings(optimized_model_path=str(tmp_path / target))

    with pytest.raises(ModelLoadError, match=reason):
        opened(path, settings)

    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]


def external(directory: Path) -> Path:
    weights = {"w": np.arange(4000, dtype=np.float32).reshape(4, 1000)}
    outputs = [tensor("y", FLOAT, ["N", 1000])]
    model = graph([node("MatMul", ["x", "w"], ["y"])], [tensor("x")], outputs, weights)
    directory.mkdir()
    path = directory / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_is_read_beside_the_file(tmp_path: Path) -> None:
    session = opened(external(tmp_path / "m"))

    (y,) = session.run(None, {"x": np.eye(1, 4, dtype=np.float32)})
    np.testing.assert_array_equal(y, np.arange(1000, dtype=np.float32).reshape(1, 1000))


GOOD = unary().SerializeToString()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "expected an ONNX model, found an empty file", id="empty"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "expected an ONNX model, found the pointer of Git LFS that stands for it: fetch the "
            "file itself",
            id="LFS pointer",
        ),
        pytest.param(GOOD[:-7], "cannot be loaded: Protobuf parsing failed.", id="truncated"),
        pytest.param(b"not a model " * 9, "cannot be loaded: Protobuf parsing failed.", id="text"),
        pytest.param(
            b"PK\x03\x04" + bytes(99), "cannot be loaded: Protobuf parsing failed.", id="zip"
        ),
        pytest.param(
            graph([node("Foo", ["x"], ["y"])], [tensor("x")], [tensor("y")]).SerializeToString(),
            "Error No Op registered for Foo with domain_version of 18 (written by tests 1, operator"
            f" sets ai.onnx 18, ai.onnx.ml 3, onnxruntime is {ort.__version__})",
            id="unknown operator",
        ),
        pytest.param(
            graph(
                [node("Foo", ["x"], ["y"], domain="com.acme")],
                [tensor("x")],
                [tensor("y")],
                domains={"com.acme": 1},
            ).SerializeToString(),
            "cannot be loaded: Fatal error: com.acme:Foo(-1) is not a registered function/op",
            id="unknown domain",
        ),
        pytest.param(
            graph(
                [node("Relu", ["x"], ["y"])], [tensor("x")], [tensor("y")], opset=99
            ).SerializeToString(),
            "Opset 99 is under development and support for this is limited.",
            id="unknown operator set",
        ),
        pytest.param(
            graph(
                [node("Relu", ["x"], ["y"])], [tensor("x")], [tensor("y")], ir_version=99
            ).SerializeToString(),
            "cannot be loaded: Unsupported model IR version: 99, max supported IR version:",
            id="unknown IR",
        ),
    ],
)
def test_what_cannot_be_loaded_says_why(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)

    with pytest.raises(ModelLoadError) as caught:
        opened(path)

    text = str(caught.value)
    assert text.startswith("model.onnx: ")
    assert reason in text
    assert str(tmp_path) not in text
    assert "onnxruntime_src" not in text


def test_every_truncated_file_is_refused_or_whole(tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 4), np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["z"]), node("Relu", ["z"], ["y"])]
    whole = graph(nodes, [tensor("x")], [tensor("y")], weights).SerializeToString()
    path = tmp_path / "model.onnx"
    loaded = []

    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        try:
            session = opened(path)
        except ModelLoadError:
            continue
        (y,) = session.run(None, {"x": np.ones((1, 4), np.float32)})
        loaded.append((n_bytes, y.tolist()))

    # What is missing there is the version of an operator set that it does not use.
    assert [y for _, y in loaded] == [[[4.0] * 4]] * len(loaded)
    assert len(loaded) <= 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda data: data.unlink(), "External data path does not exist", id="missing"),
        pytest.param(
            lambda data: data.write_bytes(data.read_bytes()[:100]), "out of bounds", id="truncated"
        ),
    ],
)
def test_external_data_that_is_not_whole_is_refused(
    tmp_path: Path, change: Any, reason: str
) -> None:
    path = external(tmp_path / "m")
    change(path.with_name("weights.bin"))

    with pytest.raises(ModelLoadError, match=rf"^model.onnx: cannot be loaded: .*{reason}"):
        opened(path)


def failed(model: onnx.ModelProto, **inputs: Any) -> Exception:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception) as caught:
        session.run(None, inputs, run_options())
    return caught.value


def test_values_that_a_graph_cannot_run_on_are_the_client_s_mistake(
    capfd: pytest.CaptureFixture[str],
) -> None:
    inputs = [tensor("x", FLOAT, ["N"]), tensor("i", INT64, ["M"])]
    model = graph(
        [node("Gather", ["x", "i"], ["y"], name="pick")], inputs, [tensor("y", FLOAT, ["M"])]
    )
    error = failed(model, x=np.ones(2, np.float32), i=np.array([9]))

    refusal = run_error(error)

    assert isinstance(refusal, InvalidInput)
    assert refusal.reason == (
        "the model cannot run on these inputs: Gather 'pick': indices element out of data bounds, "
        "idx=9 must be within the inclusive range [-2,1]"
    )
    assert capfd.readouterr().err == ""


def test_shapes_that_do_not_go_together_are_the_client_s_mistake() -> None:
    inputs = [tensor("a", FLOAT, ["N"]), tensor("b", FLOAT, ["M"])]
    model = graph([node("Add", ["a", "b"], ["y"])], inputs, [tensor("y", FLOAT, ["N"])])
    error = failed(model, a=np.ones(2, np.float32), b=np.ones(3, np.float32))

    assert str(run_error(error)) == (
        "the model cannot run on these inputs: Add: axis == 1 || axis == largest was false. "
        "Attempting to broadcast an axis by a dimension other than 1. 2 by 3"
    )


@pytest.mark.parametrize("text", ["std::bad_alloc", "Failed to allocate memory", "CUDA failure 2"])
def test_a_want_of_memory_is_not_the_client_s_mistake(text: str) -> None:
    error = type("RuntimeException", (Exception,), {})(text)

    assert run_error(error) is error


def test_an_error_of_another_kind_is_passed_on() -> None:
    error = RuntimeError("no corresponding type")

    assert run_error(error) is error


def test_warnings_of_the_runtime_are_shown_to_those_who_debug(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # A constant that may be overridden is one.
    inputs = [tensor("x"), tensor("w", FLOAT, [4])]
    model = graph(
        [node("Add", ["x", "w"], ["y"])], inputs, [tensor("y")], {"w": np.ones(4, np.float32)}
    )
    path = save(tmp_path, model) / "model.onnx"

    opened(path)
    quiet = capfd.readouterr().err
    with caplog.at_level(logging.DEBUG, logger.name):
        opened(path)

    assert quiet == ""
    assert "Initializer w appears in graph inputs" in capfd.readouterr().err
