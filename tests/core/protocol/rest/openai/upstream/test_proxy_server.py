"""`python -m kserve --upstream_url URL` as a process."""

import os
import subprocess
import sys
from typing import Any

import orjson
import pytest

from kserve.testing import ServerProcess

# It starts processes.
pytestmark = pytest.mark.timeout(90)

COMPLETIONS = "/v1/completions"


def test_serves_a_proxy_with_what_the_command_line_says(upstream: Any) -> None:
    async def script(asked: Any) -> None:
        if asked.json()["prompt"] == "wait":
            await asked.is_left()
        await asked.reply({"model": "theirs", "choices": []})

    upstream.scripts |= {COMPLETIONS: script, "/own": upstream.scripts.pop("/health")}
    flags = ("--model_name", "ours", "--upstream_url", upstream.url, "--upstream_model", "theirs")
    # As a file of a secret ends.
    env = {**os.environ, "UPSTREAM_API_KEY": "secret\n"}
    limits = ("--upstream_health_path", "/own", "--request_timeout_s", "0.5")

    with ServerProcess("kserve", *flags, *limits, env=env) as server:
        ready = server.request("GET", "/v2/health/ready")
        body = orjson.dumps({"model": "ours", "prompt": "a"})
        answer = server.request("POST", COMPLETIONS, body)
        late = server.request("POST", COMPLETIONS, orjson.dumps({"prompt": "wait"}))
        code = server.stop()

    assert ready.status == 200
    assert answer.json() == {"model": "ours", "choices": []}
    assert late.status == 504
    asked = upstream.asked_of(COMPLETIONS)[0]
    assert asked.json()["model"] == "theirs"
    assert asked.headers["authorization"] == "Bearer secret"
    assert upstream.asked_of("/own")
    assert code == 0
    assert "secret" not in server.stderr


def test_is_there_before_the_server_behind_it() -> None:
    flags = ("--upstream_url", "http://127.0.0.1:1", "--model_name", "ours")

    with ServerProcess("kserve", *flags) as server:
        live = server.request("GET", "/v2/health/live")
        ready = server.request("GET", "/v2/health/ready")

    assert (live.status, ready.status) == (200, 503)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--upstream_url", "h:1"], "expected http://HOST:PORT or https://HOST, got 'h:1'"),
        (["--upstream_url=http://h", "--model_dirs", "x"], "unknown argument --model_dirs"),
        (
            ["--upstream_url=http://h", "--upstream_health_path", "health"],
            "expected a path such as /health, or none, got 'health'",
        ),
        # A directory is for a server of models, which the core alone has none of.
        (["--model_dir", "/nowhere", "--upstream_url=http://h"], "no model server is installed"),
    ],
)
def test_a_wrong_command_line_says_why(flags: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kserve", *flags], capture_output=True, text=True, timeout=60
    )

    assert done.returncode in (1, 2)
    assert message in done.stderr


def test_none_asks_nothing_of_health() -> None:
    flags = ("--upstream_url", "http://127.0.0.1:1", "--upstream_health_path", "none")

    with ServerProcess("kserve", *flags) as server:
        assert server.request("GET", "/v2/health/ready").status == 200
