"""The example of the proxy in docs/openai.md does what the page says."""

import re
from pathlib import Path
from typing import Any

import orjson

from kserve.testing import request, serving

PAGE = Path(__file__).parents[6] / "docs" / "openai.md"
EXAMPLE = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHAT = "/v1/chat/completions"


def chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "1", "created": 1, "model": "meta-llama/Llama", "choices": [choice]}


def test_the_example_is_polite(upstream: Any) -> None:
    async def script(asked: Any) -> None:
        await asked.begin()
        for text in ("well", "darn", "it"):
            await asked.event(chunk(text))
        await asked.end()

    upstream.scripts[CHAT] = script
    names: dict[str, Any] = {"__name__": "example"}
    (example,) = EXAMPLE.findall(PAGE.read_text())
    exec(example, names)
    model = names["Polite"]("llama", upstream.url, upstream_model="meta-llama/Llama")
    message = {"role": "user", "content": "hi"}

    with serving(model) as port:
        body = orjson.dumps({"model": "llama", "messages": [message], "stream": True})
        answer = request(port, "POST", CHAT, body)

    (asked,) = upstream.asked_of(CHAT)
    assert asked.json() == {
        "model": "meta-llama/Llama",
        "messages": [{"role": "system", "content": "Be polite."}, message],
        "stream": True,
    }
    assert asked.headers["x-tenant"] == "a"
    assert b'"content":"well"' in answer.body
    assert b"the model swore" in answer.body
    assert b'"content":"it"' not in answer.body
