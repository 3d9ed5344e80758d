"""Servers in this process, one for each model and its flags, and what they are asked."""

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from hfserver.checkpoint import open_directory
from hfserver.options import Options, add_arguments
from hfserver.server import make_model
from kserve.testing import Response, request, serving_ports

TEXTS = ["the cat sat on a mat", "Anna came back from Berlin", "far away"]
MASKED = "the cat sat on the [MASK]"


class Askable(Protocol):
    """What answers over REST."""

    def request(self, method: str, path: str, body: Any = None) -> Response:
        """Send one request."""


@dataclass(frozen=True)
class Served:
    """A server.

    Attributes:
        port: Its REST port.
        grpc_port: Its gRPC port.
    """

    port: int
    grpc_port: int

    def request(self, method: str, path: str, body: Any = None) -> Response:
        """Send one request."""
        return request(self.port, method, path, body)


class Servers:
    """Starts each server once, when it is first asked for; its model is `m`.

    Args:
        directories: The models.
        stack: Ends the servers.
    """

    def __init__(self, directories: dict[str, Path], stack: ExitStack) -> None:
        self._directories = directories
        self._stack = stack
        self._running: dict[tuple[str, ...], Served] = {}

    def __call__(self, kind: str, *flags: str) -> Served:
        """Give the server of a model with some flags."""
        key = (kind, *flags)
        if key not in self._running:
            model = make_model("m", open_directory(self._directories[kind]), parse(*flags))
            ports = self._stack.enter_context(serving_ports([model], enable_grpc=True))
            self._running[key] = Served(ports.http, ports.grpc)
        return self._running[key]


def parse(*flags: str) -> Options:
    """Read flags as the command line does."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--hang_timeout_s", type=float, default=0.0)
    add_arguments(parser)
    return Options.from_args(parser.parse_args(flags))


def v1(server: Askable, instances: list[Any], **parameters: Any) -> Any:
    body = {"instances": instances, **({"parameters": parameters} if parameters else {})}
    answer = server.request("POST", "/v1/models/m:predict", body)
    assert answer.status == 200, answer.body
    return answer.json()["predictions"]


def v2(server: Askable, texts: list[str], **parameters: Any) -> dict[str, Any]:
    body = {
        "inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}],
        "parameters": parameters,
    }
    answer = server.request("POST", "/v2/models/m/infer", body)
    assert answer.status == 200, answer.body
    return {output["name"]: output for output in answer.json()["outputs"]}


def approximate(rows: Any) -> Any:
    """Give a result with numbers that need only be nearly the same."""
    if isinstance(rows, list):
        return [approximate(row) for row in rows]
    if isinstance(rows, dict):
        return {key: approximate(value) for key, value in rows.items()}
    return pytest.approx(float(rows), abs=1e-5) if isinstance(rows, float | np.floating) else rows
