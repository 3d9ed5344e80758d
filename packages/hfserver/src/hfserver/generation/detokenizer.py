"""Text from tokens as they come: characters only when they are complete, stop strings cut off."""

from collections.abc import Callable, Sequence
from typing import Final

# What a decoder puts for bytes that are no complete character.
_INCOMPLETE: Final = "\ufffd"

# Tokens of the prompt that are decoded with the first new ones, so that a space between them is
# right: decoders drop that of a text's beginning.
_CONTEXT_TOKENS: Final = 6

# No character, and no byte fallback of a tokenizer, takes more tokens than this.
_LONGEST_CHARACTER: Final = 8

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Turns the tokens of one sequence into text.

    Args:
        decode: Decodes tokens as one text.
        context: The tokens before the first one.
    """

    __slots__ = ("_decode", "_ids", "_n_read")

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context[-_CONTEXT_TOKENS:])
        # Tokens of `_ids` whose text has been given.
        self._n_read = len(self._ids)

    def add(self, token_id: int) -> str:
        """Give the text that a token completes; may be empty."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) and self._n_waiting < _LONGEST_CHARACTER:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """Give what is left: the bytes of a character that was never completed."""
        if not self._n_waiting:
            return ""
        return self._advance(self._decode(self._ids))

    @property
    def _n_waiting(self) -> int:
        return len(self._ids) - self._n_read

    def _advance(self, text: str) -> str:
        known = self._decode(self._ids[: self._n_read])
        # The last tokens are decoded again next time, as the context of what follows.
        keep = max(self._n_waiting, _CONTEXT_TOKENS)
        self._ids = self._ids[-keep:]
        self._n_read = len(self._ids)
        return text[len(known) :]


class StopStrings:
    """Finds the first of some strings in a text that comes in pieces.

    It holds back what may be the beginning of one, and no more.
    """

    __slots__ = ("_held", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        #: The string that was found; None while none was.
        self.found: str | None = None

    def add(self, piece: str) -> str:
        """Give the text that is certain to come before any stop string."""
        if not self._stops:
            return piece
        text = self._held + piece
        place, stop = self._first(text)
        if stop is not None:
            self.found, self._held = stop, ""
            return text[:place]
        n_held = self._n_begun(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """Give what was held back: the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str | None]:
        places = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if not places:
            return 0, None
        # The one that is complete first, however the text is cut into pieces; of two the longer.
        return min(places, key=lambda found: (found[0] + len(found[1]), found[0]))

    def _n_begun(self, text: str) -> int:
        """Give the length of the longest end of a text that begins a stop string."""
        longest = max(map(len, self._stops)) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                return n
        return 0
