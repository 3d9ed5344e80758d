"""The operator tests that the package onnx carries, through the server.

Each case is a model with recorded inputs and outputs. What ONNX Runtime passes in this process, and
the protocol can carry, passes through the server, and bit for bit as in this process.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from tests.onnxserver.graphs import own_session, uncovered
from tritonclient.utils import np_to_triton_dtype

from kserve.testing import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Values = dict[str, Any]

_CARRIED = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float", "double", "string"),
}


@dataclass
class Case:
    """One case that passes in this process: what goes in, and what comes out there."""

    name: str
    rtol: float
    atol: float
    inputs: Values
    recorded: Values
    expected: Values = field(default_factory=dict)


def examine(case: Any) -> Case | str:
    """Run a case in this process; gives why it is not one for the server."""
    folder = Path(case.model_dir)
    try:
        session = own_session(folder / "model.onnx")
    except Exception:
        return "onnxruntime cannot load it"
    types = [node.type for node in (*session.get_inputs(), *session.get_outputs())]
    if any(node.type.startswith(("seq", "optional(seq")) for node in session.get_inputs()):
        return "takes a sequence"
    if any(name.startswith("tensor(") and name[7:-1] not in _CARRIED for name in types):
        return "the protocol has no such datatype"
    (data,) = sorted(folder.glob("test_data_set_*"))
    given = [(node, data / f"input_{i}.pb") for i, node in enumerate(session.get_inputs())]
    inputs = {node.name: read(node.type, path) for node, path in given if path.exists()}
    found = Case(case.name, case.rtol, case.atol, inputs, {})
    for i, node in enumerate(session.get_outputs()):
        found.recorded[node.name] = read(node.type, data / f"output_{i}.pb")
    try:
        values = session.run(None, inputs)
        found.expected = dict(zip(found.recorded, values, strict=True))
        check_recorded(found, found.expected)
    except (AssertionError, ValueError):
        return "onnxruntime gives something else than was recorded"
    except Exception:
        return "onnxruntime cannot run it"
    return found


def read(type_name: str, path: Path) -> Any:
    data = path.read_bytes()
    if type_name.startswith("seq"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if type_name.startswith("optional"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def check_recorded(case: Case, values: Values) -> None:
    Runner.assert_similar_outputs(
        list(case.recorded.values()), list(values.values()), case.rtol, case.atol
    )


def ask(client: triton.InferenceServerClient, case: Case, *, binary: bool) -> Values:
    """Send a case, and give its outputs; the tensors of a sequence as a list."""
    inputs = []
    for name, array in case.inputs.items():
        if array is not None:
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            inputs.append(tensor.set_data_from_numpy(array, binary_data=binary))
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in case.expected]
    answer = client.infer(case.name, inputs, outputs=wanted)
    names = [output["name"] for output in answer.get_response()["outputs"]]
    return {
        name: [as_array(answer, each) for each in names if each.startswith(f"{name}-")]
        if isinstance(value, list)
        else as_array(answer, name)
        for name, value in case.expected.items()
    }


def as_array(answer: triton.InferResult, name: str) -> NDArray[Any]:
    array: NDArray[Any] = answer.as_numpy(name)
    if array.dtype.kind != "O":
        return array
    texts = [each.decode() if isinstance(each, bytes) else each for each in array.ravel()]
    return np.array(texts, np.object_).reshape(array.shape)


def is_json(case: Case) -> bool:
    """Say whether JSON can carry all that goes in and comes out: neither FP16 nor NaN."""
    values = [*case.inputs.values(), *case.expected.values()]
    arrays = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return all(
        array is not None
        and array.dtype != np.float16
        and (array.dtype.kind != "f" or bool(np.isfinite(array).all()))
        for array in arrays
    )


def differences(case: Case, given: Values) -> list[str]:
    found = []
    for name, expected in case.expected.items():
        try:
            np.testing.assert_equal(given[name], expected, strict=True)
        except AssertionError as error:
            found.append(f"{case.name}: {name}: {error}")
    try:
        check_recorded(case, given)
    except AssertionError as error:
        found.append(f"{case.name}: {error}")
    return found


# How many of each kind pass at least; which ones do depends on the processor, too.
LEAST = {"node": 1450, "simple": 15, "pytorch-converted": 55, "pytorch-operator": 20}


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Any]]:
    return {kind: list(load_model_tests(kind=kind)) for kind in LEAST}


@pytest.fixture(scope="module")
def server(
    cases: dict[str, list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Serve every case in one process, those that cannot be loaded too."""
    folder = tmp_path_factory.mktemp("cases")
    for case in (case for each in cases.values() for case in each):
        (folder / case.name).symlink_to(case.model_dir)
    # They would take hundreds of threads otherwise, and one thread gives the same bits each time.
    arguments = ("--model_dir", str(folder), "--intra_op_threads", "1")
    with ServerProcess("onnxserver", *arguments, "--listen_early", env=uncovered()) as process:
        while process.request("GET", "/v2/health/ready").status != 200:
            time.sleep(0.1)
        yield process


@pytest.mark.parametrize("kind", LEAST)
def test_what_onnxruntime_passes_passes_through_the_server(
    cases: dict[str, list[Any]],
    server: ServerProcess,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts: Counter[str] = Counter()
    failures: list[str] = []
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")

    for each in cases[kind]:
        case = examine(each)
        if isinstance(case, str):
            counts[case] += 1
            continue
        try:
            failures += differences(case, ask(client, case, binary=True))
            counts["passes in binary form"] += 1
            if is_json(case):
                failures += differences(case, ask(client, case, binary=False))
                counts["passes as JSON too"] += 1
        except triton.InferenceServerException as error:
            failures.append(f"{case.name}: {error}")
    client.close()

    with capsys.disabled():
        sys.stdout.write(f"\n{kind}: {len(cases[kind])} cases: {dict(counts)}\n")
    assert failures == []
    assert counts["passes in binary form"] >= LEAST[kind]
