"""Waits until the server on a port of this machine is ready, and prints requests to paste."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

POLL_S = 0.2
TIMEOUT_S = 5
ROW = [5.1, 3.5, 1.4, 0.2]


def is_running(pid: int) -> bool:
    """Tell whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def get(url: str) -> bytes | None:
    """Return the body that the server answers with; None where it does not answer 200."""
    # A proxy that the environment names is not for this machine's own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read()
            return body
    except (urllib.error.URLError, OSError):
        return None


def requests(server: str, model: str) -> str:
    """Return the commands that ask the model for a prediction and for its metadata."""
    v1 = json.dumps({"instances": [ROW]})
    tensor = {"name": "input-0", "shape": [1, len(ROW)], "datatype": "FP64", "data": ROW}
    v2 = json.dumps({"inputs": [tensor]})
    return f"""
The server is ready. Try:

curl {server}/v1/models/{model}:predict -d '{v1}'

curl {server}/v2/models/{model}/infer -d '{v2}'

curl {server}/v2/models/{model}
"""


def main(port: str, server_pid: str) -> None:
    """Poll until the server is ready or gone."""
    server = f"http://localhost:{port}"
    while is_running(int(server_pid)):
        if get(f"{server}/v2/health/ready") is not None:
            models = json.loads(get(f"{server}/v1/models") or b"{}").get("models") or ["iris"]
            print(requests(server, models[0]), flush=True)
            return
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
