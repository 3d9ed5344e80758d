"""The JSON value of a request body, or the one reason why there is none."""

from typing import Any

import orjson

from kserve.errors import InvalidInput


def parse(body: bytes | memoryview) -> Any:
    """Parse a whole body.

    Raises:
        InvalidInput: The body is not one JSON value in UTF-8, or is nested deeper than orjson's
            1,024 levels.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"Unrecognized request format: {_reason(body, error)}") from error


def read_parameters(value: dict[str, Any], owner: str) -> dict[str, Any] | None:
    """Give the member `parameters` of an object of a request; None where it is missing or null.

    Args:
        value: The object.
        owner: What errors call the object, such as `input 'x'`.

    Raises:
        InvalidInput: It is no object, or a value in it is no string, number or boolean.
    """
    parameters = value.get("parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise InvalidInput(f"{owner}: expected 'parameters' to be an object")
    # "string, number, boolean": the spec's $parameter
    for name, parameter in parameters.items():
        if not isinstance(parameter, str | int | float):
            raise InvalidInput(
                f"{owner}: expected parameter {name!r} to be a string, a number or a boolean"
            )
    return parameters


def _reason(body: bytes | memoryview, error: orjson.JSONDecodeError) -> str:
    try:
        bytes(body).decode()
    except UnicodeDecodeError as undecodable:
        # orjson says "surrogates not allowed" and no position.
        return f"invalid UTF-8 at byte {undecodable.start}"
    token = str(error.doc)[error.pos : error.pos + 3]
    if token in ("NaN", "nan", "Inf", "inf"):
        return f"{error}; JSON has no NaN and no infinity, send null for a missing number"
    return str(error)
