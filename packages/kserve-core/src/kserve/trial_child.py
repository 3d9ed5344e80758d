"""The other side of `trial_load`: `python -I -S trial_child.py SCRIPT LIBRARY ARTIFACT`.

It may find nothing but the standard library. Exit code 0, or 1 after it has written why not.
"""

import ctypes
import os
import resource
import runpy
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1

# A damaged length makes a library ask for memory until none is left. Models take a few times the
# size of their file.
_MAX_DATA_BYTES = 1 << 30
_MAX_DATA_BYTES_PER_BYTE = 100


def main(script: str, library: str, artifact: str) -> None:
    """Call the script's `load`, and end the process."""
    # What libraries print is not what is to be known.
    report, silence = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    _be_expendable()
    if sys.flags.no_site:
        # Only then what else takes memory is known.
        _limit_memory(os.path.getsize(artifact))
    try:
        runpy.run_path(script)["load"](library, artifact)
    except Exception as exc:  # the boundary: whatever it is, the other side reports it
        text = " ".join(str(exc).split()) or type(exc).__name__
        os.write(report, text.encode())
        os._exit(1)
    # Nothing is worth cleaning up.
    os._exit(0)


def _limit_memory(artifact_bytes: int) -> None:
    limit = _MAX_DATA_BYTES + _MAX_DATA_BYTES_PER_BYTE * artifact_bytes
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or limit < most:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _be_expendable() -> None:
    """Go with the server, and before it where memory runs out; on Linux."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


if __name__ == "__main__":
    main(*sys.argv[1:])
