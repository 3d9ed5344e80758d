"""The paths of the routes."""

import subprocess
import sys

import pytest

from kserve.protocol.rest.openai.paths import OpenAIPaths


def test_each_api_is_below_both_bases_and_where_other_clients_look() -> None:
    paths = OpenAIPaths().by_path

    assert sorted(path for path, api in paths.items() if api == "rerank") == [
        *("/openai/v1/rerank", "/rerank", "/v1/rerank", "/v2/rerank"),
    ]
    assert sorted(path for path, api in paths.items() if api == "embeddings") == [
        *("/openai/v1/embeddings", "/v1/embeddings"),
    ]
    assert paths["/v1/chat/completions"] == "chat/completions"
    assert set(paths) > {f"/{api}" for api in ("score", "classify", "pooling", "tokenize")}


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/openai/v1/models", ""),
        ("/openai/v1/models/org/name", "org/name"),
        ("/openai/v1/modelsx", None),
        ("/v1/models", None),
    ],
)
def test_finds_the_model_of_a_path(path: str, model: str | None) -> None:
    assert OpenAIPaths().model_of(path) == model


@pytest.mark.parametrize(
    ("target", "is_included"),
    [
        (b"/v1/embeddings", True),
        (b"/v1/embeddings/?a=b", True),
        (b"/openai/v1/models/x", True),
        (b"/v1/models", False),
        (b"/v1/models/x:predict", False),
        (b"", False),
        (b"/\xff", False),
    ],
)
def test_knows_its_targets(target: bytes, is_included: bool) -> None:
    assert OpenAIPaths().include(target) == is_included


@pytest.mark.parametrize("prefix", ["", "/"])
def test_without_a_prefix_only_v1_is_left(prefix: str) -> None:
    paths = OpenAIPaths(prefix)

    assert paths.models == ()
    assert "/v1/embeddings" in paths.by_path
    assert "/openai/v1/embeddings" not in paths.by_path


def test_reads_the_environment() -> None:
    assert OpenAIPaths.from_env({"KSERVE_OPENAI_ROUTE_PREFIX": "llm"}).models == ("/llm/v1/models",)
    assert OpenAIPaths.from_env({}).models == ("/openai/v1/models",)


@pytest.mark.timeout(60)
def test_a_server_without_a_model_of_the_routes_loads_nothing_of_them() -> None:
    script = (
        "import sys, kserve, kserve.protocol.rest.server, kserve.model_server\n"
        "print(sorted(m for m in sys.modules if 'openai' in m or m == 'msgspec'))"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    loaded = [
        "kserve.protocol.rest.openai",
        "kserve.protocol.rest.openai.error_object",
        "kserve.protocol.rest.openai.paths",
    ]
    assert result.stdout.strip() == str(loaded), result.stderr
