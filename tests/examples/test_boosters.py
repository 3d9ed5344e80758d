"""The examples of the servers of boosters answer the curl lines of their READMEs as these say."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import orjson
import pytest

from kserve.testing import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
CASES = [
    pytest.param("xgboost-iris", "xgboost", "model.ubj", id="xgboost"),
    pytest.param("lightgbm-houses", "lightgbm", "model.txt", id="lightgbm"),
]


def values_of(value: Any) -> Any:
    """Give the numbers of an answer as something to compare with: the last bits are the CPU's."""
    if isinstance(value, dict):
        return {key: values_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [values_of(item) for item in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("example", "framework", "artifact"), CASES)
def test_an_example_answers_as_its_readme_says(example: str, framework: str, artifact: str) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    readme = (EXAMPLES / example / "README.md").read_text()
    command = re.search(r"^python -m (\w+) (--model_dir examples/.+)$", readme, re.M)
    assert command is not None
    curls = [
        shlex.split(line)[1:] for line in re.findall(r"```sh\n(curl .+?)\n```", readme, re.DOTALL)
    ]
    printed = [orjson.loads(text) for text in re.findall(r"```json\n(.+)\n```", readme)]
    arguments = [
        str(EXAMPLES.parent / word) if word.startswith("examples/") else word
        for word in shlex.split(command[2])
    ]

    with ServerProcess(command[1], *arguments) as server:
        answers = [
            server.request("POST", address.removeprefix("localhost:8080"), body.encode())
            for address, _, body in curls
        ]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.json() for answer in answers[:2]] == [values_of(value) for value in printed]
    (output,) = answers[2].json()["outputs"]
    assert (output["name"], output["shape"][0]) == ("output-0", 1)


@pytest.mark.parametrize(("example", "framework", "artifact"), CASES)
def test_training_makes_the_committed_artifact(
    tmp_path: Path, example: str, framework: str, artifact: str
) -> None:
    library = pytest.importorskip(framework, reason=f"{framework} is not installed")
    committed = EXAMPLES / example / "model" / artifact

    runpy.run_path(str(EXAMPLES / example / "train.py"))["main"](tmp_path)

    assert list(committed.parent.iterdir()) == [committed]
    assert committed.stat().st_size < 50_000
    old, new = (library.Booster(model_file=path) for path in (committed, tmp_path / artifact))
    count = {"xgboost": "num_boosted_rounds", "lightgbm": "num_trees"}[framework]
    assert getattr(old, count)() == getattr(new, count)() > 0
