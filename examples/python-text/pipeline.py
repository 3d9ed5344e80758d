"""A small pipeline in the manner of spaCy: a tokenizer, and a ruler that finds entities."""

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entity:
    """A part of a text, from character `start` up to `end`, and what it is."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Doc:
    """A text and the entities in it, in order."""

    text: str
    ents: list[Entity]

    def redacted(self) -> str:
        """Give the text with each entity replaced by its label."""
        text = self.text
        for entity in reversed(self.ents):
            text = f"{text[: entity.start]}[{entity.label}]{text[entity.end :]}"
        return text


class Pipeline:
    """Finds the longest run of tokens that a pattern names, from left to right.

    Args:
        patterns: Labels by the lower-case tokens of an entity.
    """

    def __init__(self, patterns: dict[tuple[str, ...], str]) -> None:
        self.patterns = patterns
        self.longest = max(map(len, patterns), default=0)

    @classmethod
    def from_disk(cls, path: Path) -> "Pipeline":
        """Read patterns as spaCy's EntityRuler has them, a `label` and a `pattern` on each line."""
        lines = map(json.loads, path.read_text().splitlines())
        return cls(
            {tuple(word for word, _, _ in tokens(line["pattern"])): line["label"] for line in lines}
        )

    def __call__(self, text: str) -> Doc:
        """Find the entities of a text."""
        found, entities, position = list(tokens(text)), [], 0
        while position < len(found):
            for length in range(min(self.longest, len(found) - position), 0, -1):
                run = found[position : position + length]
                label = self.patterns.get(tuple(word for word, _, _ in run))
                if label:
                    entities.append(Entity(run[0][1], run[-1][2], label))
                    position += length
                    break
            else:
                position += 1
        return Doc(text, entities)


def tokens(text: str) -> list[tuple[str, int, int]]:
    """Give the words of a text in lower case, with where they begin and end."""
    return [(match[0].lower(), match.start(), match.end()) for match in re.finditer(r"\w+", text)]
