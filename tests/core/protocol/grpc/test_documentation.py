"""The documentation of gRPC says what is there, and its examples run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve import TensorModel
from kserve.config import make_parser
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.signature import Tensors
from kserve.testing import serving_ports

PAGE = (Path(__file__).parents[4] / "docs" / "grpc.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.+?)^```", PAGE, re.DOTALL | re.MULTILINE)


class Echo(TensorModel):
    def predict_tensors(self, tensors: Tensors, options: Any) -> Tensors:
        return dict(tensors)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving_ports([Echo("echo")]) as ports:
        yield ports.grpc


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_runs(example: str, port: int) -> None:
    assert "localhost:8081" in example

    exec(example.replace("localhost:8081", f"127.0.0.1:{port}"), {})


def test_every_rpc_is_listed() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", PAGE, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}

    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    assert {method.name for method in service.methods} <= listed


def test_every_limit_is_a_flag() -> None:
    flags = set(re.findall(r"--grpc_\w+", PAGE))

    known = {flag for action in make_parser()._actions for flag in action.option_strings}

    assert flags <= known
    assert {flag for flag in known if flag.startswith("--grpc_m")} <= flags
