"""`python -m benchmarks.floor --answer FILE`: a bare server that always gives the same answer.

uvicorn and `grpc.aio` with nothing behind them: what a server made of these can reach at most, and
what the load generator can ask at least.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import grpc
import uvicorn
import uvloop
from grpc import aio

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Echo:
    """An ASGI application that reads the body of a request and sends the answer.

    Args:
        answer: The body of every answer.
    """

    def __init__(self, answer: bytes) -> None:
        self._start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(answer)).encode()),
            ],
        }
        self._body = {"type": "http.response.body", "body": answer}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        while (await receive()).get("more_body"):
            pass
        await send(self._start)
        await send(self._body)


class _EveryCall(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    # In quotes: the class is generic in the stubs alone.
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_unary_rpc_method_handler(self._give)

    async def _give(self, request: bytes, context: Any) -> bytes:
        return self._answer


async def _serve(answer: bytes, http_port: int, grpc_port: int) -> None:
    grpc_server = aio.server(
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    )
    grpc_server.add_generic_rpc_handlers([_EveryCall(answer)])
    grpc_server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await grpc_server.start()
    config = uvicorn.Config(
        Echo(answer),
        host="127.0.0.1",
        port=http_port,
        http="httptools",
        lifespan="off",
        access_log=False,
    )
    await uvicorn.Server(config).serve()
    await grpc_server.stop(None)


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answer", type=Path, required=True, help="file with the body of answers")
    parser.add_argument("--http_port", type=int, required=True)
    parser.add_argument("--grpc_port", type=int, required=True)
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(args.answer.read_bytes(), args.http_port, args.grpc_port))


if __name__ == "__main__":
    main()
