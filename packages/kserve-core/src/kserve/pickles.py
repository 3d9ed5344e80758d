"""Whether an artifact that is a pickle may be loaded: it can run any code."""

import argparse
from typing import Final

from kserve.config import is_set

ALLOW_PICKLE_VARIABLE: Final = "KSERVE_ALLOW_PICKLE"

# What a refusal ends with.
TRUST_ADVICE: Final = (
    f"start with --allow_pickle or {ALLOW_PICKLE_VARIABLE}=true if you trust the source"
)


def add_allow_pickle(parser: argparse.ArgumentParser) -> None:
    """Add `--allow_pickle`."""
    parser.add_argument(
        "--allow_pickle",
        action="store_true",
        help="load any pickle, which can run any code: only for artifacts of a trusted source",
    )


def is_pickle_allowed(allowed: bool | None) -> bool:
    """Say whether pickles are trusted; None leaves it to the environment."""
    return is_set(ALLOW_PICKLE_VARIABLE) if allowed is None else allowed
