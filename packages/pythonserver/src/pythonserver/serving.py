"""Serving a `model.py` that is run as a script."""

import os
import sys
from collections.abc import Sequence

from kserve.main import run


def serve(file: str, argv: Sequence[str] | None = None) -> None:
    """Serve the directory of a `model.py` until a signal ends the process.

    For its last lines: `if __name__ == "__main__": pythonserver.serve(__file__)`.

    Args:
        file: The path of the file.
        argv: The flags of the server; those of the command line if None.
    """
    flags = sys.argv[1:] if argv is None else argv
    directory = os.path.dirname(os.path.abspath(file))
    run("pythonserver.model:PythonModel", ["--model_dir", directory, *flags])
