"""Starts each server of the table once, when the first test asks for it."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer


def _load_table() -> ModuleType:
    # Test folders are no packages and cannot import from one another.
    name = "kserve_conformance_servers"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("servers.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_table = _load_table()
_entries = {entry.name: entry for entry in (*_table.SERVERS, _table.PROXY)}

# Fixtures that give one server.
_SERVERS_OF = {"echo": "echo", "iris": "sklearnserver", "filling_iris": "sklearnserver"}


@pytest.fixture(scope="session")
def running_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., "RunningServer"]]:
    """Give the running server of an entry's name, and of flags where some follow."""
    with ExitStack() as stack:

        @cache
        def start(name: str, *flags: str) -> "RunningServer | Exception":
            entry = _entries[name]
            try:
                process = stack.enter_context(entry.start(tmp_path_factory.mktemp(name), *flags))
            except Exception as exc:
                # Kept, so that a server that cannot start is not started again for each test.
                return exc
            running: RunningServer = _table.RunningServer(entry, process)
            return running

        def get(name: str, *flags: str) -> "RunningServer":
            for module in _entries[name].imports:
                pytest.importorskip(module, reason=f"{module} is not installed")
            running = start(name, *flags)
            if isinstance(running, Exception):
                raise running
            return running

        yield get


@pytest.fixture(params=[entry.name for entry in _table.SERVERS])
def server(
    request: pytest.FixtureRequest, running_server: Callable[[str], "RunningServer"]
) -> "RunningServer":
    """Give every server of the table in turn."""
    return running_server(request.param)


@pytest.fixture(params=[name for name, entry in _entries.items() if entry.openai is not None])
def openai_server(
    request: pytest.FixtureRequest, running_server: Callable[[str], "RunningServer"]
) -> "RunningServer":
    """Give every server that has OpenAI's routes in turn."""
    return running_server(request.param)


@pytest.fixture(params=[name for name, entry in _entries.items() if entry.openai is None])
def other_server(
    request: pytest.FixtureRequest, running_server: Callable[[str], "RunningServer"]
) -> "RunningServer":
    """Give every server that has none of them in turn."""
    return running_server(request.param)


@pytest.fixture
def echo(running_server: Callable[[str], "RunningServer"]) -> "RunningServer":
    """Give the server that returns its tensors."""
    return running_server("echo")


# First, as a worker reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a server in one worker, and give time to whichever test is the one to start it."""
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(90))


def _group(item: pytest.Item) -> str:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    for name in ("server", "openai_server", "other_server"):
        if isinstance(params.get(name), str):
            return str(params[name])
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return next((group for name, group in _SERVERS_OF.items() if name in fixtures), item.path.name)
