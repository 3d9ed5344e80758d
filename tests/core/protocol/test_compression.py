"""Compressed bodies: literal ones, those of the standard library, and any bytes at all."""

import asyncio
import gzip
import threading
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve import Model
from kserve.errors import InvalidInput, RequestTooLarge, UnsupportedEncoding
from kserve.protocol import compression
from kserve.protocol.compression import Compression, choose, decompress
from kserve.testing import Response, request, serving

TEXT = b'{"instances": [[1, 2], [3, 4]]}'
JSON = [(b"content-type", b"application/json")]


def raw_deflate(body: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(body) + engine.flush()


ENCODINGS = [
    pytest.param("gzip", gzip.compress, id="gzip"),
    pytest.param("x-gzip", gzip.compress, id="x-gzip"),
    pytest.param("GZIP", gzip.compress, id="capitals"),
    pytest.param("deflate", zlib.compress, id="zlib"),
    pytest.param("deflate", raw_deflate, id="raw deflate"),
    pytest.param("identity", bytes, id="identity"),
]


@pytest.mark.parametrize(("encoding", "compress"), ENCODINGS)
def test_reads_a_compressed_body(encoding: str, compress: Any) -> None:
    assert decompress(compress(TEXT), encoding.encode(), len(TEXT)) == TEXT


def test_reads_the_bytes_of_rfc_1951() -> None:
    # "stored" block, last, of 1 byte
    assert decompress(b"\x01\x01\x00\xfe\xffa", b"deflate", 10) == b"a"


def test_reads_gzip_of_several_members() -> None:
    assert decompress(
        gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"c"), b"gzip", 3
    ) == (b"abc")


def test_reads_no_more_members_than_a_client_sends() -> None:
    with pytest.raises(InvalidInput, match="goes on for 20 bytes after the end of its gzip data"):
        decompress(gzip.compress(b"") * 65, b"gzip", 10)


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        pytest.param(
            "gzip",
            gzip.compress(TEXT)[:-3],
            f"the body ends inside its gzip data, after {len(gzip.compress(TEXT)) - 3} bytes",
            id="cut gzip",
        ),
        pytest.param(
            "deflate",
            zlib.compress(TEXT)[:5],
            "the body ends inside its deflate data, after 5 bytes",
            id="cut deflate",
        ),
        pytest.param(
            "gzip", b"", "the body ends inside its gzip data, after 0 bytes", id="empty gzip"
        ),
        pytest.param(
            "gzip",
            TEXT,
            "the body is no gzip data: Error -3 while decompressing data: incorrect header check",
            id="not compressed",
        ),
        pytest.param(
            "deflate",
            TEXT,
            "the body is no deflate data: Error -3 while decompressing data: incorrect header "
            "check",
            id="not deflated",
        ),
        pytest.param(
            "gzip",
            gzip.compress(TEXT, mtime=0)[:-8] + b"\x00" * 8,
            "the body is no gzip data: Error -3 while decompressing data: incorrect data check",
            id="wrong checksum",
        ),
        pytest.param(
            "deflate",
            zlib.compress(TEXT) + b"xyz",
            "the body goes on for 3 bytes after the end of its deflate data",
            id="bytes left over",
        ),
    ],
)
def test_refuses_a_corrupt_body(encoding: str, body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decompress(body, encoding.encode(), 1_000)

    assert str(caught.value) == message


@pytest.mark.parametrize(("encoding", "compress"), ENCODINGS[:5])
def test_refuses_a_body_that_becomes_larger_than_the_limit(encoding: str, compress: Any) -> None:
    with pytest.raises(RequestTooLarge) as caught:
        decompress(compress(TEXT), encoding.encode(), len(TEXT) - 1)

    assert str(caught.value) == (
        "the body becomes larger than 30 bytes when decompressed (--max_decompressed_bytes)"
    )


def test_the_limit_holds_for_all_members_together() -> None:
    with pytest.raises(RequestTooLarge):
        decompress(gzip.compress(b"ab") * 2, b"gzip", 3)


def test_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Watched:
        def __init__(self, engine: Any) -> None:
            self._engine = engine

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            output: bytes = self._engine.decompress(data, max_length)
            sizes.append(len(output))
            return output

    make = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda bits: Watched(make(bits)))

    with pytest.raises(RequestTooLarge):
        decompress(gzip.compress(bytes(50_000_000)), b"gzip", 1_000)

    assert sizes == [1_001]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzipped"])
