"""The examples of `model.py`: each starts and answers as its README says."""

import os
import re
import shlex
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import orjson
import pytest

from kserve.testing import Response, ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"

pytest.importorskip("pythonserver", reason="pythonserver is not installed")


def readme(example: str) -> str:
    return (EXAMPLES / example / "README.md").read_text()


def command(example: str) -> list[str]:
    """Give the arguments of `python -m kserve` in a README."""
    match = re.search(r"^python -m kserve (.+)$", readme(example), re.M)
    assert match is not None
    arguments = shlex.split(match[1])
    assert arguments[0] == f"examples/{example}"
    return [str(EXAMPLES / example), *arguments[1:3]]


def curl_lines(example: str) -> list[tuple[str, str]]:
    """Give path and body of each curl line."""
    lines = re.findall(
        r"^curl (?:-N )?localhost:\d+(\S+)(?: \\\n )?(?: -d ('.+'))?$", readme(example), re.M
    )
    assert lines
    return [(path, shlex.split(body)[0] if body else "") for path, body in lines]


def printed(example: str, kind: str = "json") -> str:
    match = re.search(rf"```{kind}\n(.+)\n```", readme(example))
    assert match is not None
    return match[1]


def ask(server: ServerProcess, path: str, body: str) -> Response:
    return server.request("POST" if body else "GET", path, body.encode() or None)


@pytest.mark.parametrize("example", ["python-text", "python-novelty"])
def test_answers_the_curl_lines_of_its_readme(example: str) -> None:
    if example == "python-novelty":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    with ServerProcess("kserve", *command(example)) as server:
        answers = [ask(server, path, body) for path, body in curl_lines(example)]

    assert {answer.status for answer in answers} == {200}
    assert answers[0].body.decode() == printed(example)


def test_text_model_answers_both_protocols_alike() -> None:
    texts = ["Ada met Grace Hopper in The Hague.", "Nobody."]
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": texts}

    with ServerProcess("kserve", *command("python-text")) as server:
        v1 = server.request("POST", "/v1/models/redact:predict", {"instances": texts}).json()
        v2 = server.request("POST", "/v2/models/redact/infer", {"inputs": [tensor]}).json()

    assert v1["predictions"] == ["[PERSON] met [PERSON] in [CITY].", "Nobody."]
    assert v2["outputs"][0]["data"] == v1["predictions"]


def test_training_makes_the_committed_artifacts(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    load_iris = pytest.importorskip("sklearn.datasets").load_iris
    measures = load_iris().data

    folder = EXAMPLES / "python-novelty"
    subprocess.run([sys.executable, folder / "train.py", tmp_path], check=True, timeout=60)

    for name in ("classifier.joblib", "detector.joblib"):
        trained, committed = joblib.load(tmp_path / name), joblib.load(folder / name)
        assert trained.predict(measures).tolist() == committed.predict(measures).tolist()


def test_streaming_model_sends_the_words_of_its_readme_one_by_one() -> None:
    ((path, body),) = curl_lines("python-stream")
    with ServerProcess("kserve", *command("python-stream")) as server:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("POST", path, body)
        response = connection.getresponse()
        encoding = response.headers["transfer-encoding"]
        text = response.read().decode()
        connection.close()
        refused = server.request("POST", path, {"prompt": 3})

    assert (response.status, encoding) == (200, "chunked")
    assert text == printed("python-stream", "text")
    assert (refused.status, refused.json()) == (
        400,
        {"error": 'expected a "prompt" of at least one word, got 3'},
    )


def test_calling_model_grades_by_what_the_service_answers() -> None:
    pytest.importorskip("httpx2", reason="httpx2 is not installed")
    ((path, body),) = curl_lines("python-async")
    with ServerProcess(str(EXAMPLES / "custom-model" / "server.py")) as service:
        url = f"http://127.0.0.1:{service.port}/v1/models/reading-ease:predict"
        env = {**os.environ, "SCORER_URL": url}
        with ServerProcess("kserve", *command("python-async"), env=env) as server:
            answer = ask(server, path, body)
            service.stop()
            failed = ask(server, path, body)

    assert answer.body.decode() == printed("python-async")
    assert failed.status == 500
    assert failed.json()["error"].startswith("the scoring service failed: ")


def _model_directories() -> list[Path]:
    """Give what each example serves: the folder `model` in it, or else itself."""
    folders = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
    directories = [
        folder / "model" if (folder / "model").is_dir() else folder for folder in folders
    ]
    # Of the others one is a server by itself, and one fetches its model.
    return [each for each in directories if each.name == "model" or (each / "model.py").exists()]


@pytest.mark.parametrize(
    "directory", _model_directories(), ids=lambda path: str(path.relative_to(EXAMPLES))
)
def test_every_example_is_served_by_python_m_kserve(directory: Path) -> None:
    with ServerProcess("kserve", str(directory), "--model_name", "example") as server:
        models: Any = server.request("GET", "/v1/models").json()
        ready = server.request("GET", "/v2/models/example/ready")

    assert models == {"models": ["example"]}
    assert (ready.status, orjson.loads(ready.body)) == (200, {"name": "example", "ready": True})
    assert re.search(rf"{directory}: \S+ is served by \w+server \d", server.stderr)
