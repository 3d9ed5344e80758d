"""Clients that mean well: every wire, every size, and each answer compared with the estimator's."""

import gzip
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks import payloads
from benchmarks.artifacts import Artifact
from benchmarks.payloads import HttpRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc

TIMEOUT_S: Final = 30
_SIZES: Final = (1, 2, 7, 50, 300)
# Of the model with 100 features: up to 4 MB.
_LARGE_SIZES: Final = (1000, 3000, 10000)
_LARGE: Final = "linear"
_MESSAGE_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Each client is a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
)


class Fault(Exception):
    """A server did not do what it should; the text says what was asked and what came."""


@dataclass(frozen=True, slots=True)
class Known:
    """A model whose right answers are known.

    Attributes:
        name: What it is served as.
        features: Rows, (n_rows, n_features) FP64.
        labels: What it gives for each of them, (n_rows,).
    """

    name: str
    features: NDArray[np.float64]
    labels: NDArray[Any]

    @classmethod
    def of(cls, artifact: Artifact, name: str | None = None) -> "Known":
        """Give that of an artifact, which may be served under another name."""
        labels = artifact.estimator.predict(artifact.features)
        return cls(name or artifact.name, artifact.features, labels)

    def sample(
        self, chance: random.Random, n_rows: int, dtype: str = "float64"
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give rows and their labels, from a place of its own: no two requests look alike."""
        start = chance.randrange(len(self.features))
        which = np.arange(start, start + n_rows) % len(self.features)
        return self.features[which].astype(dtype), self.labels[which]


@dataclass(frozen=True, slots=True)
class Target:
    """A server and what is served there.

    Attributes:
        port: Its REST port.
        grpc_port: Its gRPC port.
        models: Those that always answer.
        spares: Those that are loaded and unloaded meanwhile.
    """

    port: int
    grpc_port: int
    models: Sequence[Known]
    spares: Sequence[Known]


class Client:
    """One user: a kept connection, a gRPC channel, and chance.

    Args:
        target: Whom it asks.
        seed: Of its chance.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self.chance = random.Random(seed)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", _MESSAGE_OPTIONS)
        self.stub = pb_grpc.GRPCInferenceServiceStub(self.channel)
        self._kept: HTTPConnection | None = None

    def close(self) -> None:
        """Close its connections."""
        self.channel.close()
        if self._kept is not None:
            self._kept.close()

    def model(self) -> Known:
        """Give one of the models that always answer."""
        return self.chance.choice(self.target.models)

    def n_rows(self, model: Known) -> int:
        """Give a size, sometimes a large one."""
        is_large = model.name == _LARGE and self.chance.random() < 0.1
        return self.chance.choice(_LARGE_SIZES if is_large else _SIZES)

    def post(self, request: HttpRequest) -> tuple[int, bytes, int | None]:
        """Send over a new connection, or over the kept one.

        Returns:
            Status, body, and the length of the JSON part where the answer says it.
        """
        if self.chance.random() < 0.5:
            return self._post(self._new_connection(), request)
        try:
            return self._post(self._kept_connection(), request, keep=True)
        except (HTTPException, OSError):
            # A server may close a connection that is idle while the request is on its way.
            assert self._kept is not None
            self._kept.close()
            return self._post(self._kept_connection(), request, keep=True)

    def _kept_connection(self) -> HTTPConnection:
        if self._kept is None:
            self._kept = self._new_connection()
        return self._kept

    def _new_connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.target.port, timeout=TIMEOUT_S)

    def _post(
        self, connection: HTTPConnection, request: HttpRequest, keep: bool = False
    ) -> tuple[int, bytes, int | None]:
        try:
            connection.request("POST", request.path, request.body, dict(request.headers))
            response = connection.getresponse()
            length = response.getheader("Inference-Header-Content-Length")
            return response.status, response.read(), int(length) if length else None
        finally:
            if not keep:
                connection.close()


Act = Callable[[Client], None]


