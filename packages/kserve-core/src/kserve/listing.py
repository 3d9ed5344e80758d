"""Names in error texts, few and short enough for one readable line."""

import reprlib
from collections.abc import Collection
from itertools import islice
from typing import Any, Final

_MAX_NAMES: Final = 10

# Kubernetes ends names at 63 and DNS at 253; a longer one is no name that anybody reads.
_MAX_CHARACTERS: Final = 128


def listing(names: Collection[str]) -> str:
    """Give the first ten names, and how many more there are."""
    if not names:
        return "nothing"
    shown = ", ".join(islice(names, _MAX_NAMES))
    n_more = len(names) - _MAX_NAMES
    return f"{shown} and {n_more} more" if n_more > 0 else shown


def quoted(names: Collection[str]) -> str:
    """Give the same with each name in quotes."""
    shown = [repr(name) for name in islice(names, _MAX_NAMES)]
    return listing(shown + [""] * (len(names) - len(shown)))


def shortened(name: str) -> str:
    """Give a name of at most 128 characters, the end of a longer one as dots."""
    if len(name) <= _MAX_CHARACTERS:
        return name
    return f"{name[: _MAX_CHARACTERS - 3]}..."


def brief(value: Any) -> str:
    """Give a value as Python writes it, in at most 128 characters; a large one is not written out.

    A client may send megabytes where a number was expected.
    """
    return shortened(_writer.repr(value))


def _make_writer() -> reprlib.Repr:
    writer = reprlib.Repr()
    writer.maxlevel = 4
    writer.maxlist = writer.maxdict = writer.maxtuple = _MAX_NAMES
    writer.maxstring = writer.maxlong = writer.maxother = _MAX_CHARACTERS
    return writer


_writer: Final = _make_writer()
