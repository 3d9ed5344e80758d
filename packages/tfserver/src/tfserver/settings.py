"""How a model is loaded, as the command line says it; needs no TensorFlow."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kserve.config import positive

# The file that makes a directory a SavedModel.
SAVED_MODEL: Final = "saved_model.pb"

# What TensorFlow's own exporters call the signature that is meant.
DEFAULT_SIGNATURE: Final = "serving_default"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is loaded.

    Attributes:
        signature_name: The signature of requests that name none.
        inputs: Of a frozen graph, the tensors that are fed; none means those that are found.
        outputs: Of a frozen graph, the tensors that are served; none means the one that is found.
        intra_op_threads: Threads of one operation, 1 or more; None for as many as there are CPUs.
        inter_op_threads: Operations that may run at the same time, 1 or more; None as above.
        allow_lambda: Load Keras layers that are Python code, which can be any.
    """

    signature_name: str = DEFAULT_SIGNATURE
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    intra_op_threads: int | None = None
    inter_op_threads: int | None = None
    allow_lambda: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    add = parser.add_argument
    add(
        "--signature_name",
        default=DEFAULT_SIGNATURE,
        metavar="NAME",
        help="the signature of requests that name none (%(default)s)",
    )
    add(
        "--inputs",
        nargs="+",
        default=(),
        metavar="NAME",
        help="of a frozen graph, the nodes or tensors that are fed (its placeholders)",
    )
    add(
        "--outputs",
        nargs="+",
        default=(),
        metavar="NAME",
        help="of a frozen graph, the nodes or tensors that are served (the one at its end)",
    )
    add(
        "--intra_op_threads",
        type=positive,
        help="threads of one operation (as many as there are CPUs)",
    )
    add(
        "--inter_op_threads",
        type=positive,
        help="operations that may run at the same time (as many as there are CPUs)",
    )
    add(
        "--allow_lambda",
        action="store_true",
        help="load Keras layers that are Python code (Lambda), which can run any code: only for"
        " artifacts of a trusted source",
    )


def from_args(args: argparse.Namespace) -> Settings:
    """Give the settings of a parsed command line."""
    return Settings(
        signature_name=args.signature_name,
        inputs=args.inputs,
        outputs=args.outputs,
        intra_op_threads=args.intra_op_threads,
        inter_op_threads=args.inter_op_threads,
        allow_lambda=args.allow_lambda,
    )
