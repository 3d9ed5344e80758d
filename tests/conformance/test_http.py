"""What HTTP allows around the protocols: content types, request ids, connections, framing."""

import re
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, BinaryIO
from uuid import UUID

import orjson
import pytest

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

TIMEOUT_S = 10

CONTENT_TYPES = [
    None,
    "application/json",
    "application/json; charset=utf-8",
    "Application/JSON;charset=UTF-8",
    "application/vnd.api+json",
    "application/ld+json",
    "application/octet-stream",
    "text/plain",
    # curl's default for `-d`
    "application/x-www-form-urlencoded",
]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_v1_reads_json_under_any_usual_content_type(
    server: "RunningServer", content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    response = server.request(
        "POST", f"{server.entry.v1}:predict", server.entry.v1_request, headers
    )

    assert (response.status, response.json()) == (200, server.entry.v1_response)


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_v2_reads_json_under_any_usual_content_type(
    server: "RunningServer", content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = {"id": "1", **server.entry.v2_request}

    response = server.request("POST", f"{server.entry.v2}/infer", body, headers)

    assert (response.status, response.json()) == (200, server.entry.v2_response("1"))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/", 200, id="root"),
        pytest.param("GET", "/metrics", 200, id="metrics"),
        pytest.param("GET", "/v2/health/ready", 200, id="probe"),
        pytest.param("GET", "/nothing", 404, id="unknown path"),
        pytest.param("GET", "/v2/models/InvalidModel", 404, id="unknown model"),
        pytest.param("PUT", "/v2/models", 405, id="wrong method"),
        pytest.param("POST", "{v1}:predict", 400, id="V1 error"),
        pytest.param("POST", "{v2}/infer", 400, id="V2 error"),
    ],
)
def test_every_answer_carries_the_request_id(
    server: "RunningServer", method: str, path: str, status: int
) -> None:
    path = path.format(v1=server.entry.v1, v2=server.entry.v2)

    response = server.request(method, path, headers={"X-Request-Id": "a-1"})

    assert (response.status, response.headers["x-request-id"]) == (status, "a-1")


def test_predictions_carry_the_request_id(server: "RunningServer") -> None:
    headers = {"X-REQUEST-ID": "a-1"}

    v1 = server.request("POST", f"{server.entry.v1}:predict", server.entry.v1_request, headers)
    v2 = server.request("POST", f"{server.entry.v2}/infer", server.entry.v2_request, headers)

    assert (v1.status, v1.headers["x-request-id"]) == (200, "a-1")
    assert (v2.status, v2.headers["x-request-id"]) == (200, "a-1")


def test_a_request_without_an_id_gets_a_new_one(server: "RunningServer") -> None:
    first, second = (server.request("GET", "/").headers["x-request-id"] for _ in range(2))

    assert str(UUID(first)) == first
    assert str(UUID(second)) == second
    assert first != second


@pytest.mark.parametrize(
    "given", ["two words", "x" * 129, "", "\xe9"], ids=["space", "too long", "empty", "Latin-1"]
)
def test_a_request_id_that_is_no_token_is_replaced(server: "RunningServer", given: str) -> None:
    response = server.request("GET", "/", headers={"X-Request-Id": given})

    assert str(UUID(response.headers["x-request-id"])) == response.headers["x-request-id"]


def test_the_server_does_not_name_its_software(server: "RunningServer") -> None:
    assert "server" not in server.request("GET", "/").headers


