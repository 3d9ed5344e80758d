"""The REST server: the address it binds, how it starts, and how it stops."""

import asyncio
import socket
from http.client import HTTPConnection
from typing import Any

import pytest

from kserve import Model, ModelRepository, model_server
from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING
from kserve.errors import StartError
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.app import Application
from kserve.protocol.rest.server import RESTServer
from kserve.testing import request, serving

WAIT_S = 15


class Echo(Model):
    """Answers with its instances."""

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


def _server(host: str = "127.0.0.1", port: int = 0, **options: Any) -> RESTServer:
    dataplane = DataPlane(ModelRepository())
    return RESTServer(Application(), dataplane, port, host=host, **options)


async def _get_root(host: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.rpartition(b"\r\n\r\n")[2]


def _serve_once(server: RESTServer) -> tuple[str, bytes]:
    async def run() -> tuple[str, bytes]:
        address = await server.start()
        try:
            host, _, port = address.removeprefix("http://").rpartition(":")
            return address, await _get_root(host.strip("[]"), int(port))
        finally:
            await server.stop()

    return asyncio.run(run())


def test_a_free_port_is_taken_and_told() -> None:
    address, body = _serve_once(_server())

    assert address.startswith("http://127.0.0.1:")
    assert int(address.rpartition(":")[2]) > 0
    assert body == b'{"status":"alive"}'


@pytest.mark.skipif(not socket.has_ipv6, reason="the machine has no IPv6")
def test_an_ipv6_address_is_told_in_brackets() -> None:
    try:
        address, body = _serve_once(_server("::1"))
    except StartError as exc:
        pytest.skip(str(exc))

    assert address.startswith("http://[::1]:")
    assert body == b'{"status":"alive"}'


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(StartError) as raised:
            asyncio.run(_server(port=port).start())

    assert str(raised.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use"


def test_a_port_that_another_has_bound_but_not_listened_on_is_an_error_too() -> None:
    with socket.socket() as first, socket.socket() as second:
        for other in (first, second):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        second.bind(("127.0.0.1", port))
        first.listen()

        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}: "):
            asyncio.run(_server(port=port).start())


def test_an_address_that_is_not_the_machines_is_an_error() -> None:
    with pytest.raises(StartError) as raised:
        asyncio.run(_server("192.0.2.1").start())

    assert str(raised.value) == "cannot listen on 192.0.2.1:0: Cannot assign requested address"


def test_a_failure_of_the_server_under_it_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _server()

    async def run() -> None:
        loop = asyncio.get_running_loop()

        async def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError("no such luck")

        monkeypatch.setattr(loop, "create_server", fail)
        await server.start()

    with pytest.raises(OSError, match="no such luck"):
        asyncio.run(run())


def test_stopping_what_never_started_does_nothing() -> None:
    asyncio.run(_server().stop())


def test_stopping_closes_idle_connections_and_the_port() -> None:
    async def run() -> tuple[bytes, bool]:
        server = _server()
        port = int((await server.start()).rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b'{"status":"alive"}')
        await server.stop()
        rest = await reader.read()
        writer.close()
        try:
            await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return rest, True
        return rest, False

    assert asyncio.run(run()) == (b"", True)


def test_an_idle_connection_is_closed_after_its_time() -> None:
    with serving(Echo("server-echo"), timeout_keep_alive_s=0) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("GET", "/")
        connection.getresponse().read()
        assert connection.sock is not None
        end = connection.sock.recv(1)
        connection.close()

    assert end == b""


def test_the_import_string_of_the_application_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_server, "_app", None)

    served = RESTServer(FASTAPI_APP_IMPORT_STRING, DataPlane(ModelRepository()))

    assert served.create_application() is model_server.app.rest_app


def test_the_bare_server_answers_where_user_code_added_nothing() -> None:
    application = Application()
    server = RESTServer(application, DataPlane(ModelRepository()))

    assert server.create_application() is application.rest_app


def test_the_application_forgets_a_server_that_stopped_but_no_other() -> None:
    application = Application()
    first, second = (
        RESTServer(application, DataPlane(ModelRepository()), 0, host="127.0.0.1") for _ in range(2)
    )
    latest = application.rest_app

    asyncio.run(first.stop())
    after_first = application.rest_app
    asyncio.run(second.stop())

    assert (after_first, application.rest_app) == (latest, None)


def test_a_request_that_is_no_http_is_refused() -> None:
    with serving(Echo("server-echo")) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as client:
            client.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
            answer = client.recv(1000)
        after = request(port, "GET", "/")

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert after.status == 200


def test_the_server_does_not_name_itself() -> None:
    with serving(Echo("server-echo")) as port:
        response = request(port, "GET", "/")

    assert sorted(response.headers) == ["content-length", "content-type", "date", "x-request-id"]
