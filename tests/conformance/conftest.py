"""Starts each server of the table once, when the first test asks for it."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give time to whichever test is the one to start a server, and a busy machine to it."""
    for item in items:
        is_here = item.path.parent == Path(__file__).parent
        if is_here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(90))


class ByServer(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives the tests of one server to one worker, so that it starts once; others by their file."""

    def _split_scope(self, nodeid: str) -> str:
        path, _, name = nodeid.partition("::")
        _, _, values = name.partition("[")
        servers = [each for each in _entries if re.match(rf"{re.escape(each)}[]-]", values)]
        return max(servers, key=len, default=path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    """Replace what `--dist` names."""
    return ByServer(config, log)
