import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "show_requests.py"


class Server(http.server.BaseHTTPRequestHandler):
    """Answers readiness with 503 first, then with 200."""

    n_asked = 0

    def do_GET(self) -> None:
        if self.path == "/v2/health/ready":
            Server.n_asked += 1
        self.send_response(503 if Server.n_asked < 2 else 200)
        self.end_headers()
        self.wfile.write(b'{"models":["iris"]}')

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_prints_requests_once_the_server_is_ready() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    url = f"http://localhost:{server.server_port}"

    command = [sys.executable, str(SCRIPT), str(server.server_port), str(os.getpid())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    server.shutdown()
    server.server_close()
    thread.join()

    assert Server.n_asked == 2
    assert [line for line in done.stdout.splitlines() if line.startswith("curl")] == [
        f"curl {url}/v1/models/iris:predict -d '{{\"instances\": [[5.1, 3.5, 1.4, 0.2]]}}'",
        f'curl {url}/v2/models/iris/infer -d \'{{"inputs": [{{"name": "input-0", '
        '"shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}]}\'',
        f"curl {url}/v2/models/iris",
    ]


def test_ends_without_a_word_when_the_server_is_gone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    command = [sys.executable, str(SCRIPT), "9", str(ended.pid)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("", "")
