"""`python -m kserve DIR`: finds the format of a model, and starts the installed server for it.

`python -m kserve --upstream_url URL` serves no directory, but passes requests on to another server.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from kserve.artifact import list_directory, local_path
from kserve.errors import ModelLoadError, ModelMissingError
from kserve.listing import listing
from kserve.main import exit_with, run
from kserve.servers import InstalledServer, fitting_servers, installed_servers, needs

_USAGE: Final = (
    "python -m kserve DIR [--server SERVER] [flags of the server]\n"
    "       python -m kserve --upstream_url URL [flags]"
)

_UPSTREAM_FLAG: Final = "--upstream_url"
_PROXY: Final = "kserve.protocol.rest.openai.proxy_server:ProxyServer"


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a directory with the server that its content asks for, until a signal ends it.

    Args:
        argv: The command line without the program; the process's own if None.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if _means_proxy(argv):
        run(_PROXY, argv)
        return
    servers = installed_servers()
    directory, wanted, flags = _parse(list(argv), servers)
    try:
        server, reason = _choose(directory, wanted, servers)
    except ModelLoadError as exc:
        exit_with("kserve", str(exc))
    run(server.model, ["--model_dir", directory, *flags], reason)


def _means_proxy(argv: Sequence[str]) -> bool:
    """Say whether a command line has a server to pass requests on to, and nothing to serve."""
    flags = {arg.partition("=")[0] for arg in argv}
    has_model = not argv or not argv[0].startswith("-") or flags & {"--server", "--model_dir"}
    return _UPSTREAM_FLAG in flags and not has_model


def _parse(
    argv: list[str], servers: dict[str, InstalledServer]
) -> tuple[str, str | None, list[str]]:
    """Give the directory, the server that was asked for, and the flags for it."""
    parser = argparse.ArgumentParser(
        usage=_USAGE,
        description="Serves the model, or the models, of a directory with the server for them.",
        epilog=f"Servers, and what they need to see there:{needs(servers.values())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--server", help="the server to start, if several fit")
    parser.add_argument("--model_dir", help="the directory, if it is not the first argument")
    directory = argv.pop(0) if argv and not argv[0].startswith("-") else None
    args, flags = parser.parse_known_args(argv)
    if directory is None:
        directory = args.model_dir
    elif args.model_dir is not None:
        parser.error(f"expected one directory, got {directory} and --model_dir {args.model_dir}")
    if directory is None:
        if {"-h", "--help"} & set(flags):
            parser.print_help()
            sys.exit(0)
        parser.error("the first argument is the directory of the model")
    if args.server is not None and args.server not in servers:
        parser.error(f"--server: {args.server} is not installed, expected {listing(servers)}")
    return directory, args.server, flags


def _choose(
    directory: str, wanted: str | None, servers: dict[str, InstalledServer]
) -> tuple[InstalledServer, str]:
    """Give the server, and why it is that.

    Raises:
        ModelLoadError: None fits, or several do, or the directory cannot be read.
    """
    if wanted is not None:
        return servers[wanted], f"{directory}: served by {wanted}, as --server says"
    if not servers:
        raise ModelLoadError("no model server is installed beside kserve-core")
    path = local_path(directory)
    try:
        found = fitting_servers(path, servers.values())
        names = list_directory(path)
    except ModelMissingError as exc:
        raise ModelLoadError(f"{exc}; {_expected(servers)}") from exc
    if not found:
        raise ModelLoadError(
            f"{path}: no installed server fits, found {listing(names)}; {_expected(servers)}"
        )
    if len(found) > 1:
        options = "".join(
            f"\n  --server {name}: for {file}" for name, file in sorted(found.items())
        )
        raise ModelLoadError(f"{path}: several servers fit, choose one:{options}")
    ((name, file),) = found.items()
    server = servers[name]
    return server, f"{path}: {file} is served by {name} {server.version}"


def _expected(servers: dict[str, InstalledServer]) -> str:
    return f"expected one of{needs(servers.values())}"


if __name__ == "__main__":
    main()
