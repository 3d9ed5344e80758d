"""A client that sends frames as the test makes them, by a library that is not the server's."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest
from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WAIT_S = 10


class RawClient:
    """One connection.

    Args:
        port: Where the server listens.
        settings: What the client says at first; None to say nothing.
    """

    def __init__(self, port: int, settings: dict[int, int] | None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.encoder, self.decoder = Encoder(), Decoder()
        self._unread = b""
        if settings is not None:
            self.socket.sendall(PREFACE + SettingsFrame(settings=settings).serialize())

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close, so that no server has to wait for it."""
        self.socket.close()

    def send(self, *frames: Frame) -> None:
        """Send frames, all at once."""
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))

    def read(self) -> Frame | None:
        """Give the next frame; None at the end."""
        head = self._read_exactly(9)
        if head is None:
            return None
        frame, length = Frame.parse_frame_header(memoryview(head))
        frame.parse_body(memoryview(self._read_exactly(length) or b""))
        return frame

    def read_until(self, is_last: Callable[[Frame], bool]) -> list[Frame]:
        """Give the frames up to one, which has to come."""
        frames: list[Frame] = []
        while not frames or not is_last(frames[-1]):
            frame = self.read()
            assert frame is not None, f"the connection ended after {frames}"
            frames.append(frame)
        return frames

    def read_all(self) -> list[Frame]:
        """Give the frames up to the end of the connection."""
        return list(iter(self.read, None))

    def answer_to(self, stream_id: int) -> tuple[dict[str, str], bytes]:
        """Give the headers of a response, trailers included, and its data."""
        headers: dict[str, str] = {}
        data = b""

        def is_last(frame: Frame) -> bool:
            nonlocal data
            if isinstance(frame, HeadersFrame):
                # All are decoded: they share the table.
                fields = {str(k): str(v) for k, v in self.decoder.decode(frame.data)}
                if frame.stream_id == stream_id:
                    headers.update(fields)
            if frame.stream_id != stream_id:
                return False
            if isinstance(frame, RstStreamFrame):
                headers["reset"] = str(frame.error_code)
                return True
            if isinstance(frame, DataFrame):
                data += frame.data
            return "END_STREAM" in frame.flags

        self.read_until(is_last)
        return headers, data

    def sync(self) -> None:
        """Wait until the server has read all that was sent."""
        self.send(PingFrame(opaque_data=b"synced??"))
        self.read_until(lambda f: isinstance(f, PingFrame) and "ACK" in f.flags)

    def end(self) -> tuple[int, str]:
        """Give the code and the text of the GOAWAY after which the server closes."""
        goaways = [frame for frame in self.read_all() if isinstance(frame, GoAwayFrame)]
        return goaways[-1].error_code, goaways[-1].additional_data.decode()

    def head(
        self,
        stream_id: int,
        path: str,
        *fields: tuple[str, str],
        flags: Iterable[str] = ("END_HEADERS",),
    ) -> HeadersFrame:
        """Make the head of a gRPC request."""
        headers = [
            *((":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", path)),
            *(("te", "trailers"), ("content-type", "application/grpc")),
            *fields,
        ]
        return HeadersFrame(stream_id, self.encoder.encode(headers), flags=list(flags))

    def _read_exactly(self, n_bytes: int) -> bytes | None:
        while len(self._unread) < n_bytes:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._unread += data
        data, self._unread = self._unread[:n_bytes], self._unread[n_bytes:]
        return data


@pytest.fixture
def connect() -> Iterator[Callable[..., RawClient]]:
    """Give what makes clients, which are closed at the end of the test."""
    with ExitStack() as stack:

        def make(port: int, settings: dict[int, int] | None = None, **options: Any) -> RawClient:
            says_hello = options.get("says_hello", True)
            client = RawClient(port, settings or {} if says_hello else None)
            return stack.enter_context(client)

        yield make
