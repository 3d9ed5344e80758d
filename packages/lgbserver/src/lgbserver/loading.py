"""Load one artifact: LightGBM's text format, whatever it is called."""

import mmap
from pathlib import Path
from typing import Any, Final

import lightgbm

from kserve.errors import ModelLoadError
from kserve.logging import logger
from kserve.trial_load import TrialLoad, find_library

SUFFIXES: Final = (".txt", ".bin", ".bst")

_ADVICE: Final = "the file is damaged, or holds no LightGBM model"

# What else is found under these names, by its first bytes.
_STRANGERS: Final = {
    b"______LightGBM_Binary_File_Token______": (
        "a LightGBM Dataset, the data that models train on: save the model with Booster.save_model"
    ),
    b'{"': "JSON: save the model with Booster.save_model, or serve one of XGBoost with xgbserver",
    b"{": "an XGBoost model: serve it with xgbserver",
    b"binf": "an XGBoost model: serve it with xgbserver",
    b"\x80": "a pickle: save the model with Booster.save_model",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
}
_FIRST_WORD: Final = b"tree"
_HEAD_BYTES: Final = 64

# What has to end, where it begins: trees are in every model, parameters in most.
_BEGINS_AND_ENDS: Final = ((b"tree", b"\nend of trees"), (b"\nparameters:", b"\nend of parameters"))


def load_booster(path: Path) -> Any:
    """Load the model that a file holds, after a trial in another process.

    Args:
        path: The file.

    Returns:
        A `lightgbm.Booster`.

    Raises:
        ModelLoadError: The file is missing, damaged, cut off, or holds something else.
    """
    _check_text(path)
    # LightGBM prints, unless it has a logger.
    lightgbm.register_logger(logger)
    library = find_library("lightgbm", "lib_lightgbm")
    with TrialLoad(Path(__file__).with_name("trial.py"), library, path) as trial:
        trial.check(_ADVICE)
    try:
        return lightgbm.Booster(model_file=str(path))
    except Exception as exc:  # the boundary: the categories behind the model are JSON
        raise ModelLoadError(f"{path}: cannot be loaded ({exc}): {_ADVICE}") from exc


def _check_text(path: Path) -> None:
    """Refuse what is no model, or not a whole one: LightGBM itself would abort, or follow it.

    Raises:
        ModelLoadError: It is something else, empty or cut off.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            if not head:
                raise ModelLoadError(f"{path}: the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                _check_whole(path, head, text)
    except OSError as exc:
        raise ModelLoadError(f"{path}: cannot be read ({exc.strerror})") from exc


def _check_whole(path: Path, head: bytes, text: mmap.mmap) -> None:
    for first_bytes, what in _STRANGERS.items():
        if head.startswith(first_bytes):
            raise ModelLoadError(f"{path}: expected a LightGBM model, found {what}")
    if head.split(maxsplit=1)[:1] != [_FIRST_WORD]:
        raise ModelLoadError(f"{path}: {_ADVICE}")
    for begin, end in _BEGINS_AND_ENDS:
        # From behind: what stands there is short beside the trees.
        if text.rfind(end) < 0 <= text.rfind(begin):
            raise ModelLoadError(f"{path}: the file is cut off: it has no {end.decode().strip()!r}")
