"""The paths of OpenAI's routes, for servers that have none of them too: nothing else is loaded."""

import os
from collections.abc import Mapping
from typing import Final

# What KServe's SDK reads, and takes where it is not set.
PREFIX_VARIABLE: Final = "KSERVE_OPENAI_ROUTE_PREFIX"
DEFAULT_PREFIX: Final = "/openai"

# Each answers POST below every base.
APIS: Final = (
    *("completions", "chat/completions", "embeddings"),
    *("rerank", "score", "classify", "pooling", "tokenize", "detokenize"),
)

# Where the clients of vLLM, Jina and Cohere look for them.
_ELSEWHERE: Final = {
    **{f"/{api}": api for api in APIS[3:]},
    "/v2/rerank": "rerank",
}

_V1: Final = "/v1"


class OpenAIPaths:
    """The routes below one prefix, and below `/v1` alone.

    Args:
        prefix: What stands before `/v1`; may be empty.

    Attributes:
        by_path: The name of the API, by the path.
        models: The paths of the lists of models that are OpenAI's alone: `/v1/models` is V1's.
    """

    __slots__ = ("by_path", "models")

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        stripped = prefix.strip("/")
        bases = dict.fromkeys((f"/{stripped}{_V1}" if stripped else _V1, _V1))
        self.by_path = {f"{base}/{api}": api for base in bases for api in APIS} | _ELSEWHERE
        self.models = tuple(f"{base}/models" for base in bases if base != _V1)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "OpenAIPaths":
        """Give those of an environment, that of this process if None."""
        env = os.environ if env is None else env
        return cls(env.get(PREFIX_VARIABLE, DEFAULT_PREFIX))

    def model_of(self, path: str) -> str | None:
        """Give the model that a path asks about, empty for their list; None for other paths."""
        for models in self.models:
            if path == models:
                return ""
            if path.startswith(f"{models}/"):
                return path[len(models) + 1 :]
        return None

    def include(self, target: bytes) -> bool:
        """Say whether a request target, with a query or without, is of one of the routes."""
        path = target.partition(b"?")[0].decode("latin-1").rstrip("/")
        return path in self.by_path or self.model_of(path) is not None
