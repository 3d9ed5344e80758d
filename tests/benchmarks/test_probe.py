import socket
import threading

from benchmarks.probe import LivenessProbe


class Health:
    """Answers every connection with a status, until closed."""

    def __init__(self, status: str) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.asked: list[bytes] = []
        self.was_asked_twice = threading.Event()
        self._answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(1 << 16).partition(b"\r\n")[0])
                connection.sendall(self._answer)
            if len(self.asked) == 2:
                self.was_asked_twice.set()


def test_asks_for_liveness_over_new_connections() -> None:
    server = Health("200 OK")

    with LivenessProbe(server.port) as probe:
        assert server.was_asked_twice.wait(15)
    server.close()

    assert set(server.asked) == {b"GET /v2/health/live HTTP/1.1"}
    assert len(probe.samples) == len(server.asked)
    assert all(latency_s is not None and latency_s > 0 for _, latency_s in probe.samples)
    assert probe.samples == sorted(probe.samples)


def test_another_status_is_a_failure() -> None:
    server = Health("503 Service Unavailable")

    with LivenessProbe(server.port) as probe:
        assert server.was_asked_twice.wait(15)
    server.close()

    assert {latency_s for _, latency_s in probe.samples} == {None}
