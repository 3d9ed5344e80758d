"""`python model.py` serves by itself, and the same file in a model directory."""

from pathlib import Path

import pytest

from kserve.testing import ServerProcess

MODEL = """\
import kserve

class Doubler(kserve.Model):
    def predict(self, payload, headers=None):
        return {"predictions": [x * 2 for x in payload["instances"]]}

"""


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(
            'if __name__ == "__main__":\n    kserve.ModelServer().start([Doubler("model")])\n',
            id="ModelServer below a guard",
        ),
        pytest.param('kserve.ModelServer().start([Doubler("model")])\n', id="ModelServer alone"),
        pytest.param(
            'import pythonserver\nif __name__ == "__main__":\n    pythonserver.serve(__file__)\n',
            id="serve",
        ),
    ],
)
def test_a_model_serves_as_a_script_and_in_a_directory(tmp_path: Path, end: str) -> None:
    script = tmp_path / "model.py"
    script.write_text(MODEL + end)

    answers = []
    for target in ((str(script),), ("pythonserver", "--model_dir", str(tmp_path))):
        with ServerProcess(*target) as server:
            path = "/v1/models/model:predict"
            answers.append(server.request("POST", path, {"instances": [1]}).json())

    assert answers == [{"predictions": [2]}] * 2


def test_two_functions_serve_as_a_script(tmp_path: Path) -> None:
    script = tmp_path / "model.py"
    script.write_text(
        "import pythonserver\ndef load(model_dir): return 2\n"
        "def predict(model, instances): return instances * model\n"
        'if __name__ == "__main__":\n    pythonserver.serve(__file__)\n'
    )

    with ServerProcess(str(script), "--model_name", "doubler") as server:
        answer = server.request("POST", "/v1/models/doubler:predict", {"instances": [1]}).json()

    assert answer == {"predictions": [2]}
