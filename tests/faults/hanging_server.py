"""A server that hangs where the argument says; `entered` on stderr says that it does."""

import argparse
import asyncio
import contextlib
import sys
import threading
import time
from typing import Any

import kserve

_FOREVER_S = 1e6


def _enter() -> None:
    sys.stderr.write("entered\n")
    sys.stderr.flush()


def _hang() -> None:
    _enter()
    # Python code that waits for a lock, as one that is never released.
    threading.Event().wait()


def _hang_in_c() -> None:
    _enter()
    # C code that does not hold the interpreter's lock.
    time.sleep(_FOREVER_S)


async def _hang_in_pool() -> None:
    await asyncio.to_thread(_hang)


async def _block_loop() -> None:
    _hang_in_c()


async def _refuse_to_end() -> None:
    _enter()
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(_FOREVER_S)


_WAYS = {
    "python": _hang,
    "c": _hang_in_c,
    "pool": _hang_in_pool,
    "loop": _block_loop,
    "uncancellable": _refuse_to_end,
}


class Hanging(kserve.Model):
    """Hangs in one of its methods."""

    def __init__(self, place: str, way: str) -> None:
        super().__init__("hanging")
        if place:
            setattr(self, place, self._hanging(way))

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return payload

    @staticmethod
    def _hanging(way: str) -> Any:
        function = _WAYS[way]
        if not asyncio.iscoroutinefunction(function):
            return lambda *args: function()

        async def hang(*args: Any) -> None:
            await function()

        return hang


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    parser.add_argument("--place", default="", choices=("", "load", "predict", "stop"))
    parser.add_argument("--way", default="python", choices=tuple(_WAYS))
    args = parser.parse_args()
    kserve.ModelServer().start([Hanging(args.place, args.way)])
