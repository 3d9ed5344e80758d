"""Text to tokens and back, as generation needs it, with a tokenizer of transformers."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from kserve.protocol.rest.openai.errors import invalid_request

# What a decoder puts for bytes that are no complete character.
_INCOMPLETE: Final = "\ufffd"

# As many names of tokens are kept as a large vocabulary has common ones.
_N_NAMES: Final = 65536


class TextCodec:
    """Encodes prompts and decodes tokens; may be used by several threads.

    Args:
        tokenizer: Of transformers.
        vocabulary_size: Tokens that the model knows.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        # The bare one of a fast tokenizer, which decodes ten times as fast.
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._vocabulary_size = vocabulary_size
        self.name = lru_cache(_N_NAMES)(self._name)
        anchor = tokenizer("a", add_special_tokens=False).input_ids[-1:]
        self._anchor, self._anchor_text = anchor, self.decode(anchor)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Give the tokens of a text."""
        ids = self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids
        return list(ids)

    def check(self, token_ids: Sequence[int], field: str) -> None:
        """Check that the model knows tokens.

        Raises:
            OpenAIError: It does not know one.
        """
        size = self._vocabulary_size
        for token_id in token_ids:
            if not 0 <= token_id < size:
                raise invalid_request(
                    f"'{field}': expected token ids from 0 to {size - 1}, got {token_id}", field
                )

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Give tokens as the vocabulary has them."""
        return list(self._tokenizer.convert_ids_to_tokens(list(token_ids)))

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Give the text of tokens."""
        text: str
        if self._backend is not None:
            text = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        else:
            text = self._tokenizer.decode(
                list(token_ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        return text

    def _name(self, token_id: int) -> str:
        """Give the text that a token is within others; its own name where that is no text."""
        # Decoders drop the space before a text's first token.
        text = self.decode([*self._anchor, token_id], skip_special_tokens=False)
        piece = text[len(self._anchor_text) :]
        if piece and _INCOMPLETE not in piece:
            return piece
        return str(self._tokenizer.convert_ids_to_tokens(token_id))
