"""Texts to embed: English of the standard library, cut to lengths of chance."""

import random
import re
from pydoc_data.topics import topics
from typing import Final

# Without what is punctuation alone, of which a tokenizer makes a token a character.
_WORD: Final = re.compile(r"\b[A-Za-z]+\b[.,]?")

# Of such a word it makes so many.
_TOKENS_PER_WORD: Final = 1.36


def mixed_texts(n_texts: int) -> list[str]:
    """Give texts of about 5 to 256 tokens, all lengths alike."""
    return _texts(n_texts, 5, 256)


def short_texts(n_texts: int) -> list[str]:
    """Give texts of about 6 to 20 tokens, as questions and titles are."""
    return _texts(n_texts, 6, 20)


def _texts(n_texts: int, n_least: int, n_most: int) -> list[str]:
    chance = random.Random(0)
    words = _WORD.findall(" ".join(topics[name] for name in sorted(topics)))
    texts = []
    for _ in range(n_texts):
        n_words = max(1, round(chance.uniform(n_least - 2, n_most - 2) / _TOKENS_PER_WORD))
        start = chance.randrange(len(words) - n_words)
        texts.append(" ".join(words[start : start + n_words]))
    return texts
