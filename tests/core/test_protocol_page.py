"""The examples of docs/protocol.md about versions and the repository, run as written."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve.testing import ServerProcess

# It starts processes.
pytestmark = pytest.mark.timeout(90)

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

SERVER = """\
from pathlib import Path
from kserve.main import run
from kserve.model import TensorModel
from kserve.signature import Signature, TensorSpec

class Sums(TensorModel):
    artifact_suffixes = (".txt",)

    def load(self):
        self.factor = float((Path(self.model_dir) / "factor.txt").read_text())
        self.signature = Signature((TensorSpec("x", "FP64", (-1, 2)),))
        return True

    def predict_tensors(self, tensors, options):
        return {"y": tensors["x"].sum(axis=1) * self.factor}

if __name__ == "__main__":
    run(Sums)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "server.py").write_text(SERVER)
    for version in ("1", "2"):
        (folder / "models" / "iris" / version).mkdir(parents=True)
        (folder / "models" / "iris" / version / "factor.txt").write_text(version)
    arguments = ("--model_dir", str(folder / "models"), "--max_versions", "all")
    with ServerProcess(str(folder / "server.py"), *arguments) as running:
        # Not at the start, so that the page can load it.
        (folder / "models" / "wine").mkdir()
        (folder / "models" / "wine" / "factor.txt").write_text("1")
        yield running


def examples() -> list[tuple[str, str]]:
    """Give each command of the sections on versions and the repository, and its answer."""
    sections = re.findall(
        r"^## (?:Versions|Model repository)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S
    )
    pairs: list[tuple[str, str]] = []
    for section in sections:
        pairs += re.findall(r"```sh\n(curl .*?)\n```\n\n```json\n(.*?)\n```", section, re.S)
    return pairs


def test_every_example_answers_as_the_page_says(server: ServerProcess) -> None:
    answers = []
    for command, _ in examples():
        words = shlex.split(command)
        (address,) = (word for word in words if word.startswith("localhost:8080"))
        body = words[words.index("-d") + 1].encode() if "-d" in words else None
        method = "POST" if body is not None or "POST" in words else "GET"
        path = address.removeprefix("localhost:8080")
        answers.append((command, server.request(method, path, body).body.decode()))

    assert answers == examples()
    assert len(answers) == 8
