"""The example that searches by meaning does with one command what its README says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kserve.testing import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "hf-search"

pytest.importorskip("hfserver", reason="hfserver is not installed")

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def printed() -> str:
    """Give what the command of the README prints; skips where the model cannot be fetched."""
    readme = (EXAMPLE / "README.md").read_text()
    command = re.search(r"^python (examples/hf-search/search\.py .+)$", readme, re.M)
    assert command is not None

    done = subprocess.run(
        [sys.executable, *shlex.split(command[1])],
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        check=False,
    )

    if done.returncode and not (EXAMPLE / ".model").is_dir():
        # A wrong hash is no want of a network.
        assert "hash" not in done.stderr.lower(), done.stderr
        pytest.skip(f"the package cannot be fetched: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_prints_what_its_readme_says(printed: str) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    (block,) = re.findall(r"^```\n('Which.+?)```$", readme, re.M | re.S)

    assert numberless(printed) == numberless(block)
    assert numbers(printed) == pytest.approx(numbers(block), abs=2e-3)


def test_the_server_of_the_readme_answers_its_requests(printed: str) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    started = re.search(r"^python -m hfserver --model_dir (\S+) --model_name minilm$", readme, re.M)
    commands = re.findall(r"^curl localhost:8080(\S+) -d ('.+')$", readme, re.M)
    assert started is not None
    arguments = ("--model_dir", str(EXAMPLES.parent / started[1]), "--model_name", "minilm")

    with ServerProcess("hfserver", *arguments) as server:
        statuses = [
            server.request("POST", path, shlex.split(body)[0].encode()).status
            for path, body in commands
        ]

    assert statuses == [200, 200, 200]


def numberless(text: str) -> str:
    return re.sub(r" *-?\d+\.\d+(e-\d+)?", "#", text)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-\d+)?", text)]
