"""pandas, for those who ask for a DataFrame: the core itself does without it."""

from types import ModuleType

from kserve.errors import InvalidInput


def import_pandas() -> ModuleType:
    """Give the module `pandas`.

    Raises:
        InvalidInput: It is not installed; the request's form is what asks for it.
    """
    try:
        import pandas
    except ImportError as exc:
        raise InvalidInput(
            "rows as objects and columns by name need pandas, which this server does not have; "
            "send rows as lists"
        ) from exc
    return pandas  # type: ignore[no-any-return]  # it ships no types
