import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.artifacts import Artifact, train
from benchmarks.compare import CASES, Comparison, Settings, WrongAnswer
from benchmarks.processes import split_cpus


class Liar:
    """Predicts other classes than the estimator that is served."""

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), 7)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_compares_what_is_there_and_writes_the_page(tmp_path: Path) -> None:
    output = tmp_path / "page.md"
    command = [
        *(sys.executable, "-m", "benchmarks.compare", "--quick"),
        *("--cases", "svc", "grpc", "onnx"),
        *("--without_peer", "no index here", "--output", str(output)),
    ]

    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)

    assert done.returncode == 0, done.stderr
    page = output.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert [row[:2] for row in rows if len(row) > 5 and row[2][:1].isdigit()] == [
        [CASES["svc"].title, "ours"],
        [CASES["svc"].title, "floor"],
        [CASES["grpc"].title, "ours"],
        [CASES["grpc"].title, "floor"],
        [CASES["onnx"].title, "ours"],
        [CASES["onnx"].title, "in process"],
        [CASES["onnx"].title, "floor"],
    ]
    assert all(row[6] == "0" for row in rows if len(row) > 5 and row[2][:1].isdigit())
    sizes = [row[0] for row in rows if len(row) == 5 and row[1][:1].isdigit()]
    assert sizes == ["sklearnserver", "onnxserver"]
    assert "- kserve 0.21.0 was left out: no index here\n" in page
    assert all(part in page for part in done.stdout.strip().split("\n\n"))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_wrong_answer_ends_the_comparison(tmp_path: Path) -> None:
    artifact = train("iris", tmp_path)
    other = Artifact("iris", artifact.directory, Liar(), artifact.features)
    settings = Settings(1, 0, 0.1, 1, None, [], split_cpus()[0])

    with pytest.raises(WrongAnswer, match=r"ours: SVC 1x4, V2 JSON: \[0\], not \[7\]"):
        list(Comparison(CASES["svc"], other, settings).rows())
