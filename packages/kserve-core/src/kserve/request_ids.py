"""The ids of requests: the client's where it can be logged, else a new one."""

import random
import re
from typing import Final

# Printable ASCII: the id goes into the log and back to the client.
_FIT: Final = re.compile(r"[!-~]{1,128}")

# Seeded by the system. An id must differ from others and need not be hard to guess, which would
# take four times as long.
_RANDOM: Final = random.Random()

# The version, 4, and the variant of the ids. Source: RFC 9562, 5.4.
_FIXED: Final = (0x4 << 76) | (0x2 << 62)
_FREE: Final = (1 << 128) - 1 ^ (0xF << 76) ^ (0x3 << 62)


def request_id_of(given: str | None) -> str:
    """Give the client's id if it can be logged, or else a new one, a random UUID."""
    if given is not None and _FIT.fullmatch(given):
        return given
    digits = f"{_RANDOM.getrandbits(128) & _FREE | _FIXED:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
