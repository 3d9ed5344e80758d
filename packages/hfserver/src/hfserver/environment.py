"""What the libraries read from the environment when they are loaded, so it is set before that.

Nothing here imports torch, numpy or transformers.
"""

import os
from collections.abc import MutableMapping
from typing import Final

from kserve.threads import limit_threads

_DEFAULTS: Final = {
    # Threads of OpenMP that wait for work spin otherwise. Where a neighbour wants the CPU, one
    # batch on two threads took 6.7 s instead of 0.9; so it takes 1.8, and 10 % more on an idle
    # machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Texts are tokenized on threads of our own.
    "TOKENIZERS_PARALLELISM": "false",
    # Transformers would send pickles of the hub to a service that converts them.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # What it reports of a load in tables is refused in words of ours where it matters.
    "TRANSFORMERS_VERBOSITY": "error",
}


def prepare_environment(env: MutableMapping[str, str] | None = None) -> None:
    """Set what torch, tokenizers and transformers read; call it before any of them is loaded.

    The threads of torch are as many as there are CPUs for this container. What is set already
    stays.

    Args:
        env: The environment; that of this process if None.
    """
    env = os.environ if env is None else env
    limit_threads(env)
    for name, value in _DEFAULTS.items():
        env.setdefault(name, value)
