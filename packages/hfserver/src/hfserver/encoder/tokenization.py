"""From texts to tokens, on threads, with the same rules for every model."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from kserve.cpu import cpu_count
from kserve.errors import InvalidInput
from kserve.executor import ModelThreads

Truncation = Literal["none", "left", "right"]

# A text, a pair of texts that the model reads together, or the numbers of tokens.
Text = str | tuple[str, str] | Sequence[int]

# A thread's turn costs 60 us, and a text of a sentence 20 to 40.
_TEXTS_A_TURN: Final = 64

# `model_max_length` where a tokenizer does not know it is 1e30.
_NO_LENGTH: Final = 1 << 24

_SPECIAL: Final = -1


class TextTooLong(InvalidInput):
    """A text has more tokens than the model takes, and was not to be cut.

    Args:
        index: Which text of the request.
        n_tokens: How many it has.
        max_length: How many it may have.
    """

    def __init__(self, index: int, n_tokens: int, max_length: int) -> None:
        super().__init__(
            f"text {index}: expected at most {max_length} tokens, got {n_tokens}; "
            "shorten it, or ask for truncation"
        )
        self.n_tokens = n_tokens
        self.max_length = max_length


@dataclass(slots=True)
class TokenizedText:
    """What the model reads of one text, or pair.

    Attributes:
        input_ids: The numbers of the tokens, shape (n_tokens,).
        token_type_ids: Which text of a pair each belongs to, for the model; None is all 0.
        sequence_ids: 0 or 1 for the text that a token is of, -1 for what was added, such as [CLS];
            None where it was not asked for.
        offsets: The first character of each token in its text and the one behind, shape
            (n_tokens, 2); None where it was not asked for.
        word_ids: The word of its text that each token is of, -1 for what was added; None where it
            was not asked for.
        positions: The tokens that a result is wanted of; None for all.
        n_prompt_tokens: The tokens of a prompt in front, with what was added before it.
        n_cut: How many tokens were cut off.
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64] | None = None
    sequence_ids: NDArray[np.int64] | None = None
    offsets: NDArray[np.int64] | None = None
    word_ids: NDArray[np.int64] | None = None
    positions: NDArray[np.int64] | None = None
    n_prompt_tokens: int = 0
    n_cut: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeOptions:
    """How texts become tokens.

    Attributes:
        truncation: Which end of a text that is too long is cut, the longer text of a pair first;
            `none` refuses it.
        max_length: Tokens of a text, with those that are added; None, or more than the model
            takes, is what it takes.
        add_special_tokens: Whether the model's own are added, such as [CLS].
        with_offsets: Whether offsets, words and sequences of the tokens are wanted.
        prompt: What is put before each text.
    """

    truncation: Truncation = "right"
    max_length: int | None = None
    add_special_tokens: bool = True
    with_offsets: bool = False
    prompt: str = ""


DEFAULTS: Final = TokenizeOptions()


