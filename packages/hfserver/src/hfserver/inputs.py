"""The texts of a V1 or V2 request, and what it asks for beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from hfserver.options import FUNCTIONS, STRATEGIES, TRUNCATIONS
from kserve.errors import InvalidInput
from kserve.listing import quoted, shortened
from kserve.protocol.codec import v1_json
from kserve.protocol.codec.arrays import decode_texts
from kserve.protocol.infer_type import InferInput, InferRequest

# One, or two that the model reads together: a query and a document, a premise and a conclusion.
Text = str | tuple[str, str]

# As transformers names the two.
_TEXT: Final = "text"
_TEXT_PAIR: Final = "text_pair"

# Parameters that only mean something for labels and scores: who sends one wants these.
_RICH_PARAMETERS: Final = frozenset(
    {"top_k", "targets", "aggregation_strategy", "function_to_apply"}
)
_TRUE: Final = ("true", "1")
_FALSE: Final = ("false", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a request asks for in its parameters; None is what the server does by itself.

    Attributes:
        rich_results: Labels and scores, or the numbers that KServe's server gives.
        return_probabilities, return_raw_logits: Those of every class.
        return_offsets_mapping: Where each token stands in the text.
        top_k: How many labels or tokens, 1 or more; -1 for all.
        function: How logits become scores: softmax, sigmoid or none.
        strategy: How tokens become entities, one of `STRATEGIES`.
        targets: What may stand in the place of a mask.
        truncation: Which end of a text that is too long is cut, one of `TRUNCATIONS`.
        dimensions: How many of an embedding's, 1 or more.
        normalize: Whether an embedding has length 1.
        prompt_name: The prompt of the model that is put before the texts.
    """

    rich_results: bool | None = None
    return_probabilities: bool | None = None
    return_raw_logits: bool | None = None
    return_offsets_mapping: bool | None = None
    top_k: int | None = None
    function: str | None = None
    strategy: str | None = None
    targets: tuple[str, ...] | None = None
    truncation: str | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    prompt_name: str | None = None

    @classmethod
    def read(cls, parameters: Mapping[str, Any] | None) -> "Wishes":
        """Read the parameters of a request; others than these are none of ours.

        Raises:
            InvalidInput: One has a value that it cannot have.
        """
        if not parameters:
            return _NONE
        rich = _boolean(parameters, "rich_results")
        if rich is None and not _RICH_PARAMETERS.isdisjoint(parameters):
            rich = True
        return cls(
            rich_results=rich,
            return_probabilities=_boolean(parameters, "return_probabilities"),
            return_raw_logits=_boolean(parameters, "return_raw_logits"),
            return_offsets_mapping=_boolean(parameters, "return_offsets_mapping"),
            top_k=_count(parameters, "top_k", may_be_all=True),
            function=_choice(parameters, "function_to_apply", FUNCTIONS),
            strategy=_choice(parameters, "aggregation_strategy", STRATEGIES),
            targets=_texts(parameters, "targets"),
            truncation=_choice(parameters, "truncation", TRUNCATIONS),
            dimensions=_count(parameters, "dimensions"),
            normalize=_boolean(parameters, "normalize"),
            prompt_name=_string(parameters, "prompt_name"),
        )


_NONE: Final = Wishes()


def read_v1(payload: Any) -> tuple[list[Text], Wishes]:
    """Read a V1 payload: `{"instances": [...], "parameters": {...}}`.

    An instance is a text, a list of two texts, or `{"text": ..., "text_pair": ...}`.

    Raises:
        InvalidInput: It is something else.
    """
    rows, parameters = _rows(payload)
    return [_read_row(row, place) for place, row in rows.items()], Wishes.read(parameters)


def read_single_v1(payload: Any) -> tuple[list[str], dict[str, Any]]:
    """Read a V1 payload of texts alone, and its parameters.

    An instance is a text, or `{"text": ...}`.

    Raises:
        InvalidInput: It is something else.
    """
    rows, parameters = _rows(payload)
    texts: list[str] = []
    for place, row in rows.items():
        text = row[_TEXT] if isinstance(row, dict) and row.keys() == {_TEXT} else row
        if not isinstance(text, str):
            raise InvalidInput(
                f'{place}: expected a text, or {{"{_TEXT}": ...}}, got '
                f"{shortened(orjson.dumps(row).decode())}"
            )
        texts.append(text)
    return texts, parameters


def read_single_v2(request: InferRequest) -> list[str]:
    """Read a V2 request of texts alone: one input of BYTES, shape [n].

    Raises:
        InvalidInput: It is something else.
    """
    if len(request.inputs) != 1:
        got = quoted([tensor.name for tensor in request.inputs]) or "none"
        raise InvalidInput(f"expected one input, got {len(request.inputs)}: {got}")
    return _read_column(request.inputs[0])


