"""The manifests of this repository."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ROOT / "runtimes"
EXAMPLES = RUNTIMES / "examples"

Document = dict[str, Any]


def read(path: Path) -> list[Document]:
    """Read the documents of a YAML file."""
    with path.open() as file:
        return list(yaml.load_all(file, Loader=yaml.CSafeLoader))


def runtimes() -> dict[str, Document]:
    """Give the runtimes by name."""
    documents = [d for path in sorted(RUNTIMES.glob("kserve-*.yaml")) for d in read(path)]
    return {document["metadata"]["name"]: document for document in documents}


def services() -> dict[str, Document]:
    """Give the InferenceServices of the examples by file."""
    paths = sorted(EXAMPLES.rglob("*.yaml"))
    return {
        str(path.relative_to(EXAMPLES)): document
        for path in paths
        for document in read(path)
        if document["kind"] == "InferenceService"
    }


def container(runtime: Document) -> Document:
    """Give the one container of a runtime."""
    (only,) = runtime["spec"]["containers"]
    return dict(only)


def kustomize(folder: Path) -> str:
    """Build a folder as `kubectl apply -k` would."""
    command = ["kubectl", "kustomize", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
