"""How many files and connections this process may have open."""

import resource

from kserve.logging import logger


def raise_descriptor_limit() -> None:
    """Raise the limit on open descriptors as far as the process may: from the soft to the hard one.

    A connection is a descriptor, and the soft limit is 1,024 where nobody has raised it, for the
    sake of programs that call `select`. Beyond it, a client that connects hangs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as exc:  # macOS refuses what is more than its own limit
        logger.warning("The limit of %d open descriptors cannot be raised: %s", soft, exc)
    else:
        logger.info("Limit of open descriptors raised from %d to %d", soft, hard)
