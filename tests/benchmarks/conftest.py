"""A server whose answers a test writes itself, byte by byte."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

# What a server does with one request on one connection; False ends the connection.
Handle = Callable[[socket.socket], bool]
Serve = Callable[[Handle], int]


def _requests(connection: socket.socket) -> Iterator[bytes]:
    """Give the requests that come, all of which have the body `ask`."""
    received = b""
    while data := connection.recv(1 << 16):
        received += data
        while b"ask" in received:
            request, _, received = received.partition(b"ask")
            yield request


def _talk(connection: socket.socket, handle: Handle) -> None:
    with connection:
        try:
            for _ in _requests(connection):
                if not handle(connection):
                    return
        except OSError:
            return


@contextmanager
def _serving(handle: Handle) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_talk, args=(connection, handle), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        # Closing alone does not wake a thread that accepts.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that does something with each request; gives its port."""
    with ExitStack() as stack:
        yield lambda handle: stack.enter_context(_serving(handle))
