"""Finding the installed server for a directory."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from kserve.errors import ModelMissingError
from kserve.servers import GROUP, InstalledServer, fitting_servers, installed_servers, needs

SERVERS = [
    InstalledServer("boostserver", "boostserver.model:Boost", "1.0", (".bst", ".json")),
    InstalledServer("codeserver", "codeserver.model:Code", "1.0", ("model.py",)),
    InstalledServer("lightserver", "lightserver.model:Light", "1.0", (".bst", ".txt")),
]


def fill(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


def test_a_server_is_declared_by_what_it_finds() -> None:
    entries = [
        EntryPoint(".npz", "linserver.model:LinearModel", GROUP),
        EntryPoint(".npy", "linserver.model:LinearModel", GROUP),
        EntryPoint("model.py", "codeserver.model:Code", GROUP),
    ]

    servers = installed_servers(entries)

    assert servers == {
        "codeserver": InstalledServer("codeserver", "codeserver.model:Code", "", ("model.py",)),
        "linserver": InstalledServer(
            "linserver", "linserver.model:LinearModel", "", (".npy", ".npz")
        ),
    }
    assert needs(servers.values()) == "\n  codeserver: model.py\n  linserver: *.npy, *.npz"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        pytest.param(["m.json"], {"boostserver": "m.json"}, id="a suffix"),
        pytest.param(["M.JSON", "README.md"], {"boostserver": "M.JSON"}, id="upper case"),
        pytest.param(
            ["m.bst"], {"boostserver": "m.bst", "lightserver": "m.bst"}, id="of two servers"
        ),
        pytest.param(
            ["model.py", "m.bst", "requirements.txt"],
            {"codeserver": "model.py"},
            id="a whole name counts alone",
        ),
        pytest.param(["my_model.py"], {}, id="not the whole name"),
        pytest.param(["warmup.json"], {}, id="the warm-up request"),
        pytest.param([".m.json"], {}, id="hidden"),
        pytest.param(
            ["m.txt", "1/m.json"], {"lightserver": "m.txt"}, id="the top hides what is below"
        ),
        pytest.param(["2/m.json", "1/m.json"], {"boostserver": "1/m.json"}, id="versions"),
        pytest.param(
            ["a/1/m.json", "b/model.py", "b/m.bst"],
            {"boostserver": "a/1/m.json", "codeserver": "b/model.py"},
            id="models of two servers",
        ),
        pytest.param(["a/b/c/m.json"], {}, id="too deep"),
    ],
)
def test_finds_the_servers_of_a_directory(
    tmp_path: Path, files: list[str], found: dict[str, str]
) -> None:
    fill(tmp_path, *files)

    assert fitting_servers(tmp_path, SERVERS) == found


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="no such directory"):
        fitting_servers(tmp_path / "none", SERVERS)
