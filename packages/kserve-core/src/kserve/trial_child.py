"""The other side of `trial_load`: `python -I -S trial_child.py SCRIPT LIBRARY ARTIFACT`.

It may find nothing but the standard library. Exit code 0, or 1 after it has written why not.
"""

import ctypes
import os
import runpy
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def main(script: str, library: str, artifact: str) -> None:
    """Call the script's `load`, and end the process."""
    # What libraries print is not what is to be known.
    report, silence = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    _be_expendable()
    try:
        runpy.run_path(script)["load"](library, artifact)
    except Exception as exc:  # the boundary: whatever it is, the other side reports it
        os.write(report, " ".join(f"{exc}".split()).encode())
        os._exit(1)
    # Nothing is worth cleaning up.
    os._exit(0)


def _be_expendable() -> None:
    """Go with the server, and before it where memory runs out; on Linux."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


if __name__ == "__main__":
    main(*sys.argv[1:])
