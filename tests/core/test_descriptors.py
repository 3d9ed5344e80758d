"""The limit on open descriptors is raised when a server starts."""

import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from kserve.descriptors import raise_descriptor_limit
from kserve.model import Model
from kserve.testing import serving

# It starts processes.
pytestmark = pytest.mark.timeout(90)

CODE = """\
import resource
from kserve.logging import configure_logging
from kserve.descriptors import raise_descriptor_limit

resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
configure_logging()
raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limits_after(soft: int, hard: int) -> tuple[str, str]:
    """Give the limits that a process ends with, and the last message of its log."""
    completed = subprocess.run(
        [sys.executable, "-c", CODE.format(soft=soft, hard=hard)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return completed.stdout.strip(), completed.stderr.strip().partition("] ")[2]


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    assert limits_after(200, 300) == (
        "300 300",
        "Limit of open descriptors raised from 200 to 300",
    )


def test_nothing_is_said_where_there_is_nothing_to_raise() -> None:
    assert limits_after(300, 300) == ("300 300", "")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 512))
    monkeypatch.setattr(resource, "setrlimit", refuse)


def test_a_system_that_refuses_is_a_warning(
    refused: None, caplog: pytest.LogCaptureFixture
) -> None:
    raise_descriptor_limit()

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "The limit of 256 open descriptors cannot be raised: "
            "current limit exceeds maximum limit",
        )
    ]


@pytest.fixture
def lowered() -> Callable[[], tuple[int, int]]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    return lambda: resource.getrlimit(resource.RLIMIT_NOFILE)


def test_a_server_raises_it_before_it_listens(lowered: Callable[[], tuple[int, int]]) -> None:
    model = Model("m")
    model.ready = True

    with serving([model]):
        soft, hard = lowered()

    assert soft == hard
