"""What the types of the OpenAI API have in common: how they become JSON, and are made of it."""

from typing import Any, Final, Self

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray


def write_array(array: Any) -> Any:
    """Give what msgspec writes for an array or a scalar of numpy.

    A float32 is written with as many digits as tell it from its neighbours, so whoever reads it as
    a float32 gets the same bits; nothing is done for each element in Python.

    Raises:
        NotImplementedError: It is something else, which JSON cannot carry.
    """
    if not isinstance(array, np.ndarray | np.generic):
        raise NotImplementedError(f"a {type(array).__name__} cannot be written as JSON")
    return msgspec.Raw(orjson.dumps(_contiguous(array), option=orjson.OPT_SERIALIZE_NUMPY))


def _contiguous(array: NDArray[Any] | np.generic) -> Any:
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return array


_encoder: Final = msgspec.json.Encoder(enc_hook=write_array)


class OpenAIStruct(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A type of the API: fields by keyword; those that are left out are not written.

    Code written for KServe's SDK calls the methods that pydantic's models have.
    """

    def model_dump_json(self, *, exclude_none: bool = True, exclude_unset: bool = True) -> str:
        """Give it as JSON.

        Args:
            exclude_none: For code that says it; what is None and need not be there never is.
            exclude_unset: As `exclude_none`.
        """
        return _encoder.encode(self).decode()

    def model_dump(
        self, *, exclude_none: bool = True, exclude_unset: bool = True
    ) -> dict[str, Any]:
        """Give it as a dict, as its JSON reads; the arguments are those of `model_dump_json`."""
        document: dict[str, Any] = orjson.loads(_encoder.encode(self))
        return document

    @classmethod
    def model_validate(cls, document: Any) -> Self:
        """Make one of a dict.

        Raises:
            msgspec.ValidationError: A field is missing, or of another type.
        """
        return msgspec.convert(document, cls)

    @classmethod
    def model_validate_json(cls, text: str | bytes) -> Self:
        """Make one of JSON.

        Raises:
            msgspec.DecodeError: It is no JSON, or a field is missing, or of another type.
        """
        return msgspec.json.decode(text, type=cls)


def constant(value: Any) -> Any:
    """Give the default of a field that is always written, also where it has the default."""
    return msgspec.field(default_factory=lambda: value)


def empty_list() -> Any:
    """Give the default of a list that is always written, also where it is empty."""
    return msgspec.field(default_factory=_make_list)


def _make_list() -> list[Any]:
    # msgspec leaves out what is empty where the factory is `list` itself.
    return []
