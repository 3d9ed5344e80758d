"""A model that answers word by word: each is sent as soon as it is known."""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import kserve
from kserve.errors import InvalidInput


class Babbler(kserve.Model):
    """Goes on with a text as the book beside it would, one word after the other."""

    def load(self) -> bool:
        """Count which words follow which."""
        words = re.findall(r"[\w']+|[.,;]", Path("book.txt").read_text())
        self.followers = defaultdict(list)
        for word, follower in pairwise(words):
            self.followers[word.lower()].append(follower)
        return True

    def predict(self, payload: dict[str, Any]) -> Iterator[str]:
        """Give up to `max_words` words, 20 if the request says none; `seed` makes them repeatable.

        Raises:
            InvalidInput: The request has no `prompt`.
        """
        prompt = payload.get("prompt")
        if not isinstance(prompt, str) or not prompt.split():
            raise InvalidInput(f'expected a "prompt" of at least one word, got {prompt!r}')
        # The answer begins only after this: what was raised so far has a status of its own.
        return self.words(prompt, payload.get("max_words", 20), payload.get("seed"))

    def words(self, prompt: str, n_words: int, seed: int | None) -> Iterator[str]:
        """Walk from word to word."""
        choose = random.Random(seed).choice
        word = prompt.split()[-1]
        for _ in range(n_words):
            followers = self.followers.get(word.lower())
            if not followers:
                return
            word = choose(followers)
            yield word if word in ".,;" else f" {word}"
