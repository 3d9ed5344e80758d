"""The examples of `docs/protocol.md`, run in their order, print what the page says."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from kserve.testing import ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_each_example_prints_what_stands_below_it(iris: ServerProcess) -> None:
    names: dict[str, Any] = {}
    printed, expected = [], []

    for kind, text in BLOCK.findall(PAGE.read_text()):
        if kind == "text":
            expected.append(text)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(text.replace("127.0.0.1:8080", f"127.0.0.1:{iris.port}"), names)
        if output.getvalue():
            printed.append(output.getvalue())

    assert printed == expected
    assert printed
