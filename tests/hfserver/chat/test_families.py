"""Families of models, and templates of their own."""

from pathlib import Path

import orjson
import pytest

from hfserver.chat.families import find_family, generic_family, own_family, read_family
from kserve.errors import ModelLoadError

TEMPLATE = {"start_anchor": "A:", "fields": {"content": {"content": "text"}}}


def test_a_template_that_names_no_tags_is_generic() -> None:
    assert find_family("{{ messages }}").name == generic_family().name == "hermes"


def test_ids_have_the_length_that_mistrals_templates_ask_for() -> None:
    assert find_family("[TOOL_CALLS]").id_length == 9
    assert find_family("").id_length is None


def test_reads_a_response_template_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "template.json"
    path.write_bytes(orjson.dumps(TEMPLATE))

    assert read_family(str(path)).template == TEMPLATE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "--response_template .*template.json: "),
        (b"[]", "expected a JSON object"),
        (b"{}", "expected a response template: "),
        (b'{"start_anchor": "A", "fields": {"content": {"open_pattern": "("}}}', "invalid"),
    ],
)
def test_refuses_a_file_that_is_no_response_template(
    text: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "template.json"
    path.write_bytes(text)

    with pytest.raises(ModelLoadError, match=message):
        read_family(str(path))


def test_says_that_a_file_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No such file"):
        read_family(str(tmp_path / "none.json"))


def test_says_where_a_bad_template_is_from() -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer_config.json: expected a response templ"):
        own_family({"fields": 1}, "tokenizer_config.json")
