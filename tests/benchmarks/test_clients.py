"""Clients of the soak against a server that is right, one that lies, and one that refuses."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from benchmarks import bad_clients, clients
from benchmarks.artifacts import train
from benchmarks.clients import Act, Client, Fault, Known, Target

from kserve.config import ServerConfig
from kserve.model_server import ModelServer
from kserve.testing import serving_ports
from sklearnserver import SKLearnModel


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder: Path = tmp_path_factory.mktemp("models")
    artifacts = [train(name, folder) for name in ("iris", "linear")]
    models = [SKLearnModel(artifact.name, str(artifact.directory)) for artifact in artifacts]
    config = ServerConfig(host="127.0.0.1", http_port=0, grpc_port=0, configure_logging=False)
    known = [Known.of(artifact) for artifact in artifacts]
    with serving_ports(models, ModelServer(config=config)) as ports:
        yield Target(ports.http, ports.grpc, known, [known[0]])


def act(act: Act, target: Target, times: int = 12) -> None:
    client = Client(target, seed=3)
    try:
        for _ in range(times):
            act(client)
    finally:
        client.close()


@pytest.mark.parametrize(
    "good",
    [
        clients.ask_v1,
        clients.ask_v2_json,
        clients.ask_v2_binary,
        clients.ask_grpc,
        clients.ask_grpc_stream,
        clients.ask_spare,
        clients.look,
        bad_clients.ask_wrongly,
        bad_clients.ask_wrongly_over_grpc,
        bad_clients.send_garbage_to_grpc,
        bad_clients.leave_mid_body,
        bad_clients.leave_before_the_answer,
        bad_clients.leave_mid_answer,
        bad_clients.cancel_over_grpc,
    ],
    ids=lambda good: good.__name__,
)
def test_finds_no_fault_with_a_server_that_is_right(good: Act, target: Target) -> None:
    act(good, target)


@pytest.mark.parametrize(
    "good",
    [
        clients.ask_v1,
        clients.ask_v2_json,
        clients.ask_v2_binary,
        clients.ask_grpc,
        clients.ask_grpc_stream,
        clients.ask_spare,
    ],
    ids=lambda good: good.__name__,
)
def test_finds_a_wrong_answer(good: Act, target: Target) -> None:
    wrong = [Known(each.name, each.features, each.labels + 7) for each in target.models]
    mistaken = Target(target.port, target.grpc_port, wrong, wrong[:1])

    with pytest.raises(Fault, match="wrong answer"):
        act(good, mistaken)


@pytest.mark.parametrize(
    ("good", "fault"),
    [
        pytest.param(clients.ask_v1, "V1: 404", id="V1"),
        pytest.param(clients.ask_v2_json, "V2 JSON: 404", id="V2 JSON"),
        pytest.param(clients.ask_v2_binary, "V2 binary: 404", id="V2 binary"),
        pytest.param(clients.ask_grpc_stream, "gRPC stream: ", id="gRPC stream"),
        pytest.param(bad_clients.change_models, "POST /v2/repository/", id="the repository"),
    ],
)
def test_finds_a_refusal(good: Act, fault: str, target: Target) -> None:
    absent = [Known("absent", np.zeros((3, 4)), np.zeros(3))]

    with pytest.raises(Fault, match=f"^{fault}"):
        act(good, Target(target.port, target.grpc_port, absent, absent))


def test_no_two_requests_look_alike(target: Target) -> None:
    client = Client(target, seed=3)

    samples = [client.target.models[0].sample(client.chance, 5) for _ in range(20)]
    client.close()

    assert len({rows.tobytes() for rows, _ in samples}) > 15
    for rows, labels in samples:
        assert rows.shape == (5, 4)
        assert labels.shape == (5,)


def test_half_open_connections_stay_until_twenty_newer_ones(target: Target) -> None:
    half_open = bad_clients.HalfOpen()
    client = Client(target, seed=3)

    for _ in range(25):
        half_open.open_one(client)
    stayed = list(half_open.connections)
    half_open.close()
    client.close()

    assert len(stayed) == 20
    assert not half_open.connections
    assert {connection.fileno() for connection in stayed} == {-1}
