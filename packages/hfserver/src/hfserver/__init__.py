"""Serves Hugging Face models over KServe's and OpenAI's protocols."""

from typing import TYPE_CHECKING

from kserve.exports import lazy_exports

if TYPE_CHECKING:
    from hfserver.model import HuggingfaceEncoderModel
    from hfserver.server import HuggingFaceServer

__all__ = ["HuggingFaceServer", "HuggingfaceEncoderModel"]

__getattr__ = lazy_exports(
    __name__,
    {
        "hfserver.model": ["HuggingfaceEncoderModel"],
        "hfserver.server": ["HuggingFaceServer"],
    },
)
