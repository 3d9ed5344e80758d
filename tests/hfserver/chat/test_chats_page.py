"""The tables of docs/chats.md are those of the code."""

import re
from pathlib import Path

from hfserver.chat.families import family_names
from hfserver.chat.grammar import MAX_GRAMMAR_CHARS
from hfserver.chat.messages import MAX_MESSAGES, MAX_TOOLS
from hfserver.generation.interface import MAX_N
from hfserver.generation.params import MAX_BIASES, MAX_STOPS

PAGE = (Path(__file__).parents[3] / "docs" / "chats.md").read_text(encoding="utf-8")


def rows(head: str) -> list[list[str]]:
    """Give the cells of the table with a head."""
    table = PAGE.split(head)[1].split("\n\n")[0].splitlines()[2:]
    return [re.split(r"(?<!\\)\|", line.strip("|")) for line in table]


def test_has_all_families_in_their_order() -> None:
    names = [row[0].strip(" `") for row in rows("| family | told by | a call |")]

    assert names == family_names()


def test_has_the_limits() -> None:
    numbers = [int(re.sub(r"\D", "", row[1])) for row in rows("| what | at most |")]

    limits = [MAX_MESSAGES, MAX_TOOLS, MAX_GRAMMAR_CHARS, MAX_STOPS, MAX_BIASES, MAX_N]
    assert numbers == limits
