"""How a session is opened, as the command line says it; needs no ONNX Runtime."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from kserve.config import positive

CPU: Final = "CPUExecutionProvider"

# To the runtime's names.
LEVELS: Final = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session is opened.

    Attributes:
        providers: Execution providers in the order of preference, with or without the
            "ExecutionProvider" of their names.
        intra_op_threads: Threads of one operator, 1 or more; None for as many as there are CPUs.
        inter_op_threads: Operators of one call that may run at the same time, 1 or more.
        optimization_level: `disable`, `basic`, `extended` or `all`.
        config: Further entries of the session's configuration.
        outputs: The outputs to compute; none means all.
        optimized_model_path: Where the optimised graph is written: a file, or a directory for files
            named as the models.
    """

    providers: Sequence[str] = (CPU,)
    intra_op_threads: int | None = None
    inter_op_threads: int = 1
    optimization_level: str = "all"
    config: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    outputs: Sequence[str] = ()
    optimized_model_path: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    add = parser.add_argument
    add(
        "--providers",
        nargs="+",
        default=[CPU],
        metavar="PROVIDER",
        help="execution providers, the preferred one first, such as CUDA CPU (CPU)",
    )
    add(
        "--intra_op_threads",
        type=positive,
        help="threads of one operator (as many as there are CPUs)",
    )
    add(
        "--inter_op_threads",
        type=positive,
        default=1,
        help="operators of one call that may run at the same time (%(default)s)",
    )
    add(
        "--optimization_level",
        choices=LEVELS,
        default="all",
        help="how far the graph is optimised when it is loaded (%(default)s)",
    )
    add(
        "--session_config",
        type=config_entry,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an entry of the session's configuration, such as session.set_denormal_as_zero=1;"
        " may be given several times",
    )
    add(
        "--outputs",
        nargs="+",
        default=(),
        metavar="NAME",
        help="the outputs of the graph that are served; what others need is not computed (all)",
    )
    add(
        "--optimized_model_path",
        metavar="PATH",
        help="file that the optimised graph is written to, or directory for one of each model",
    )


def from_args(args: argparse.Namespace) -> SessionSettings:
    """Give the settings of a parsed command line."""
    return SessionSettings(
        providers=args.providers,
        intra_op_threads=args.intra_op_threads,
        inter_op_threads=args.inter_op_threads,
        optimization_level=args.optimization_level,
        config=dict(args.session_config),
        outputs=args.outputs,
        optimized_model_path=args.optimized_model_path,
    )


def config_entry(text: str) -> tuple[str, str]:
    """Read KEY=VALUE of the command line.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    key, separator, value = text.partition("=")
    if not separator or "." not in key:
        raise argparse.ArgumentTypeError(
            f"expected KEY=VALUE, such as session.intra_op.allow_spinning=1, got {text!r}"
        )
    return key, value