def test_refuses_an_unknown_encoding(encoding: str) -> None:
    with pytest.raises(UnsupportedEncoding) as caught:
        decompress(TEXT, encoding.encode(), 1_000)

    assert str(caught.value) == (
        f"Content-Encoding: expected one of gzip, deflate, identity, got {encoding!r}"
    )


@given(body=st.binary(max_size=200), encoding=st.sampled_from([b"gzip", b"deflate", b"identity"]))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_any_bytes_give_bytes_or_invalid_input(body: bytes, encoding: bytes) -> None:
    try:
        assert isinstance(decompress(body, encoding, 10_000), bytes)
    except InvalidInput:
        assert encoding != b"identity"


@given(body=st.binary(max_size=300), cut=st.integers(0, 300))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_a_part_of_a_body_is_never_taken_for_the_whole(body: bytes, cut: int) -> None:
    compressed = gzip.compress(body)

    with pytest.raises(InvalidInput):
        decompress(compressed[: min(cut, len(compressed) - 1)], b"gzip", 10_000)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        pytest.param("", None, id="nothing"),
        pytest.param("gzip", b"gzip", id="gzip"),
        pytest.param("x-gzip", b"gzip", id="x-gzip"),
        pytest.param("GZip", b"gzip", id="capitals"),
        pytest.param("deflate", b"deflate", id="deflate"),
        pytest.param("br, gzip;q=0.8", b"gzip", id="another first"),
        pytest.param("gzip, deflate", b"gzip", id="both"),
        pytest.param("gzip;q=0.5, deflate;q=0.9", b"deflate", id="weights"),
        pytest.param("gzip ; q=0", None, id="refused"),
        pytest.param("*", b"gzip", id="any"),
        pytest.param("gzip;q=0, *", b"deflate", id="any but one"),
        pytest.param("identity", None, id="identity"),
        pytest.param("gzip;q=0.5, identity", None, id="rather not"),
        pytest.param("gzip, identity", b"gzip", id="as well"),
        pytest.param("br", None, id="another"),
        pytest.param("gzip;q=x", None, id="no number"),
        pytest.param("gzip;q=nan", None, id="nan"),
        pytest.param("gzip;q=5", None, id="beyond 1"),
        pytest.param("gzip;level=1", None, id="unknown parameter"),
        pytest.param(",,;,", None, id="no entries"),
    ],
)
def test_chooses_what_the_client_reads(accepted: str, encoding: bytes | None) -> None:
    assert choose(accepted.encode()) == encoding


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(b"a" * 1399, JSON, id="small"),
        pytest.param(
            b"a" * 1400, [*JSON, (b"content-encoding", b"br")], id="compressed by the model"
        ),
        pytest.param(b"a" * 1400, [(b"content-type", b"image/png")], id="an image"),
        pytest.param(b"a" * 1400, [(b"content-type", b"application/octet-stream")], id="tensors"),
        pytest.param(b"a" * 1400, [], id="untold"),
    ],
)
def test_leaves_alone_what_is_not_worth_it(body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    result = asyncio.run(Compression().compress(body, headers, b"gzip"))

    assert result == (body, headers)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/cloudevents+json", "Text/HTML; charset=x"]
)
@pytest.mark.parametrize("size", [1400, 100_000])
@pytest.mark.parametrize(
    ("encoding", "read"),
    [
        pytest.param("gzip", gzip.decompress, id="gzip"),
        pytest.param("deflate", zlib.decompress, id="deflate"),
    ],
)
def test_compresses_text(content_type: str, size: int, encoding: str, read: Any) -> None:
    headers = [(b"content-type", content_type.encode())]

    body, sent = asyncio.run(Compression().compress(b"a" * size, headers, encoding.encode()))

    assert read(body) == b"a" * size
    assert sent == [
        *headers,
        (b"vary", b"accept-encoding"),
        (b"content-encoding", encoding.encode()),
    ]


