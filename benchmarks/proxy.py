"""What a proxy costs: one server of OpenAI's API, asked directly and through `OpenAIProxyModel`.

`benchmarks/proxy` sets it up. The server answers a chat at once, whole or as a stream of 64 chunks,
so that all of the time is that of the server and of the proxy. Both are asked in turns, in one run;
the load, the server and the proxy are a process each.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.closed_loop import Load, Result, run_http
from kserve import ModelServer
from kserve.protocol.rest.openai import ChatCompletionRequest, OpenAIGenerativeModel
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChoice,
    ChatCompletionChunk,
    ChatMessage,
    ChoiceDelta,
    ChunkChoice,
)
from kserve.testing import ServerProcess

N_CHUNKS: Final = 64
_TURNS: Final = 3
_WARM_UP_S: Final = 1.0

_SERVER: Final = "from benchmarks.proxy import serve\n\nserve()\n"
_PATH: Final = "/v1/chat/completions"


class Writer(OpenAIGenerativeModel):
    """Answers at once."""

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Any:
        """Answer, whole or in chunks."""
        if request.stream:
            return self._chunks(request)
        message = ChatMessage(content="word " * N_CHUNKS)
        choice = ChatCompletionChoice(index=0, message=message, finish_reason="stop")
        return ChatCompletion(model=request.model, choices=[choice])

    async def _chunks(self, request: ChatCompletionRequest) -> AsyncIterator[ChatCompletionChunk]:
        for _ in range(N_CHUNKS):
            choice = ChunkChoice(index=0, delta=ChoiceDelta(content="word "))
            yield ChatCompletionChunk(id="1", created=1, model=request.model, choices=[choice])


def serve() -> None:
    """Serve the model; its process calls it."""
    ModelServer().start([Writer("theirs")])


def request_bytes(model: str, *, stream: bool) -> bytes:
    """Give the bytes of a request."""
    messages = [{"role": "user", "content": "Tell me a story of 64 words. " * 10}]
    body = orjson.dumps({"model": model, "messages": messages, "stream": stream})
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
        _PATH.encode(),
        len(body),
        body,
    )


def is_right(body: bytes) -> bool:
    """Say whether a body has all words."""
    return body.count(b"word ") == N_CHUNKS


def measure(n_connections: int, duration_s: float) -> Iterator[str]:
    """Give the rows of the table for a number of connections."""
    with ExitStack() as stack:
        script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "server.py"
        script.write_text(_SERVER)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
        quiet = ("--enable_latency_logging", "false", "--enable_grpc", "false")
        direct = stack.enter_context(ServerProcess(str(script), *quiet, env=env))
        url = f"http://127.0.0.1:{direct.port}"
        flags = ("--upstream_url", url, "--model_name", "ours", "--upstream_health_path", "none")
        proxy = stack.enter_context(ServerProcess("kserve", *flags, *quiet, env=env))
        for stream in (False, True):
            servers = {"directly": (direct, "theirs"), "through the proxy": (proxy, "ours")}
            results: dict[str, list[Result]] = {name: [] for name in servers}
            for _ in range(_TURNS):
                for name, (server, model) in servers.items():
                    load = Load(
                        request_bytes(model, stream=stream),
                        is_right,
                        n_connections,
                        1.0,
                        duration_s,
                    )
                    results[name].append(run_http(load, server.port, server.process.pid))
            for name, each in results.items():
                yield row("stream" if stream else "whole", n_connections, name, each)


def row(kind: str, n_connections: int, name: str, results: list[Result]) -> str:
    """Give the row of some results: the middle one by its rate.

    The CPU of an answer is what counts where other work shares the machine.
    """
    middle = sorted(results, key=lambda each: each.rate)[len(results) // 2]
    n_failures = sum(sum(each.failures.values()) for each in results)
    cpu_ms = middle.server_cpu / middle.rate * 1e3 if middle.rate else float("nan")
    return (
        f"| {kind} | {n_connections} | {name} | {middle.rate:,.0f} | {middle.latency_ms(50):.1f} | "
        f"{middle.latency_ms(99):.1f} | {cpu_ms:.2f} | {n_failures} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--duration_s", type=float, default=8.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    args = parser.parse_args()
    print("| answer | connections | asked | answers/s | p50 ms | p99 ms | CPU ms | failures |")
    print("|---|---|---|---|---|---|---|---|")
    for n_connections in args.connections:
        for line in measure(n_connections, args.duration_s):
            print(line, flush=True)


if __name__ == "__main__":
    main()
