"""A listening socket: opened, and closed without losing who has connected."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from kserve.errors import StartError

# Connections that wait to be accepted; as uvicorn's default.
_BACKLOG: Final = 2048


def listen(host: str, port: int, wire: str = "") -> socket.socket:
    """Open a socket; no other process can listen on the same port.

    Args:
        host: The address.
        port: The port; 0 takes a free one.
        wire: What is served there, for the message: " for gRPC".

    Raises:
        StartError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise StartError(f"cannot listen on {host}:{port}{wire}: {exc.strerror}") from exc
    listener.setblocking(False)
    return listener


async def close_listener(
    listener: socket.socket,
    stop_accepting: Callable[[], None],
    make_protocol: Callable[[], asyncio.BaseProtocol],
) -> None:
    """Accept no more, but all who have connected: closing resets those that wait.

    Args:
        listener: The socket.
        stop_accepting: Makes the event loop let go of it.
        make_protocol: Makes the protocol of a connection.
    """
    # It keeps the queue while the event loop lets go of its own.
    with listener.dup() as spare:
        stop_accepting()
        listener.close()
        await _accept_waiting(spare, make_protocol)


async def _accept_waiting(
    listener: socket.socket, make_protocol: Callable[[], asyncio.BaseProtocol]
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            # Nobody waits, or the process has no descriptor left.
            return
        await loop.connect_accepted_socket(make_protocol, connection)
