"""Finds the GGUF file of a directory; needs neither torch nor transformers."""

import re
from pathlib import Path
from typing import Final

from kserve.artifact import list_directory
from kserve.errors import ModelLoadError
from kserve.listing import listing

SUFFIX: Final = ".gguf"

# A file that is one of several parts, as llama.cpp names them.
_PART: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def find_gguf(directory: Path) -> Path | None:
    """Give the GGUF file of a model; None where there are safetensors, or none.

    Raises:
        ModelLoadError: There are several, or it is a part of a model.
    """
    names = list_directory(directory)
    found = [name for name in names if name.lower().endswith(SUFFIX)]
    if not found or any(name.endswith(".safetensors") for name in names):
        return None
    if any(_PART.search(name.lower()) for name in found):
        raise ModelLoadError(
            f"{directory}: expected one GGUF file, found parts of one: {listing(found)}; "
            "join them with llama.cpp's llama-gguf-split --merge"
        )
    if len(found) > 1:
        raise ModelLoadError(f"{directory}: expected one GGUF file, found {listing(found)}")
    return directory / found[0]
