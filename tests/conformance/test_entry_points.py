"""What the installed servers declare for `python -m kserve` is what they load."""

from pkgutil import resolve_name

import pytest

from kserve.servers import InstalledServer, installed_servers

SERVERS = list(installed_servers().values())


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_a_server_declares_what_its_model_finds(server: InstalledServer) -> None:
    model = resolve_name(server.model)

    assert server.suffixes == tuple(sorted(model.artifact_suffixes))
    assert server.version