def read_v2(request: InferRequest) -> tuple[list[Text], Wishes]:
    """Read a V2 request: one input of BYTES, shape [n], or [n, 2] for pairs.

    Pairs may be two inputs, too, named `text` and `text_pair`.

    Raises:
        InvalidInput: It is something else.
    """
    wishes = Wishes.read(request.parameters)
    inputs = {tensor.name: tensor for tensor in request.inputs}
    if len(inputs) == 1:
        return _read_tensor(request.inputs[0]), wishes
    if set(inputs) != {_TEXT, _TEXT_PAIR}:
        got = f"{len(inputs)}: {quoted(inputs)}" if inputs else "none"
        raise InvalidInput(
            f"expected one input, or two named {_TEXT!r} and {_TEXT_PAIR!r}, got {got}"
        )
    first, second = _read_column(inputs[_TEXT]), _read_column(inputs[_TEXT_PAIR])
    if len(first) != len(second):
        raise InvalidInput(
            "the inputs differ in their number of rows: "
            f"{_TEXT!r} {len(first)}, {_TEXT_PAIR!r} {len(second)}"
        )
    return list(zip(first, second, strict=True)), wishes


def _rows(payload: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the rows of a V1 payload by what errors call them, and its parameters."""
    if isinstance(payload, bytes):
        # Of a type that says no JSON, which it is all the same.
        payload = v1_json.decode(payload)
    if not isinstance(payload, dict) or not ("instances" in payload or "inputs" in payload):
        raise InvalidInput('Expected "instances" or "inputs" in a JSON object')
    key = "inputs" if "inputs" in payload else "instances"
    rows = payload[key]
    if not isinstance(rows, list):
        raise InvalidInput(f'Expected "{key}" to be a list')
    parameters = payload.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise InvalidInput("the request: expected 'parameters' to be an object")
    return {f"{key}[{index}]": row for index, row in enumerate(rows)}, parameters


def _read_row(row: Any, place: str) -> Text:
    if isinstance(row, str):
        return row
    if isinstance(row, dict) and _TEXT in row and row.keys() <= {_TEXT, _TEXT_PAIR}:
        row = [row[_TEXT]] if row.get(_TEXT_PAIR) is None else [row[_TEXT], row[_TEXT_PAIR]]
    if isinstance(row, list) and all(isinstance(text, str) for text in row):
        if len(row) == 1:
            return str(row[0])
        if len(row) == 2:
            return row[0], row[1]
    raise InvalidInput(
        f'{place}: expected a text, a list of two texts, or {{"{_TEXT}": ..., "{_TEXT_PAIR}": '
        f"...}}, got {shortened(orjson.dumps(row).decode())}"
    )


def _read_column(tensor: InferInput) -> list[str]:
    texts = _read_tensor(tensor)
    if any(isinstance(text, tuple) for text in texts):
        raise InvalidInput(
            f"input {tensor.name!r}: expected shape [-1], got {list(tensor.as_numpy().shape)}"
        )
    return [str(text) for text in texts]


def _read_tensor(tensor: InferInput) -> list[Text]:
    if tensor.datatype != "BYTES":
        raise InvalidInput(f"input {tensor.name!r}: expected datatype BYTES, got {tensor.datatype}")
    array = tensor.as_numpy()
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,), (2,)):
        raise InvalidInput(
            f"input {tensor.name!r}: expected shape [-1], or [-1, 2] for pairs, "
            f"got {list(array.shape)}"
        )
    try:
        texts = decode_texts(array)
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"input {tensor.name!r}: expected texts in UTF-8: {exc}") from exc
    if array.shape[1:] == (2,):
        return list(zip(texts[::2], texts[1::2], strict=True))
    return list(texts)


def _boolean(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    # Some clients send every parameter as a text.
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise _unexpected(name, "true or false", value)
    return text in _TRUE


def _count(parameters: Mapping[str, Any], name: str, *, may_be_all: bool = False) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    try:
        count = None if isinstance(value, bool) else int(str(value))
    except ValueError:
        count = None
    if count is not None and (count >= 1 or (may_be_all and count == -1)):
        return count
    raise _unexpected(
        name, f"an integer, 1 or more{', or -1 for all' if may_be_all else ''}", value
    )


def _choice(parameters: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    value = parameters.get(name)
    if value is not None and value not in choices:
        raise _unexpected(name, f"one of {quoted(choices)}", value)
    return value


def _string(parameters: Mapping[str, Any], name: str) -> str | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, str):
        raise _unexpected(name, "a text", value)
    return value


def _texts(parameters: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """Read a list of texts, or one; the parameters of V2 are no lists, so it may be one as JSON."""
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        value = _from_json(value)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _unexpected(name, "a list of texts", value)
    return tuple(value)


def _from_json(text: str) -> Any:
    if not text.startswith("["):
        return [text]
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return [text]


def _unexpected(name: str, expected: str, value: Any) -> InvalidInput:
    return InvalidInput(f"parameter {name!r}: expected {expected}, got {shortened(repr(value))}")
