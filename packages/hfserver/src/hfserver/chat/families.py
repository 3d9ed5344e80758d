"""How families of models write calls and thoughts: a table, and what a checkpoint says itself.

What is in the table for a family are the fields of a response template as transformers has it, so
that a checkpoint's own, or that of a file, takes its place.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from transformers.utils.chat_parsing.response_templates import load_response_template

from kserve.errors import ModelLoadError

_TABLE: Final = Path(__file__).with_name("families.json")

# The last one: for templates that know no tools it is what their prompt says.
_GENERIC: Final = "hermes"

TOOL_FIELD: Final = "tool_calls"
CONTENT_FIELD: Final = "content"
# What response templates call thoughts.
REASONING_FIELDS: Final = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a call is written as JSON, for grammars.

    Attributes:
        begin: What is before it, or before the first of a list.
        end: What is after it, or after the last of a list.
        between: What is between two.
        is_list: Whether `begin` and `end` are written once for all calls.
        name: The key of the function's name.
        arguments: The key of its arguments.
    """

    begin: str
    end: str
    between: str
    is_list: bool
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a model writes calls and thoughts.

    Attributes:
        name: Its name.
        template: transformers' response template.
        ignored: Tokens that are no part of any text.
        call: How a grammar has calls written; None for as the generic family does.
        id_length: How long the ids of calls are, where the chat template asks for that.
    """

    name: str
    template: Mapping[str, Any]
    ignored: Collection[str] = field(default=())
    call: CallFormat | None = None
    id_length: int | None = None

    @property
    def reasoning(self) -> Mapping[str, Any] | None:
        """The field of the thoughts, None where the model has none."""
        fields: Mapping[str, Any] = self.template["fields"]
        return next((fields[name] for name in REASONING_FIELDS if name in fields), None)

    def fields(self, *, tools: bool) -> dict[str, Any] | None:
        """Give the response template with or without calls; None where there is nothing to find."""
        fields = {
            name: each
            for name, each in self.template["fields"].items()
            if tools or name != TOOL_FIELD
        }
        if not fields.keys() - {CONTENT_FIELD}:
            return None
        return {**self.template, "fields": fields}


def find_family(chat_template: str, added_tokens: Collection[str] = ()) -> Family:
    """Give the family that a chat template is of: the first whose markers are all in it.

    Args:
        chat_template: Its text.
        added_tokens: Those of the tokenizer: thoughts have tokens where a model has any.
    """
    table = _read_table()
    row = next(
        each
        for each in table["families"]
        if all(marker in chat_template for marker in each["markers"])
    )
    return _family(row, chat_template, added_tokens)


def generic_family(chat_template: str = "", added_tokens: Collection[str] = ()) -> Family:
    """Give the family of models that have none."""
    row = next(each for each in _read_table()["families"] if each["name"] == _GENERIC)
    return _family(row, chat_template, added_tokens)


def family_names() -> list[str]:
    """Give the names of the table."""
    return [each["name"] for each in _read_table()["families"]]


def own_family(template: Mapping[str, Any], source: str) -> Family:
    """Give the family that a response template describes.

    Args:
        template: As transformers has it.
        source: Where it is from, for the error.

    Raises:
        ModelLoadError: It is not one.
    """
    try:
        load_response_template(dict(template))
    except (ValueError, TypeError, AttributeError) as exc:
        raise ModelLoadError(f"{source}: expected a response template: {exc}") from exc
    return Family(name="own", template=template)


def read_family(path: str) -> Family:
    """Read the response template of a file, `--response_template`.

    Raises:
        ModelLoadError: It cannot be read, or is none.
    """
    try:
        template = orjson.loads(Path(path).read_bytes())
    except (OSError, orjson.JSONDecodeError) as exc:
        raise ModelLoadError(f"--response_template {path}: {exc}") from exc
    if not isinstance(template, dict):
        raise ModelLoadError(f"--response_template {path}: expected a JSON object")
    return own_family(template, f"--response_template {path}")


@functools.cache
def _read_table() -> dict[str, Any]:
    table: dict[str, Any] = orjson.loads(_TABLE.read_bytes())
    return table


def _family(row: Mapping[str, Any], chat_template: str, added_tokens: Collection[str]) -> Family:
    table = _read_table()
    fields = {"reasoning_content": table["reasoning"], **row["fields"]}
    opening = fields["reasoning_content"].get("open")
    if opening is not None and opening not in chat_template and opening not in added_tokens:
        del fields["reasoning_content"]
    fields.setdefault(CONTENT_FIELD, {"content": "text"})
    call = row.get("call")
    return Family(
        name=row["name"],
        template={"start_anchor_pattern": table["start_anchor_pattern"], "fields": fields},
        ignored=row.get("ignored", ()),
        call=None if call is None else CallFormat(**call),
        id_length=row.get("id_length"),
    )