def ask_v1(client: Client) -> None:
    """Predict over V1."""
    model = client.model()
    rows, labels = model.sample(client.chance, client.n_rows(model))
    status, body, _ = client.post(payloads.v1_json(model.name, rows))
    _expect_ok("V1", status, body)
    _expect_labels("V1", payloads.v1_predictions(body), labels)


def ask_v2_json(client: Client) -> None:
    """Infer over V2 with JSON, sometimes compressed."""
    model = client.model()
    rows, labels = model.sample(client.chance, client.n_rows(model))
    request = payloads.v2_json(model.name, rows)
    if client.chance.random() < 0.2:
        headers = {**request.headers, "Content-Encoding": "gzip"}
        request = HttpRequest(request.path, gzip.compress(request.body, 1), headers)
    status, body, _ = client.post(request)
    _expect_ok("V2 JSON", status, body)
    _expect_labels("V2 JSON", payloads.v2_output(body), labels)


def ask_v2_binary(client: Client) -> None:
    """Infer over V2 with binary tensors."""
    model = client.model()
    rows, labels = model.sample(client.chance, client.n_rows(model), "float32")
    status, body, json_length = client.post(payloads.v2_binary(model.name, rows))
    _expect_ok("V2 binary", status, body)
    _expect_labels("V2 binary", payloads.v2_output(body, json_length), labels)


def ask_grpc(client: Client) -> None:
    """Infer over gRPC, raw or typed."""
    request, labels = _grpc_request(client)
    response = client.stub.ModelInfer(request, timeout=TIMEOUT_S)
    _expect_labels("gRPC", payloads.grpc_output(response), labels)


def ask_grpc_stream(client: Client) -> None:
    """Infer some times over one stream."""
    asked = [_grpc_request(client) for _ in range(client.chance.randint(1, 6))]
    answers = client.stub.ModelStreamInfer((request for request, _ in asked), timeout=TIMEOUT_S)
    for (_, labels), answer in zip(asked, answers, strict=True):
        if answer.error_message:
            raise Fault(f"gRPC stream: {answer.error_message}")
        _expect_labels("gRPC stream", payloads.grpc_output(answer.infer_response), labels)


def ask_spare(client: Client) -> None:
    """Infer from a model that comes and goes: a right answer, or that it is not there."""
    model = client.chance.choice(client.target.spares)
    rows, labels = model.sample(client.chance, 1)
    status, body, _ = client.post(payloads.v2_json(model.name, rows))
    if status in (404, 503):
        return
    _expect_ok("spare", status, body)
    _expect_labels("spare", payloads.v2_output(body), labels)


def look(client: Client) -> None:
    """Scrape, or look at health and metadata."""
    model = client.model().name
    paths = ("/metrics", "/v2/health/live", "/v2/health/ready", f"/v2/models/{model}", "/v1/models")
    path = client.chance.choice(paths)
    status, body = http_get(client.target.port, path)
    if status != 200 or not body:
        raise Fault(f"GET {path}: {status} {body[:200]!r}")


def http_get(port: int, path: str) -> tuple[int, bytes]:
    """Give the status and the body of a GET over a new connection."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _grpc_request(client: Client) -> tuple[pb.ModelInferRequest, NDArray[Any]]:
    model = client.model()
    if client.chance.random() < 0.3:
        rows, labels = model.sample(client.chance, client.chance.choice(_SIZES))
        return payloads.grpc_typed(model.name, rows), labels
    rows, labels = model.sample(client.chance, client.n_rows(model), "float32")
    return payloads.grpc_raw(model.name, rows), labels


def _expect_ok(what: str, status: int, body: bytes) -> None:
    if status != 200:
        raise Fault(f"{what}: {status} {body[:200]!r}")


def _expect_labels(what: str, given: NDArray[Any], labels: NDArray[Any]) -> None:
    if not np.array_equal(given, labels):
        raise Fault(f"{what}: wrong answer {given[:5]}, not {labels[:5]}, of {len(labels)} rows")