class TextTokenizer:
    """Makes tokens of texts, on a thread for each CPU.

    It takes the padding and truncation out of the tokenizer, which must not be set again.

    Args:
        tokenizer: What `load_tokenizer` gave.
        max_length: Tokens that the model takes.
        name: The model's name, for the names of the threads.
        has_token_types: Whether the model tells the texts of a pair apart.

    Attributes:
        tokenizer: As given.
        max_length: As given.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, name: str = "model", *, has_token_types: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._has_token_types = has_token_types
        self._threads = ModelThreads(f"{name}-tokenizer", cpu_count())
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        # What is written in Python keeps its state in itself.
        self._lock = threading.Lock()
        self._prompt_lengths: dict[str, int] = {}
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    async def tokenize(
        self, texts: Sequence[Text], options: TokenizeOptions = DEFAULTS
    ) -> list[TokenizedText]:
        """Make tokens of texts; from the event loop.

        Args:
            texts: Strings, pairs of them, or numbers of tokens, to which nothing is added.
            options: How.

        Raises:
            TextTooLong: A text has too many tokens, and none may be cut.
            InvalidInput: A text is no text, or a number is of no token.
        """
        parts = [
            self._threads.run(self._tokenize, texts[start : start + _TEXTS_A_TURN], start, options)
            for start in range(0, len(texts), _TEXTS_A_TURN)
        ]
        return list(chain.from_iterable(await asyncio.gather(*parts)))

    def tokenize_blocking(
        self, texts: Sequence[Text], options: TokenizeOptions = DEFAULTS
    ) -> list[TokenizedText]:
        """Make tokens of texts, on the calling thread; as `tokenize`."""
        return self._tokenize(texts, 0, options)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Give the tokens of numbers.

        Raises:
            InvalidInput: A number is of no token.
        """
        self._check_ids(0, ids)
        tokens: list[str] = self.tokenizer.convert_ids_to_tokens(list(ids))
        return tokens

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Give the text of tokens.

        Raises:
            InvalidInput: A number is of no token.
        """
        self._check_ids(0, ids)
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def _tokenize(
        self, texts: Sequence[Text], start: int, options: TokenizeOptions
    ) -> list[TokenizedText]:
        strings = {
            index: _with_prompt(text, options.prompt)
            for index, text in enumerate(texts, start)
            if isinstance(text, str | tuple)
        }
        encoded = dict(zip(strings, self._encode(start, strings, options), strict=True))
        return [
            self._fitted(
                index,
                encoded[index] if index in encoded else self._of_ids(index, text),
                options,
            )
            for index, text in enumerate(texts, start)
        ]

    def _encode(
        self, start: int, texts: dict[int, Any], options: TokenizeOptions
    ) -> list[TokenizedText]:
        if not texts:
            return []
        n_prompt = self._prompt_length(options) if options.prompt else 0
        try:
            encoded = self._encode_texts(list(texts.values()), options)
        except (TypeError, UnicodeError) as exc:
            # Half of a surrogate pair, which JSON can carry, is no character.
            raise InvalidInput(
                f"texts from {start}: expected strings of Unicode characters"
            ) from exc
        for text in encoded:
            text.n_prompt_tokens = n_prompt
        return encoded

    def _encode_texts(self, texts: list[Any], options: TokenizeOptions) -> list[TokenizedText]:
        if self._backend is None:
            return [self._encode_slowly(text, options) for text in texts]
        encode = (
            self._backend.encode_batch if options.with_offsets else self._backend.encode_batch_fast
        )
        return [
            self._of_encoding(encoding, options)
            for encoding in encode(texts, add_special_tokens=options.add_special_tokens)
        ]

    def _of_encoding(self, encoding: Any, options: TokenizeOptions) -> TokenizedText:
        text = TokenizedText(np.array(encoding.ids, np.int64))
        if options.with_offsets:
            text.offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            text.word_ids = _numbers(encoding.word_ids)
        if options.with_offsets or len(text) > self._max_length(options):
            # For what has to be cut, too: what was added is not.
            text.sequence_ids = _numbers(encoding.sequence_ids)
        if self._has_token_types and any(encoding.type_ids):
            text.token_type_ids = np.array(encoding.type_ids, np.int64)
        return text

    def _encode_slowly(self, text: Any, options: TokenizeOptions) -> TokenizedText:
        """Use a tokenizer that is written in Python, which knows no offsets."""
        if options.with_offsets:
            raise InvalidInput(
                f"this model's tokenizer, {type(self.tokenizer).__name__}, gives no offsets"
            )
        parts = text if isinstance(text, tuple) else (text,)
        if not all(isinstance(part, str) for part in parts):
            raise TypeError("not a string")
        with self._lock:
            encoding = self.tokenizer(
                *parts,
                add_special_tokens=options.add_special_tokens,
                return_special_tokens_mask=True,
                return_token_type_ids=True,
            )
        types = np.array(encoding["token_type_ids"], np.int64)
        mask = np.array(encoding["special_tokens_mask"], np.int64)
        return TokenizedText(
            np.array(encoding["input_ids"], np.int64),
            token_type_ids=types if self._has_token_types and types.any() else None,
            # Tokens of a pair are told apart by their types.
            sequence_ids=np.where(mask == 1, _SPECIAL, types),
        )

    def _of_ids(self, index: int, ids: Any) -> TokenizedText:
        self._check_ids(index, ids)
        numbers = np.array(ids, np.int64).reshape(-1)
        return TokenizedText(numbers, sequence_ids=np.zeros_like(numbers))

    def _check_ids(self, index: int, ids: Sequence[int]) -> None:
        n_tokens = len(self.tokenizer)
        for number in ids:
            if isinstance(number, bool) or not isinstance(number, int | np.integer):
                raise InvalidInput(
                    f"text {index}: expected text or numbers of tokens, got {number!r}"
                )
            if not 0 <= number < n_tokens:
                raise InvalidInput(
                    f"text {index}: expected numbers of tokens from 0 to {n_tokens - 1}, "
                    f"got {number}"
                )

    def _fitted(self, index: int, text: TokenizedText, options: TokenizeOptions) -> TokenizedText:
        """Cut a text that is too long."""
        max_length = self._max_length(options)
        if len(text) <= max_length:
            return text
        if options.truncation == "none":
            raise TextTooLong(index, len(text), max_length)
        return _cut(text, max_length, options.truncation)

    def _max_length(self, options: TokenizeOptions) -> int:
        return min(self.max_length, options.max_length or self.max_length)

    def _prompt_length(self, options: TokenizeOptions) -> int:
        """Count the tokens of a prompt, with those added before it and not those behind.

        Source: sentence-transformers, `Transformer._get_prompt_length`.
        """
        key = f"{options.add_special_tokens:d}{options.prompt}"
        n_tokens = self._prompt_lengths.get(key)
        if n_tokens is None:
            alone = replace(options, prompt="", with_offsets=False)
            (text,) = self._encode_texts([options.prompt], alone)
            n_tokens = len(text)
            if n_tokens and int(text.input_ids[-1]) in self.tokenizer.all_special_ids:
                n_tokens -= 1
            # Prompts are those of the model, or few: a client that invents ever new ones costs
            # itself the counting.
            if len(self._prompt_lengths) < 64:
                self._prompt_lengths[key] = n_tokens
        return n_tokens


def find_max_length(model: Any, tokenizer: Any, wanted: int | None = None) -> int:
    """Give how many tokens of a text a model takes.

    Args:
        model: The model of transformers.
        tokenizer: Its tokenizer.
        wanted: What was asked for; what the tokenizer says if None.

    Raises:
        InvalidInput: More is wanted than the model has positions for.
    """
    positions = _n_positions(model)
    if wanted is not None:
        if positions is not None and wanted > positions:
            raise InvalidInput(
                f"max_length: expected at most {positions}, for which the model has positions, "
                f"got {wanted}"
            )
        return wanted
    of_tokenizer = getattr(tokenizer, "model_max_length", None) or _NO_LENGTH
    of_config = _config_length(model.config)
    known = [positions, of_config, of_tokenizer if of_tokenizer < _NO_LENGTH else None]
    return min((int(length) for length in known if length), default=_NO_LENGTH)


def _config_length(config: Any) -> int | None:
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _n_positions(model: Any) -> int | None:
    """Give how many positions were learnt; None where they are computed."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.endswith("position_embeddings") and weight is not None:
            # Those of RoBERTa begin behind that of padding: 514 of them are for 512 tokens.
            padding = getattr(module, "padding_idx", None)
            return len(weight) - (0 if padding is None else padding + 1)
    return None