def test_tells_caches_that_the_answer_could_have_been_compressed() -> None:
    body, headers = asyncio.run(Compression().compress(b"a" * 1400, JSON, b""))

    assert (body, headers) == (b"a" * 1400, [*JSON, (b"vary", b"accept-encoding")])


def test_large_bodies_are_worked_on_away_from_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    inflate, deflate = compression._inflate, compression._deflate

    def note(function: Any) -> Any:
        def noted(*args: Any) -> Any:
            threads.append(threading.current_thread() is threading.main_thread())
            return function(*args)

        return noted

    monkeypatch.setattr(compression, "_inflate", note(inflate))
    monkeypatch.setattr(compression, "_deflate", note(deflate))
    large = bytes(range(256)) * 1_000

    async def run() -> None:
        unit = Compression()
        await unit.decompress(gzip.compress(b"a"), b"gzip")
        await unit.decompress(gzip.compress(large, 0), b"gzip")
        await unit.compress(b"a" * 1400, JSON, b"gzip")
        await unit.compress(large, JSON, b"gzip")

    asyncio.run(run())

    assert threads == [True, False, True, False]


class Mirror(Model):
    """Gives its instances back, with the headers that it saw."""

    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        return {"predictions": payload["instances"], "encoding": headers.get("content-encoding")}


@pytest.mark.parametrize(("encoding", "compress"), ENCODINGS)
def test_a_server_reads_compressed_bodies(encoding: str, compress: Any) -> None:
    with serving(Mirror("m")) as port:
        response = _predict(port, compress(TEXT), encoding)

    assert (response.status, response.json()) == (
        200,
        {"predictions": [[1, 2], [3, 4]], "encoding": None},
    )
    assert "content-encoding" not in response.headers
    assert "vary" not in response.headers


@pytest.mark.parametrize(
    ("encoding", "body", "status", "accept"),
    [
        pytest.param("br", TEXT, 415, "gzip, deflate, identity", id="unknown"),
        pytest.param("gzip", TEXT, 400, None, id="corrupt"),
        pytest.param("gzip", gzip.compress(TEXT)[:9], 400, None, id="cut"),
        pytest.param("gzip", gzip.compress(bytes(1_001)), 413, None, id="too large"),
    ],
)
def test_a_server_refuses_what_it_cannot_decompress(
    encoding: str, body: bytes, status: int, accept: str | None
) -> None:
    with serving(Mirror("m"), max_decompressed_bytes=1_000) as port:
        response = _predict(port, body, encoding)

    assert (response.status, response.headers.get("accept-encoding")) == (status, accept)
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    ("accept", "encoding", "read"),
    [
        pytest.param("gzip", "gzip", gzip.decompress, id="gzip"),
        pytest.param("deflate", "deflate", zlib.decompress, id="deflate"),
        pytest.param("identity", None, bytes, id="not asked"),
    ],
)
def test_a_server_compresses_long_answers(accept: str, encoding: str | None, read: Any) -> None:
    body = b'{"instances":[' + b"1.5," * 5_000 + b"2]}"
    with serving(Mirror("m")) as port:
        response = request(port, "POST", "/v1/models/m:predict", body, {"Accept-Encoding": accept})

    assert read(response.body) == b'{"predictions":[' + b"1.5," * 5_000 + b'2],"encoding":null}'
    assert response.headers.get("content-encoding") == encoding
    assert response.headers["vary"] == "accept-encoding"
    assert response.headers["content-length"] == str(len(response.body))


def test_a_model_that_compresses_itself_is_left_alone() -> None:
    packed = gzip.compress(b"a" * 5_000, 0)

    class Packed(Model):
        def predict(  # type: ignore[override]
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> bytes:
            response_headers.update({"content-encoding": "gzip", "content-type": "text/plain"})
            return packed

    with serving(Packed("m", return_response_headers=True)) as port:
        response = request(port, "POST", "/v1/models/m:predict", b"{}", {"Accept-Encoding": "gzip"})

    assert (response.body, response.headers["content-encoding"]) == (packed, "gzip")


def _predict(port: int, body: bytes, encoding: str) -> Response:
    return request(port, "POST", "/v1/models/m:predict", body, {"Content-Encoding": encoding})
