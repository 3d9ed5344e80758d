"""Prompts and answers are in no log, unless the command line asks for it; then prompts are."""

from pathlib import Path
from typing import Any

import pytest
from tests.hfserver.chat.test_chats import save

from kserve.testing import Response, ServerProcess

pytestmark = pytest.mark.timeout(200)

SECRET = "xylophone"
SCHEMA = {"type": "object", "properties": {SECRET: {"not": {}}}}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": SECRET, "max_tokens": 100_000}),
    ("completions", {"prompt": SECRET, "temperature": SECRET}),
    ("chat/completions", {"messages": [{"role": SECRET, "content": SECRET}]}),
    (
        "chat/completions",
        {
            "messages": [{"role": "user", "content": SECRET}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA},
            },
        },
    ),
]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    directory: Path = save(tmp_path_factory.mktemp("log"))
    return ("--model_dir", str(directory), "--model_name", "toy", "--max_model_len", "500")


def ask(server: ServerProcess, api: str, **body: Any) -> Response:
    return server.request("POST", f"/v1/{api}", {"model": "toy", "temperature": 0, **body})


def answers(server: ServerProcess) -> list[str]:
    """Ask in each way, and give the texts of the answers."""
    chat = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 20}
    completion = {"prompt": SECRET, "max_tokens": 20}
    for api, body in (("chat/completions", chat), ("completions", completion)):
        assert ask(server, api, stream=True, **body).body.endswith(b"data: [DONE]\n\n")
    predicted = server.request("POST", "/v1/models/toy:predict", {"instances": [SECRET]})
    return [
        ask(server, "chat/completions", **chat).json()["choices"][0]["message"]["content"],
        ask(server, "completions", **completion).json()["choices"][0]["text"],
        predicted.json()["predictions"][0],
    ]


def test_by_default_no_text_is_logged(flags: tuple[str, ...]) -> None:
    with ServerProcess("hfserver", *flags) as server:
        texts = answers(server)
        statuses = [ask(server, api, **body).status for api, body in REFUSED]
        broken = server.request("POST", "/v1/completions", f'{{"prompt": "{SECRET}"'.encode())
        server.stop()

    assert statuses == [400] * len(REFUSED)
    assert broken.status == 400
    assert SECRET not in server.stderr
    assert all(len(text) > 10 for text in texts)
    for text in texts:
        assert text not in server.stderr
        assert repr(text)[1:-1] not in server.stderr
    # It does log: which way the model runs, and each request.
    assert "executor ragged" in server.stderr
    assert server.stderr.count("status=200") == 5
    assert server.stderr.count("status=400") == len(REFUSED) + 1


def test_prompts_are_logged_where_that_is_asked_for(flags: tuple[str, ...]) -> None:
    with ServerProcess(
        "hfserver", *flags, "--enable_log_requests", "--max_log_len", "26"
    ) as server:
        texts = answers(server)
        server.stop()

    # As the model reads them, so many characters of each.
    assert f"Model toy: prompt '<|im_start|>user\\n{SECRET}'" in server.stderr
    assert f"Model toy: prompt '{SECRET}'" in server.stderr
    assert server.stderr.count("Model toy: prompt") == 5
    for text in texts:
        assert repr(text)[1:-1] not in server.stderr
