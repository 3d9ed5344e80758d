"""Each example starts as its README says, and answers."""

import re
import shlex
from pathlib import Path

import orjson
import pytest

from kserve.testing import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
CUSTOM_MODEL = EXAMPLES / "custom-model"


def test_every_example_is_listed_and_has_a_readme() -> None:
    folders = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    listed = re.findall(
        r"^\| \[(.+?)\]\(\1/README\.md\)", (EXAMPLES / "README.md").read_text(), re.M
    )

    assert sorted(listed) == folders
    assert all((EXAMPLES / folder / "README.md").is_file() for folder in folders)


def test_custom_model_answers_the_curl_lines_of_its_readme() -> None:
    readme = (CUSTOM_MODEL / "README.md").read_text()
    commands = re.findall(r"^curl localhost:8080(\S+)(?: \\\n  -d ('.+'))?$", readme, re.M)
    printed = re.search(r"```json\n(.+)\n```", readme)
    assert printed is not None

    with ServerProcess(str(CUSTOM_MODEL / "server.py")) as server:
        answers = {
            path: server.request("POST", path, shlex.split(body)[0].encode())
            if body
            else server.request("GET", path)
            for path, body in commands
        }

    assert list(answers) == [
        "/v1/models/reading-ease:predict",
        "/v2/models/reading-ease/infer",
        "/v2/models/reading-ease",
    ]
    assert [answer.status for answer in answers.values()] == [200, 200, 200]
    assert answers["/v1/models/reading-ease:predict"].body.decode() == printed[1]
    outputs = answers["/v2/models/reading-ease/infer"].json()["outputs"]
    assert [output["data"] for output in outputs] == [[116.1]]


def test_custom_model_is_started_by_the_command_of_its_readme() -> None:
    readme = (CUSTOM_MODEL / "README.md").read_text()

    assert "\npython examples/custom-model/server.py --http_port 8080\n" in readme
    assert (EXAMPLES.parent / "examples/custom-model/server.py").is_file()


@pytest.mark.parametrize(
    ("row", "species"),
    [
        pytest.param([5.1, 3.5, 1.4, 0.2], 0, id="setosa"),
        pytest.param([7.0, 3.2, 4.7, 1.4], 1, id="versicolor"),
        pytest.param([6.3, 3.3, 6.0, 2.5], 2, id="virginica"),
    ],
)
def test_sklearn_iris_answers_with_the_species(
    iris: ServerProcess, row: list[float], species: int
) -> None:
    tensor = {"name": "rows", "shape": [1, 4], "datatype": "FP64", "data": row}

    v1 = iris.request("POST", "/v1/models/iris:predict", {"instances": [row]})
    v2 = iris.request("POST", "/v2/models/iris/infer", {"inputs": [tensor]})

    assert (v1.status, v1.body) == (200, orjson.dumps({"predictions": [species]}))
    assert (v2.status, v2.json()["outputs"][0]["data"]) == (200, [species])
