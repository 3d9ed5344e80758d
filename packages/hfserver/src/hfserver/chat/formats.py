"""What the text of an answer has to be like: `response_format`, and vLLM's `structured_outputs`."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from hfserver.chat.grammar import Grammar, GrammarCompiler, json_value
from kserve.listing import shortened
from kserve.protocol.rest.openai import invalid_request
from kserve.protocol.rest.openai.types import StructuredOutputsParams

_OBJECT: Final = {"type": "object"}


class FormattedRequest(Protocol):
    """What `CompletionRequest` and `ChatCompletionRequest` have in common here."""

    response_format: dict[str, Any] | None
    structured_outputs: StructuredOutputsParams | None
    min_tokens: int
    ignore_eos: bool


def output_grammar(request: FormattedRequest, compiler: GrammarCompiler) -> Grammar | None:
    """Compile what a request wants of the text; None where anything will do.

    Raises:
        OpenAIError: It wants two things, or one that there is not or that cannot be kept.
    """
    found = [
        grammar
        for grammar in (
            _response_format(request.response_format, compiler),
            _structured(request.structured_outputs, compiler),
        )
        if grammar is not None
    ]
    if len(found) > 1:
        raise invalid_request(
            "'structured_outputs': expected none beside 'response_format', got both",
            "structured_outputs",
        )
    if found:
        check_end(request)
    return found[0] if found else None


def response_value(request: FormattedRequest) -> str | None:
    """Give what stands in a rule of Lark for what `response_format` wants, once it is compiled."""
    wanted = request.response_format or {}
    if wanted.get("type") == "json_object":
        return json_value(_OBJECT, "response_format")
    if wanted.get("type") != "json_schema":
        return None
    schema = wanted["json_schema"].get("schema")
    return json_value(_OBJECT if schema is None else schema, "response_format.json_schema.schema")


def check_end(request: FormattedRequest) -> None:
    """Check that nothing keeps a text from ending where its grammar does.

    Raises:
        OpenAIError: Something does.
    """
    for name in ("ignore_eos", "min_tokens"):
        value = getattr(request, name)
        if value:
            raise invalid_request(
                f"'{name}': a text of a given structure ends where that does, got {value}", name
            )


def _response_format(wanted: Mapping[str, Any] | None, compiler: GrammarCompiler) -> Grammar | None:
    kind = None if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return compiler.json_schema(_OBJECT, "response_format")
    if kind != "json_schema":
        raise invalid_request(
            "'response_format.type': expected text, json_object or json_schema, got "
            f"{shortened(repr(kind))}",
            "response_format.type",
        )
    param = "response_format.json_schema"
    named = wanted.get("json_schema")
    if not isinstance(named, Mapping):
        raise invalid_request(
            f"'{param}': expected an object with a 'schema', got {shortened(repr(named))}", param
        )
    # OpenAI's schema may be left out: then it is JSON of any kind.
    schema = named.get("schema")
    return compiler.json_schema(_OBJECT if schema is None else schema, f"{param}.schema")


def _structured(
    wanted: StructuredOutputsParams | None, compiler: GrammarCompiler
) -> Grammar | None:
    if wanted is None:
        return None
    is_compact = wanted.disable_any_whitespace is not False
    makers: dict[str, Callable[[Any, str], Grammar]] = {
        "json": lambda value, param: compiler.json_schema(value, param, is_compact=is_compact),
        "regex": compiler.regex,
        "choice": compiler.choice,
        "grammar": compiler.lark,
        "json_object": lambda _, param: compiler.json_schema(_OBJECT, param, is_compact=is_compact),
    }
    given = [name for name in makers if getattr(wanted, name) not in (None, False)]
    if len(given) != 1:
        raise invalid_request(
            f"'structured_outputs': expected one of {', '.join(makers)}, got "
            f"{', '.join(given) or 'none'}",
            "structured_outputs",
        )
    name = given[0]
    return makers[name](getattr(wanted, name), f"structured_outputs.{name}")
