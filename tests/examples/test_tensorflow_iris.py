"""The TensorFlow example starts as its README says, and answers as TensorFlow itself."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_iris

from kserve.testing import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "tensorflow-iris"
MODEL = EXAMPLE / "model" / "1"
SPECIES = ["setosa", "versicolor", "virginica"]

pytestmark = pytest.mark.timeout(120)

pytest.importorskip("tfserver", reason="tfserver is not installed")


def test_model_folder_holds_one_small_version() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]

    assert list(MODEL.parent.iterdir()) == [MODEL]
    assert sorted(path.name for path in files if path.parent == MODEL) == [
        "fingerprint.pb",
        "saved_model.pb",
    ]
    assert sum(path.stat().st_size for path in files) < 50_000


@pytest.fixture(scope="module")
def odds(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    """Give what TensorFlow answers in one process, of the committed net and of one trained now."""
    folder = tmp_path_factory.mktemp("trained")
    code = (
        "import runpy, sys, numpy as np, tensorflow as tf\n"
        "from sklearn.datasets import load_iris\n"
        "script, committed, folder = sys.argv[1:]\n"
        "sys.argv = [script, folder]\n"
        "runpy.run_path(script, run_name='__main__')\n"
        "flowers = tf.constant(load_iris().data, tf.float32)\n"
        "nets = [tf.saved_model.load(path).signatures['serving_default']\n"
        "        for path in (committed, folder + '/1')]\n"
        "np.save(folder + '/odds', [net(flowers=flowers)['odds'].numpy() for net in nets])\n"
    )
    paths = (EXAMPLE / "train.py", MODEL, folder)
    command = [sys.executable, "-c", code, *map(str, paths)]
    subprocess.run(command, check=True, capture_output=True)
    return np.asarray(np.load(folder / "odds.npy"))


def test_training_makes_the_committed_net(odds: NDArray[np.float32]) -> None:
    committed, trained = odds

    np.testing.assert_allclose(trained, committed, atol=1e-4)
    assert np.mean(committed.argmax(1) == load_iris().target) > 0.95


def test_it_answers_as_its_readme_says_and_as_tensorflow(odds: NDArray[np.float32]) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    started = re.search(r"^python -m tfserver --model_dir (\S+) --model_name iris$", readme, re.M)
    commands = re.findall(r"^curl localhost:8080(\S+)(?: \\\n  -d ('.+'))?$", readme, re.M)
    assert started is not None
    expected = odds[0]
    arguments = ("--model_dir", str(EXAMPLES.parent / started[1]), "--model_name", "iris")

    with ServerProcess("tfserver", *arguments) as server:
        answers = [
            server.request("POST", path, shlex.split(body)[0].encode())
            if body
            else server.request("GET", path)
            for path, body in commands
        ]
        everything = server.request(
            "POST", "/v1/models/iris:predict", {"instances": load_iris().data.tolist()}
        ).json()["predictions"]

    rows, columns, logits, metadata, status, infer, _ = (answer.json() for answer in answers)
    assert {answer.status for answer in answers} == {200}
    assert rows["predictions"][0]["species"] == "setosa"
    assert columns["outputs"]["species"] == ["setosa", "virginica"]
    assert len(logits["predictions"][0]) == 3
    assert metadata["model_spec"]["version"] == "1"
    assert [each["state"] for each in status["model_version_status"]] == ["AVAILABLE"]
    assert infer["outputs"][0]["data"] == ["setosa"]
    served = np.array([row["odds"] for row in everything])
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-6)
    assert [row["species"] for row in everything] == [SPECIES[i] for i in expected.argmax(1)]
