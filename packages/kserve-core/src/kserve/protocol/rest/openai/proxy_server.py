"""The flags of a proxy, and `python -m kserve --upstream_url URL`, which serves nothing else."""

import argparse
import os
from typing import TYPE_CHECKING, Final

from kserve.config import non_empty

# What loads the client of HTTP is imported where a proxy is wanted.
if TYPE_CHECKING:
    from kserve.protocol.rest.openai.openai_proxy_model import OpenAIProxyModel

# Of the environment, as command lines are there for all to see.
API_KEY_VARIABLE: Final = "UPSTREAM_API_KEY"

_HEALTH_PATH: Final = "/health"


def add_arguments(parser: argparse.ArgumentParser, *, is_required: bool) -> None:
    """Add the flags.

    Args:
        parser: The parser.
        is_required: Whether there is nothing else to serve.
    """
    add = parser.add_argument
    add(
        "--upstream_url",
        type=_url,
        required=is_required,
        metavar="URL",
        help="a server of OpenAI's API, http://HOST:PORT, to pass requests on to",
    )
    add(
        "--upstream_model",
        type=non_empty,
        help="what it calls the model (the same name, or that of its only model)",
    )
    add(
        "--upstream_health_path",
        type=_path,
        default=_HEALTH_PATH,
        help="what it is asked for its health, none to ask nothing (%(default)s)",
    )


def make_proxy(name: str, args: argparse.Namespace) -> "OpenAIProxyModel":
    """Make the proxy that a parsed command line describes.

    Args:
        name: The name under which it is served.
        args: With the flags of `add_arguments` and of every server.
    """
    from kserve.protocol.rest.openai.openai_proxy_model import OpenAIProxyModel

    return OpenAIProxyModel(
        name,
        args.upstream_url,
        health_endpoint=args.upstream_health_path,
        upstream_model=args.upstream_model,
        api_key=os.environ.get(API_KEY_VARIABLE, "").strip() or None,
        idle_timeout_s=args.request_timeout_s or None,
    )


class ProxyServer:
    """What `kserve.main.run` serves a proxy with."""

    artifact_suffixes: tuple[str, ...] = ()
    preferred_artifact = ""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        add_arguments(parser, is_required=True)

    @classmethod
    def remote_model(cls, name: str, args: argparse.Namespace) -> "OpenAIProxyModel":
        """Make the proxy."""
        return make_proxy(name, args)

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> "OpenAIProxyModel":
        """Make the proxy; there is no directory."""
        return make_proxy(name, args)


def _url(text: str) -> str:
    from kserve.protocol.rest.openai.upstream.server import Addresses

    try:
        Addresses.of(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def _path(text: str) -> str | None:
    if text == "none":
        return None
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"expected a path such as /health, or none, got {text!r}")
    return text
