"""Runs a server as process 1 of its own process namespace, as a container does.

Everything after the first argument is the server's.
"""

import os
import sys

os.execvp(
    "unshare",
    ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, *sys.argv[1:]],
)
