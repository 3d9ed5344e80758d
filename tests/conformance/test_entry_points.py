"""What the installed servers declare for `python -m kserve` they can load."""

from pkgutil import resolve_name

import pytest

from kserve.servers import InstalledServer, installed_servers

SERVERS = list(installed_servers().values())


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_a_server_declares_only_what_its_model_finds(server: InstalledServer) -> None:
    model = resolve_name(server.model)

    # It may leave to others what is another framework's in the first place.
    assert set(server.suffixes) <= set(model.artifact_suffixes)
    assert server.suffixes
    assert server.version
