"""Ports that are bound before the models are loaded."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kserve import Model, ModelServer
from kserve.config import ServerConfig
from kserve.errors import NoModelReady
from kserve.testing import ServerProcess, request, serving, serving_ports

pytestmark = pytest.mark.anyio

WAIT_S = 15
LOCAL = ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0, listen_early=True)
STARTING = "Model with name {} is not ready. It is loading."

SCRIPT = """\
import sys, threading
import kserve

class Hanging(kserve.Model):
    def load(self):
        print("loading", file=sys.stderr, flush=True)
        threading.Event().wait()

kserve.ModelServer().start([Hanging("hanging")])
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Gated(Model):
    """Loads once it is let."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.may_load = threading.Event()

    def load(self) -> bool:
        self.may_load.wait(WAIT_S)
        self.ready = True
        return True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


def _statuses(port: int) -> dict[str, int]:
    paths = ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/gated/ready")
    return {path: request(port, "GET", path).status for path in paths}


def _watch(port: int, name: str) -> Any:
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return channel, stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S)


def test_live_answers_while_models_load_and_ready_once_they_are() -> None:
    model = Gated("gated")

    with serving_ports(model, ModelServer(config=LOCAL)) as ports:
        channel, watch = _watch(ports.grpc, "")
        before = _statuses(ports.http), next(watch).status
        liveness_channel, liveness = _watch(ports.grpc, "LIVENESS")
        live = next(liveness).status
        refused = request(ports.http, "POST", "/v1/models/gated:predict", {"instances": [1]})
        model.may_load.set()
        after = next(watch).status, _statuses(ports.http)
        answer = request(ports.http, "POST", "/v1/models/gated:predict", {"instances": [1]})
        channel.close()
        liveness_channel.close()

    of = health_pb2.HealthCheckResponse
    loading = {"/": 200, "/v2/health/live": 200, "/v2/health/ready": 503}
    assert before == ({**loading, "/v2/models/gated/ready": 503}, of.NOT_SERVING)
    assert live == of.SERVING
    assert after == (of.SERVING, dict.fromkeys(before[0], 200))
    assert (refused.status, refused.json()) == (503, {"error": STARTING.format("gated")})
    assert answer.json() == {"predictions": [1]}


async def test_a_name_that_is_not_known_is_not_ready_while_a_directory_is_looked_at() -> None:
    server = ModelServer(config=LOCAL)
    may_load, addresses = asyncio.Event(), asyncio.Queue[str]()

    async def load() -> None:
        await may_load.wait()

    serve = asyncio.create_task(server.serve([], addresses.put_nowait, load=load))
    port = int((await addresses.get()).rpartition(":")[2])
    path = "/v1/models/unknown"
    before = await asyncio.to_thread(request, port, "GET", path)
    may_load.set()
    while (await asyncio.to_thread(request, port, "GET", "/v2/health/ready")).status != 200:
        pass
    after = await asyncio.to_thread(request, port, "GET", path)
    server.stop()
    await serve

    starting = "Model with name unknown is not ready. The server is starting."
    assert (before.status, before.json()) == (503, {"error": starting})
    assert after.status == 404


@pytest.mark.parametrize("listen_early", [False, True])
def test_a_load_that_fails_ends_the_start(listen_early: bool) -> None:
    class Failing(Gated):
        def load(self) -> bool:
            raise ValueError("no weights")

    with (
        pytest.raises(NoModelReady, match="ValueError: no weights"),
        serving(Failing("failing"), listen_early=listen_early),
    ):
        pass


@pytest.mark.timeout(90)
def test_a_signal_ends_a_load_behind_an_open_port(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(SCRIPT)
    args = ("--listen_early", "--drain_delay_s", "60", "--grace_period_s", "120")

    with ServerProcess(str(script), *args) as server:
        server.wait_for("loading")
        live = server.request("GET", "/v2/health/live").status
        code = server.stop()

    assert (live, code) == (200, 0)