def test_one_connection_serves_many_requests_good_and_bad(server: "RunningServer") -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    good = orjson.dumps(server.entry.v1_request)
    steps = [
        ("POST", f"{server.entry.v1}:predict", good, 200),
        ("POST", f"{server.entry.v1}:predict", b"{", 400),
        ("GET", "/nothing", None, 404),
        # Refused before its body is read: the rest of it must not be taken for a request.
        ("POST", "/v1/models/InvalidModel:predict", b"x" * 1_000_000, 404),
        ("PUT", f"{server.entry.v2}/infer", good, 405),
        ("HEAD", "/", None, 200),
        ("POST", f"{server.entry.v1}:predict", good, 200),
    ]

    statuses = []
    last = b""
    connection.connect()
    first_socket = connection.sock
    for method, path, body, _ in steps:
        connection.request(method, path, body)
        response = connection.getresponse()
        last = response.read()
        statuses.append(response.status)
    is_same_connection = connection.sock is first_socket
    connection.close()

    assert statuses == [status for *_, status in steps]
    assert is_same_connection
    assert orjson.loads(last) == server.entry.v1_response


def test_requests_sent_before_the_answers_are_answered_in_order(server: "RunningServer") -> None:
    body = orjson.dumps(server.entry.v1_request)
    request = _head("POST", f"{server.entry.v1}:predict", f"Content-Length: {len(body)}") + body
    sent = [request, _head("GET", "/nothing"), request]

    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(b"".join(sent))
        with connection.makefile("rb") as stream:
            answers = [_read_answer(stream) for _ in sent]

    good = (200, orjson.dumps(server.entry.v1_response))
    assert answers == [good, (404, b'{"detail":"Not Found"}'), good]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64])
def test_a_body_may_come_in_pieces_of_any_size(server: "RunningServer", chunk_bytes: int) -> None:
    v1 = server.request(
        "POST", f"{server.entry.v1}:predict", server.entry.v1_request, chunk_bytes=chunk_bytes
    )
    v2 = server.request(
        "POST",
        f"{server.entry.v2}/infer",
        {"id": "1", **server.entry.v2_request},
        chunk_bytes=chunk_bytes,
    )

    assert (v1.status, v1.json()) == (200, server.entry.v1_response)
    assert (v2.status, v2.json()) == (200, server.entry.v2_response("1"))


@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096])
def test_a_body_may_come_in_chunked_transfer_encoding(
    server: "RunningServer", chunk_bytes: int
) -> None:
    v1 = _post_chunked(
        server, f"{server.entry.v1}:predict", orjson.dumps(server.entry.v1_request), chunk_bytes
    )
    v2 = _post_chunked(
        server,
        f"{server.entry.v2}/infer",
        orjson.dumps({"id": "1", **server.entry.v2_request}),
        chunk_bytes,
    )

    assert v1 == (200, server.entry.v1_response)
    assert v2 == (200, server.entry.v2_response("1"))


def test_a_client_that_waits_for_100_continue_gets_it(server: "RunningServer") -> None:
    body = orjson.dumps(server.entry.v1_request)
    head = _head(
        "POST",
        f"{server.entry.v1}:predict",
        f"Content-Length: {len(body)}",
        "Expect: 100-continue",
        "Connection: close",
    )

    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(head)
        with connection.makefile("rb") as stream:
            interim = stream.readline() + stream.readline()
            connection.sendall(body)
            answer = _read_answer(stream)

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer == (200, orjson.dumps(server.entry.v1_response))