def _with_prompt(text: Any, prompt: str) -> Any:
    if not prompt:
        return text
    return (prompt + text[0], *text[1:]) if isinstance(text, tuple) else prompt + text


def _numbers(values: Sequence[int | None]) -> NDArray[np.int64]:
    return np.array([_SPECIAL if value is None else value for value in values], np.int64)


def _cut(text: TokenizedText, max_length: int, end: Truncation) -> TokenizedText:
    """Cut tokens of the text, of the longer one of a pair first; what was added stays."""
    assert text.sequence_ids is not None
    sequences = [np.flatnonzero(text.sequence_ids == number) for number in (0, 1)]
    n_added = len(text) - sum(map(len, sequences))
    keep = text.sequence_ids == _SPECIAL
    kept = _shares(len(sequences[0]), len(sequences[1]), max(max_length - n_added, 0))
    for indices, n_kept in zip(sequences, kept, strict=True):
        keep[indices[len(indices) - n_kept :] if end == "left" else indices[:n_kept]] = True

    def part(values: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        # A text of numbers, or of a tokenizer in Python, has no offsets.
        return None if values is None else values[keep]

    return replace(
        text,
        input_ids=text.input_ids[keep],
        token_type_ids=part(text.token_type_ids),
        sequence_ids=part(text.sequence_ids),
        offsets=part(text.offsets),
        word_ids=part(text.word_ids),
        n_cut=int(len(keep) - keep.sum()),
        n_prompt_tokens=min(text.n_prompt_tokens, int(keep.sum())),
    )


def _shares(n_first: int, n_second: int, n_left: int) -> tuple[int, int]:
    """Give how many tokens of each text of a pair are kept: the longer one is cut first.

    Source: `longest_first` of the tokenizers library, which halves the room where both are longer
    than half of it; an odd one is for the longer.
    """
    if n_first + n_second <= n_left:
        return n_first, n_second
    if n_first <= n_second:
        short = min(n_first, n_left // 2)
        return short, n_left - short
    short = min(n_second, n_left // 2)
    return n_left - short, short
