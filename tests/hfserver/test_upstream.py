"""`--backend upstream`, in front of a server of the core's, as a process."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from kserve.protocol.rest.openai import OpenAIGenerativeModel
from kserve.protocol.rest.openai.types import (
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChoiceDelta,
    ChunkChoice,
    UsageInfo,
)
from kserve.testing import ServerProcess, serving

# It starts processes.
pytestmark = pytest.mark.timeout(90)

# The server, and at its end what has been loaded.
SERVER = """\
import atexit, sys
from kserve.main import run

def report():
    heavy = {"torch", "transformers", "tokenizers", "huggingface_hub", "safetensors"}
    print("loaded:", sorted(heavy & set(sys.modules)), file=sys.stderr)

if __name__ == "__main__":
    atexit.register(report)
    run("hfserver.server:HuggingFaceServer")
"""


class Writer(OpenAIGenerativeModel):
    """Streams the words of the last message."""

    max_model_len = 32

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        return self._chunks(request)

    async def _chunks(self, request: ChatCompletionRequest) -> AsyncIterator[ChatCompletionChunk]:
        base = ChatCompletionChunk(model=request.model, choices=[])
        for word in request.messages[-1]["content"].split():
            choice = ChunkChoice(index=0, delta=ChoiceDelta(content=word))
            yield ChatCompletionChunk(
                id=base.id, created=base.created, model=base.model, choices=[choice]
            )
            await asyncio.sleep(0)
        base.usage = UsageInfo.of(1, 3)
        yield base


def test_passes_requests_on_and_loads_no_framework(tmp_path: Any) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    with serving(Writer("org/writer")) as upstream:
        url = f"http://127.0.0.1:{upstream}"
        flags = ("--backend", "upstream", "--upstream_url", url, "--model_name", "writer")
        health = ("--upstream_health_path", "/v2/health/ready")
        with ServerProcess(str(script), *flags, *health) as server:
            ready = server.request("GET", "/v2/health/ready")
            listed = server.request("GET", "/openai/v1/models").json()["data"]
            base = f"http://127.0.0.1:{server.port}/openai/v1"
            with openai.OpenAI(base_url=base, api_key="k", max_retries=0) as client:
                stream = client.chat.completions.create(
                    model="writer",
                    messages=[{"role": "user", "content": "one two three"}],
                    stream=True,
                )
                chunks = list(stream)
            code = server.stop()

    assert ready.status == 200
    assert (listed[0]["id"], listed[0]["max_model_len"]) == ("writer", 32)
    words = [each.choices[0].delta.content for each in chunks if each.choices]
    assert words == ["one", "two", "three"]
    assert {each.model for each in chunks} == {"writer"}
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 4
    assert code == 0
    assert "loaded: []" in server.stderr
