"""Requests out of the bodies of the OpenAI routes; what is wrong is said with the field's name."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec

from kserve.errors import InvalidInput
from kserve.listing import brief, listing
from kserve.protocol.codec.json_body import parse
from kserve.protocol.rest.openai import fields
from kserve.protocol.rest.openai.errors import OpenAIError, invalid_request
from kserve.protocol.rest.openai.types import (
    ChatCompletionRequest,
    ClassificationRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    OpenAIRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
    TokenizeRequest,
)

TYPES: Final[Mapping[str, type[OpenAIRequest]]] = {
    "completions": CompletionRequest,
    "chat/completions": ChatCompletionRequest,
    "embeddings": EmbeddingRequest,
    "rerank": RerankRequest,
    "score": ScoreRequest,
    "classify": ClassificationRequest,
    "pooling": PoolingRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}

_MISSING: Final = "missing_required_parameter"
_INVALID_TYPE: Final = "invalid_type"
_INVALID_VALUE: Final = "invalid_value"

_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")

# A message of msgspec's, and where in the document it applies.
_PROBLEM: Final = re.compile(r"(?P<reason>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING_FIELD: Final = re.compile(r"Object missing required field `(?P<name>.*)`")
# What msgspec calls types, and what JSON does.
_KINDS: Final = (
    *((" | null", ""), ("`", ""), (" | ", " or ")),
    *(("str", "a string"), ("float", "a number"), ("int", "an integer"), ("bool", "a boolean")),
    *(("array", "an array"), ("object", "an object")),
)

_STEP: Final = re.compile(r"\.?(?P<key>[^.\[\]]+)|\[(?P<index>\d+)\]")


def read_document(body: bytes) -> dict[str, Any]:
    """Read a body; what is null is left out, as if it had not been sent.

    Raises:
        OpenAIError: It is no JSON object.
    """
    try:
        document = parse(body)
    except InvalidInput as exc:
        raise invalid_request(str(exc), code="invalid_json") from exc
    if not isinstance(document, dict):
        raise invalid_request(
            f"expected the body to be a JSON object, got {_kind(document)}", code=_INVALID_TYPE
        )
    return {name: value for name, value in document.items() if value is not None}


def read_model(document: Mapping[str, Any], default: str | None) -> str:
    """Give the name of the model that a request is for.

    Args:
        document: The request.
        default: The model where the client names none; None if there is no such model.

    Raises:
        OpenAIError: There is no name.
    """
    model = document.get("model", default)
    if model is None:
        raise _missing("model")
    if not isinstance(model, str):
        raise _wrong("model", "a string", model)
    return model


def read_request(
    api: str, document: Mapping[str, Any], model: str, request_id: str
) -> OpenAIRequest:
    """Make the request of a document.

    Args:
        api: What is asked for.
        document: As `read_document` gives it.
        model: The model's name.
        request_id: The id of the HTTP request, unless the document has one.

    Raises:
        OpenAIError: A field is missing, has the wrong type or a wrong value, or is refused.
    """
    fields.check(api, document)
    request = make_request(api, document, model, request_id)
    _CHECKS[api](request)
    return request


def make_request(
    api: str, document: Mapping[str, Any], model: str, request_id: str
) -> OpenAIRequest:
    """Make the request of a document whose fields have their types; as `read_request`.

    Raises:
        OpenAIError: A field is missing, or has the wrong type.
    """
    named = {"request_id": request_id, **document, "model": model}
    try:
        return msgspec.convert(named, TYPES[api])
    except msgspec.ValidationError as exc:
        raise _refusal(api, str(exc), document) from exc


def _refusal(api: str, message: str, document: Mapping[str, Any]) -> OpenAIError:
    match = _PROBLEM.fullmatch(message)
    assert match is not None
    path, reason = match["path"] or "", match["reason"]
    missing = _MISSING_FIELD.fullmatch(reason)
    if missing is not None:
        return _missing(f"{path}.{missing['name']}" if path else missing["name"])
    value = _at(document, path)
    if reason.startswith("Invalid enum value"):
        return _wrong(path, f"one of {listing(_choices(api, path))}", value, _INVALID_VALUE)
    expected, is_type, _ = reason.removeprefix("Expected ").partition(", got ")
    for word, kind in _KINDS:
        expected = expected.replace(word, kind)
    return _wrong(path, expected, value, _INVALID_TYPE if is_type else _INVALID_VALUE)


def _choices(api: str, name: str) -> list[str]:
    """Give the words that a field may have."""
    hint = get_type_hints(TYPES[api])[name]
    literals = [hint, *get_args(hint)]
    return [word for each in literals if get_origin(each) is Literal for word in get_args(each)]


def _at(document: Any, path: str) -> Any:
    """Give the value at a path such as `messages[0].role`; of a key of any name its object."""
    value = document
    for step in _STEP.finditer(path):
        value = value[int(step["index"]) if step["index"] else step["key"]]
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")


def _missing(param: str) -> OpenAIError:
    return invalid_request(f"missing required parameter '{param}'", param, _MISSING)


def _wrong(param: str, expected: str, value: Any, code: str = _INVALID_TYPE) -> OpenAIError:
    return invalid_request(f"'{param}': expected {expected}, got {brief(value)}", param, code)


_TEXTS: Final = "a text, a list of texts, a list of token ids, or a list of such lists"


def _check_texts(param: str, value: str | list[Any]) -> None:
    """Check that there is one text, or texts, or token ids; nothing is looked at twice."""
    if isinstance(value, str):
        return
    if not value:
        raise _wrong(param, _TEXTS, value, _INVALID_VALUE)
    kinds = set(map(type, value))
    if kinds == {list}:
        for index, ids in enumerate(value):
            _check_ids(f"{param}[{index}]", ids)
    elif kinds == {int}:
        _check_ids(param, value)
    elif kinds != {str}:
        raise _wrong(param, _TEXTS, value)


def _check_ids(param: str, ids: list[Any]) -> None:
    if not ids:
        raise _wrong(param, "at least one token id", ids, _INVALID_VALUE)
    if set(map(type, ids)) != {int}:
        raise _wrong(param, "token ids", ids)
    if min(ids) < 0:
        raise _wrong(param, "token ids from 0", min(ids), _INVALID_VALUE)


def _check_generation(request: Any) -> None:
    if request.stream_options is not None and not request.stream:
        raise invalid_request(
            "'stream_options' is only for a stream: expected 'stream' to be true, got false",
            "stream_options",
            _INVALID_VALUE,
        )
    for key in request.logit_bias or ():
        if not (key.isascii() and key.isdigit()):
            raise _wrong("logit_bias", "token ids as keys", key, _INVALID_VALUE)


def _check_completion(request: Any) -> None:
    _check_generation(request)
    _check_texts("prompt", request.prompt)
    if request.best_of is not None and request.best_of != request.n:
        raise invalid_request(
            f"'best_of': expected {request.n}, as 'n' is, got {request.best_of}",
            "best_of",
            "unsupported_parameter",
        )
    if request.suffix:
        raise invalid_request(
            "'suffix' is not supported: a text is only ever continued",
            "suffix",
            "unsupported_parameter",
        )


def _check_chat(request: Any) -> None:
    _check_generation(request)
    check_messages(request.messages)
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid_request(
            "'top_logprobs' needs 'logprobs': expected it to be true, got false",
            "top_logprobs",
            _INVALID_VALUE,
        )
    _check_prompt_end(request)
    _check_tools(request)


def _check_prompt_end(request: Any) -> None:
    if request.continue_final_message and request.add_generation_prompt:
        raise invalid_request(
            "'continue_final_message' and 'add_generation_prompt' cannot both be true",
            "continue_final_message",
            _INVALID_VALUE,
        )


def _check_tools(request: Any) -> None:
    for index, tool in enumerate(request.tools or ()):
        _check_tool(f"tools[{index}]", tool)
    choice = request.tool_choice
    if choice is None or choice == "none":
        return
    if isinstance(choice, str) and choice not in ("auto", "required"):
        raise _wrong("tool_choice", "none, auto, required or an object", choice, _INVALID_VALUE)
    if not request.tools and choice != "auto":
        raise invalid_request(
            "'tool_choice' needs 'tools': expected at least one, got none",
            "tool_choice",
            _INVALID_VALUE,
        )


def _check_tool(param: str, tool: Mapping[str, Any]) -> None:
    if tool.get("type") != "function":
        raise _wrong(f"{param}.type", "'function'", tool.get("type"), _INVALID_VALUE)
    function = tool.get("function")
    if not isinstance(function, dict):
        raise _wrong(f"{param}.function", "an object", function)
    if not isinstance(function.get("name"), str):
        raise _wrong(f"{param}.function.name", "a string", function.get("name"))
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise _wrong(f"{param}.function.parameters", "an object", parameters)


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Check that each message has a role and a content that a template can read.

    Raises:
        OpenAIError: One has not.
    """
    if not messages:
        raise _wrong("messages", "at least one message", messages, _INVALID_VALUE)
    for index, message in enumerate(messages):
        _check_message(f"messages[{index}]", message)


