"""Serves models written in Python over KServe's protocols."""

from typing import TYPE_CHECKING

from kserve.exports import lazy_dir, lazy_exports

if TYPE_CHECKING:
    from pythonserver.model import PythonModel, make_model
    from pythonserver.serving import serve

__all__ = ["PythonModel", "make_model", "serve"]

__getattr__ = lazy_exports(
    __name__,
    {"pythonserver.model": ["PythonModel", "make_model"], "pythonserver.serving": ["serve"]},
)

__dir__ = lazy_dir(__name__)
