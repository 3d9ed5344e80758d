"""The examples of docs/openai.md print what the page says, and its tables are those of the code."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from kserve.protocol.rest.openai import fields
from kserve.protocol.rest.openai.error_object import CODES
from kserve.protocol.rest.openai.paths import APIS, OpenAIPaths
from kserve.protocol.rest.openai.reading import TYPES
from kserve.testing import ServerProcess

# It starts a process.
pytestmark = pytest.mark.timeout(90)

PAGE = Path(__file__).parents[5] / "docs" / "openai.md"
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8080"

# They differ from time to time.
VARYING = {r'"created":\d+': '"created":CREATED', r'"id":"rerank-\w+"': '"id":"ID"'}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    script = tmp_path_factory.mktemp("page") / "server.py"
    script.write_text(blocks()[0][1])
    with ServerProcess(str(script)) as running:
        yield running


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(PAGE.read_text())


def curl(server: ServerProcess, line: str) -> str:
    words = shlex.split(line)
    assert words[0] == "curl" and words[1].startswith(ADDRESS)
    body = words[words.index("-d") + 1].encode() if "-d" in words else None
    headers = {} if body is None else {"content-type": "application/x-www-form-urlencoded"}
    method = "GET" if body is None else "POST"
    return server.request(method, words[1].removeprefix(ADDRESS), body, headers).body.decode()


def run(code: str, names: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, names)
    return output.getvalue()


def test_each_example_prints_what_stands_below_it(server: ServerProcess) -> None:
    printed, expected = [], []
    names: dict[str, Any] = {}

    for kind, text in blocks()[1:]:
        if kind == "text":
            expected.append(text)
        elif kind == "sh":
            printed.append("".join(f"{curl(server, line)}\n" for line in text.splitlines()))
        else:
            printed.append(run(text.replace(ADDRESS, f"http://127.0.0.1:{server.port}"), names))
    names["client"].close()

    for pattern, name in VARYING.items():
        printed = [re.sub(pattern, name, text) for text in printed]
    assert printed == expected
    assert len(printed) == 4


def refusals() -> list[str]:
    """Give the rows of the table of refused fields; those of several routes are one."""
    routes: dict[tuple[str, str, str], list[str]] = {}
    for api in APIS:
        for name, (reason, harmless) in fields.REFUSED[api].items():
            taken = ", ".join(f"`{orjson.dumps(value).decode()}`" for value in harmless)
            routes.setdefault((name, reason, taken), []).append(f"`{api}`")
    return [
        f"| `{name}` | {', '.join(apis)} | {reason} | {taken} |"
        for (name, reason, taken), apis in routes.items()
    ]


def test_lists_the_fields_that_are_refused_and_ignored() -> None:
    page = PAGE.read_text()
    table = page.partition("| field | refused by | why | taken where it is |\n|---|---|---|---|\n")[
        2
    ]

    assert table.partition("\n\n")[0].splitlines() == refusals()
    ignored = page.partition("Known and ignored")[2].partition("\n\n")[0]
    for api in APIS:
        for name in fields.IGNORED[api]:
            assert f"`{name}`" in ignored


def test_lists_the_routes_with_their_requests() -> None:
    table = dict(
        re.findall(r"^\| `POST (\S+)` \|[^|]*\| `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    )
    others = re.findall(r"^\| `POST (\S+)` \| (`.*?`) \|", PAGE.read_text(), re.MULTILINE)

    assert table == {api: kind.__name__ for api, kind in TYPES.items()}
    elsewhere = {path for _, paths in others for path in re.findall("`(.*?)`", paths)}
    below_a_base = {f"{base}/{api}" for base in ("/v1", "/openai/v1") for api in APIS}
    assert elsewhere == set(OpenAIPaths().by_path) - below_a_base


def test_lists_the_codes_of_every_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `\w+` \| (.*?) \|", PAGE.read_text(), re.MULTILINE)

    for status, code in CODES.items():
        # Of 404 the page has the model's; the other is of no route.
        if status != 404:
            assert any(int(row) == status and f"`{code}`" in codes for row, codes in rows)