def test_a_client_of_http_1_0_is_answered_and_the_connection_closed(
    server: "RunningServer",
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as stream:
            answer = stream.read()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"200"
    assert body == b'{"status":"alive"}'


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01 hello\r\n\r\n", id="TLS"),
        pytest.param(b"FOO / HTTP/1.1\r\n\r\n", id="unknown method"),
        pytest.param("GET /\u00e9 HTTP/1.1\r\n\r\n".encode(), id="raw UTF-8 in the path"),
        pytest.param(b"GET / HTTP/1.1\r\nA: \0\r\n\r\n", id="NUL in a header"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: abc\r\n\r\n", id="no length"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", id="two lengths"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            id="length and chunks",
        ),
        pytest.param(
            b"POST {v1}:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            id="no chunk",
        ),
    ],
)
def test_what_is_no_http_is_refused_in_json(server: "RunningServer", sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(sent.replace(b"{v1}", server.entry.v1.encode()))
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")

    status_line, *lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ") for line in lines)
    assert status_line == "http/1.1 400 bad request"
    assert (headers["content-type"], headers["connection"]) == ("application/json", "close")
    assert str(UUID(headers["x-request-id"])) == headers["x-request-id"]
    assert list(orjson.loads(body)) == ["error"]


@pytest.mark.parametrize(
    "upgrade",
    [
        pytest.param(
            ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
            id="curl --http2",
        ),
        pytest.param(["Connection: upgrade", "Upgrade: websocket"], id="websocket"),
        pytest.param(["Connection: upgrade", "Upgrade: h2c"], id="h2c"),
    ],
)
def test_an_upgrade_is_ignored_and_the_body_is_read(
    server: "RunningServer", upgrade: list[str]
) -> None:
    body = orjson.dumps(server.entry.v1_request)
    head = _head("POST", f"{server.entry.v1}:predict", *upgrade, f"Content-Length: {len(body)}")

    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        with connection.makefile("rb") as stream:
            # The body with its head, and after it.
            connection.sendall(head + body + head)
            first = _read_answer(stream)
            connection.sendall(body + _head("GET", "/"))
            rest = [_read_answer(stream) for _ in range(2)]

    good = (200, orjson.dumps(server.entry.v1_response))
    assert [first, *rest] == [good, good, (200, b'{"status":"alive"}')]


def test_a_client_that_leaves_amid_its_body_disturbs_nobody(server: "RunningServer") -> None:
    head = _head("POST", f"{server.entry.v1}:predict", "Content-Length: 1000")
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(head + b"half of it")

    response = server.request("POST", f"{server.entry.v1}:predict", server.entry.v1_request)

    assert (response.status, response.json()) == (200, server.entry.v1_response)


def test_eight_clients_at_once_each_get_their_own_answer(server: "RunningServer") -> None:
    clients = range(8)

    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(lambda client: _infer_often(server, client, n=10), clients))

    assert answers == [
        [(200, f"{client}-{i}", server.entry.v2_response(f"{client}-{i}")) for i in range(10)]
        for client in clients
    ]


def test_eight_clients_at_once_each_get_their_own_tensors(echo: "RunningServer") -> None:
    def ask(client: int) -> list[object]:
        rows = [[client, i] for i in range(10)]
        return [
            echo.request("POST", "/v1/models/echo:predict", {"instances": [row]}).json()
            for row in rows
        ]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))

    assert answers == [[{"predictions": [[client, i]]} for i in range(10)] for client in range(8)]


def _infer_often(server: "RunningServer", client: int, n: int) -> list[tuple[int, str, object]]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    answers = []
    for i in range(n):
        request_id = f"{client}-{i}"
        body = orjson.dumps({"id": request_id, **server.entry.v2_request})
        connection.request("POST", f"{server.entry.v2}/infer", body, {"X-Request-Id": request_id})
        response = connection.getresponse()
        echoed = response.headers["x-request-id"]
        answers.append((response.status, echoed, orjson.loads(response.read())))
    connection.close()
    return answers


def _post_chunked(
    server: "RunningServer", path: str, body: bytes, chunk_bytes: int
) -> tuple[int, object]:
    pieces: Iterable[bytes] = (
        body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)
    )
    connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    connection.request("POST", path, pieces, encode_chunked=True)
    response: HTTPResponse = connection.getresponse()
    answer = orjson.loads(response.read())
    connection.close()
    return response.status, answer


def _head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def _read_answer(stream: BinaryIO) -> tuple[int, bytes]:
    status = int(stream.readline().split(b" ")[1])
    length = 0
    while (line := stream.readline()) != b"\r\n":
        match = re.fullmatch(rb"content-length: (\d+)\r\n", line.lower())
        length = int(match[1]) if match else length
    return status, stream.read(length)