def _check_message(param: str, message: Mapping[str, Any]) -> None:
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise _missing(f"{param}.role")
    if role not in _ROLES:
        raise _wrong(f"{param}.role", f"one of {listing(_ROLES)}", role, _INVALID_VALUE)
    if content is None:
        if role != "assistant":
            raise _missing(f"{param}.content")
    elif isinstance(content, list):
        for index, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise _wrong(f"{param}.content[{index}]", "an object with a 'type'", part)
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise _wrong(f"{param}.content[{index}].text", "a string", part.get("text"))
    elif not isinstance(content, str):
        raise _wrong(f"{param}.content", "a string or a list of parts", content)


def _check_input(request: Any) -> None:
    _check_texts("input", request.input)


def _check_rerank(request: Any) -> None:
    if not request.documents:
        raise _wrong("documents", "at least one document", [], _INVALID_VALUE)
    for index, document in enumerate(request.documents):
        if isinstance(document, dict) and not isinstance(document.get("text"), str):
            raise _wrong(f"documents[{index}]", "a text, or an object with a 'text'", document)


def _check_score(request: Any) -> None:
    for names in (("text_1", "queries"), ("text_2", "documents")):
        given = [name for name in names if getattr(request, name) is not None]
        if not given:
            raise _missing(names[0])
        if len(given) == 2:
            raise invalid_request(
                f"'{given[0]}' and '{given[1]}' are the same: expected one of them, got both",
                given[1],
                _INVALID_VALUE,
            )
        if not getattr(request, given[0]):
            raise _wrong(given[0], "at least one text", [], _INVALID_VALUE)
    n_first, n_second = map(len, request.sides)
    if n_first not in (1, n_second):
        raise invalid_request(
            f"'text_1': expected one text or as many as 'text_2' has, {n_second}, got {n_first}",
            "text_1",
            _INVALID_VALUE,
        )


def _check_tokenize(request: Any) -> None:
    if (request.prompt is None) == (request.messages is None):
        got = "neither" if request.prompt is None else "both"
        raise invalid_request(
            f"expected either 'prompt' or 'messages', got {got}",
            "prompt",
            _MISSING if got == "neither" else _INVALID_VALUE,
        )
    if request.messages is not None:
        check_messages(request.messages)
        _check_prompt_end(request)


def _check_nothing(request: Any) -> None:
    """Check a request whose type says all."""


_CHECKS: Final[Mapping[str, Callable[[Any], None]]] = {
    "completions": _check_completion,
    "chat/completions": _check_chat,
    "embeddings": _check_input,
    "rerank": _check_rerank,
    "score": _check_score,
    "classify": _check_input,
    "pooling": _check_input,
    "tokenize": _check_tokenize,
    "detokenize": _check_nothing,
}
