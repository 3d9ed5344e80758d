"""A load balancer and its clients: they ask a server until it says that it is not ready."""

import threading
from http.client import HTTPConnection
from typing import Any

import grpc
import orjson
from images import Container

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.testing import request

BODY = orjson.dumps({"instances": [[1], [30]]})
PATH = "/v1/models/m:predict"
EXPECTED = {"predictions": [0, 1]}
POLL_S = 0.2


class Load:
    """Clients over kept and fresh connections of REST, and over gRPC; none tries anything twice.

    Attributes:
        failures: What was not answered as it should be.
        answered: How many requests were, by client.
    """

    def __init__(self, served: Container) -> None:
        self._served = served
        self._is_over = threading.Event()
        self.failures: list[str] = []
        self.answered: dict[str, int] = {}
        clients = {"kept": self._kept, "fresh": self._fresh, "grpc": self._grpc}
        self._threads = [
            threading.Thread(target=self._run, args=(f"{name}-{number}", client))
            for name, client in clients.items()
            for number in range(2)
        ]
        self._threads.append(threading.Thread(target=self._balance))

    def start(self) -> None:
        """Start the clients."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until readiness has failed and every client has its last answer."""
        for thread in self._threads:
            thread.join()

    def _balance(self) -> None:
        while not self._is_over.wait(POLL_S):
            try:
                if request(self._served.http_port, "GET", "/v2/health/ready").status != 200:
                    self._is_over.set()
            except OSError as error:
                self.failures.append(f"the server was gone before it was not ready: {error!r}")
                self._is_over.set()

    def _run(self, name: str, client: Any) -> None:
        self.answered[name] = 0
        try:
            client(name)
        except Exception as error:
            self.failures.append(f"{name}: {error!r}")

    def _count(self, name: str, answer: Any, expected: Any) -> None:
        if answer != expected:
            self.failures.append(f"{name}: {answer}")
        self.answered[name] += 1

    def _kept(self, name: str) -> None:
        connection = HTTPConnection("127.0.0.1", self._served.http_port, timeout=20)
        while not self._is_over.is_set():
            connection.request("POST", PATH, BODY)
            answer = connection.getresponse()
            self._count(name, (answer.status, orjson.loads(answer.read())), (200, EXPECTED))
        connection.close()

    def _fresh(self, name: str) -> None:
        while not self._is_over.is_set():
            answer = request(self._served.http_port, "POST", PATH, BODY)
            self._count(name, (answer.status, answer.json()), (200, EXPECTED))

    def _grpc(self, name: str) -> None:
        message = pb.ModelInferRequest(model_name="m")
        contents = pb.InferTensorContents(fp64_contents=[1, 30])
        message.inputs.add(name="x", shape=[2, 1], datatype="FP64", contents=contents)
        with grpc.insecure_channel(f"127.0.0.1:{self._served.grpc_port}") as channel:
            stub: Any = GRPCInferenceServiceStub(channel)
            while not self._is_over.is_set():
                rows = stub.ModelInfer(message, timeout=20).outputs[0].shape
                self._count(name, list(rows), [2])
