"""A loaded model: from texts to what its head makes of them, by tokenizer and engine."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, cast

import numpy as np

from hfserver.checkpoint import Checkpoint
from hfserver.detect import Task
from hfserver.encoder.load import Encoder, Output, load_encoder
from hfserver.encoder.sentence import cut, normalized
from hfserver.encoder.tokenization import TokenizedText, TokenizeOptions, Truncation
from hfserver.inputs import Text
from hfserver.loading import LoadOptions
from hfserver.options import Options
from hfserver.tasks.fill_mask import mask_places
from hfserver.tasks.results import Result
from hfserver.tasks.scores import Logits
from kserve.errors import InvalidInput
from kserve.executor import run_in_new_thread

_OUTPUTS: Final = {
    Task.SEQUENCE_CLASSIFICATION: Output.SEQUENCE_LOGITS,
    Task.TOKEN_CLASSIFICATION: Output.TOKEN_LOGITS,
    Task.FILL_MASK: Output.MASK_LOGITS,
    Task.TEXT_EMBEDDING: Output.EMBEDDING,
}

# What sentence-transformers calls the prompts of the two sides of a search.
_QUERY: Final = "query"
_DOCUMENT: Final = ("document", "passage")

# Read once before a client's: whatever is done at the first time only is done then.
_WARM_UP_TEXT: Final = "A text."


class Reader:
    """Reads texts with one model.

    Args:
        task: What the model does.
        encoder: The model, with its tokenizer and its engine.

    Attributes:
        config: The configuration of the model.
        tokenizer: Its tokenizer, of transformers.
        engine: What runs it.
        max_length: Tokens of a text, at most.
    """

    def __init__(self, task: Task, encoder: Encoder) -> None:
        self.config = encoder.config
        self.tokenizer = encoder.tokenizer.tokenizer
        self.engine = encoder.engine
        self.max_length = encoder.tokenizer.max_length
        self._task = task
        self._text_tokenizer = encoder.tokenizer
        self._pipeline = encoder.pipeline
        self._n_dimensions: int | None = None

    @classmethod
    def load(
        cls,
        name: str,
        checkpoint: Checkpoint,
        options: Options,
        task: Task,
        on_failure: Callable[[str], object] | None = None,
    ) -> "Reader":
        """Load a model; blocks.

        Args:
            name: The name under which it is served.
            checkpoint: Its files.
            options: What the command line says.
            task: What it does.
            on_failure: Called with the reason where its engine has died.

        Raises:
            ModelLoadError: A file is missing, damaged, or not one that may be read.
        """
        encoder = load_encoder(
            name,
            _OUTPUTS[task],
            checkpoint,
            _load_options(options),
            pooling=options.pooling,
            max_batch_tokens=options.max_batch_tokens,
            max_queued_tokens=options.max_queued_tokens,
            hang_timeout_s=options.hang_timeout_s,
            on_failure=on_failure,
        )
        return cls(task, encoder)

    @property
    def n_dimensions(self) -> int:
        """The dimensions of an embedding."""
        assert self._n_dimensions is not None
        return self._n_dimensions

    @property
    def query_prompt(self) -> str | None:
        """The name of the prompt for queries; None if the model has none."""
        return self._prompt_of((_QUERY,))

    @property
    def document_prompt(self) -> str | None:
        """The name of the prompt for documents; None if the model has none."""
        return self._prompt_of(_DOCUMENT)

    def warm_up(self) -> None:
        """Read one text; blocks.

        Raises:
            Exception: Whatever the model raises.
        """
        text = _WARM_UP_TEXT
        if self._task is Task.FILL_MASK:
            text = f"{text} {self.tokenizer.mask_token}"
        (result,) = asyncio.run(self.read([text], truncation="right"))
        if self._task is Task.TEXT_EMBEDDING:
            self._n_dimensions = len(result.numbers)

    async def read(
        self,
        texts: Sequence[Text | list[int]],
        *,
        truncation: str,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[Result]:
        """Read texts.

        Args:
            texts: Texts, pairs of them, or texts as numbers of tokens.
            truncation: Which end of a text that is too long is cut, left or right; none refuses it.
            max_length: Tokens of a text, if fewer than the model takes.
            add_special_tokens: Whether the model's own are added, such as [CLS].
            dimensions: How many of an embedding are given; None for all.
            normalize: Whether an embedding gets the length 1; None for what the model does.
            prompt: What is put before each text.
            prompt_name: The model's own prompt that is put there.

        Raises:
            TextTooLong: A text has too many tokens, and none may be cut.
            InvalidInput: A text, or something else, is not what the model takes.
            TooManyRequests: As many tokens wait as may.
        """
        options = TokenizeOptions(
            truncation=cast(Truncation, truncation),
            max_length=max_length,
            add_special_tokens=add_special_tokens,
            with_offsets=self._task is Task.TOKEN_CLASSIFICATION,
            prompt=self._prompt(prompt, prompt_name),
        )
        tokenized = await self._text_tokenizer.tokenize(texts, options)
        if self._task is Task.FILL_MASK:
            self._find_masks(tokenized)
        arrays = await self.engine.run(tokenized)
        if dimensions is not None or normalize is not None:
            arrays = [self._shaped(array, dimensions, normalize) for array in arrays]
        return list(map(_result, texts, tokenized, arrays))

    async def ids_of(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Give the numbers of the tokens of a text, however long it is."""
        encode = partial(self.tokenizer.encode, add_special_tokens=add_special_tokens)
        ids: list[int] = await run_in_new_thread(encode, text)
        return ids

    async def shortened(self, texts: Sequence[str], n_tokens: int) -> list[str]:
        """Give the beginnings of texts, of so many tokens at most.

        Raises:
            InvalidInput: The tokenizer does not tell where its tokens stand.
        """
        options = TokenizeOptions(max_length=n_tokens, add_special_tokens=False, with_offsets=True)
        return [
            text[: int(tokens.offsets[-1][1])]
            if tokens.n_cut and tokens.offsets is not None
            else text
            for text, tokens in zip(
                texts, await self._text_tokenizer.tokenize(texts, options), strict=True
            )
        ]

    def tokens_of(self, ids: Sequence[int]) -> list[str]:
        """Give the tokens of numbers.

        Raises:
            InvalidInput: A number is of no token.
        """
        return self._text_tokenizer.tokens(ids)

    def text_of(self, ids: Sequence[int]) -> str:
        """Give the text of tokens.

        Raises:
            InvalidInput: A number is of no token.
        """
        return self._text_tokenizer.decode(ids)

    def _prompt_of(self, names: Sequence[str]) -> str | None:
        prompts = {} if self._pipeline is None else self._pipeline.prompts
        return next((name for name in names if name in prompts), None)

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None and name is not None:
            raise InvalidInput("expected prompt or prompt_name, got both")
        if prompt is not None:
            return prompt
        if self._pipeline is None:
            if name is not None:
                raise InvalidInput(f"prompt_name: this model has no prompts, got {name!r}")
            return ""
        return self._pipeline.prompt(name)

    def _find_masks(self, texts: Sequence[TokenizedText]) -> None:
        """Have the head run on the masks alone: a vocabulary has as many numbers as a small book.

        Raises:
            InvalidInput: A text has none.
        """
        tokenizer = self.tokenizer
        for text in texts:
            places = mask_places(
                text.input_ids.tolist(), tokenizer.mask_token_id, tokenizer.mask_token
            )
            text.positions = np.array(places, dtype=np.int64)

    def _shaped(self, array: Logits, dimensions: int | None, normalize: bool | None) -> Logits:
        """Give an embedding of another length than the model's, in both meanings."""
        if self._pipeline is None:
            return array
        if dimensions is not None:
            # At the length 1, unless the client does not want that, or the model has it not.
            shorter = cut(array, dimensions, self._pipeline.dimensions)
            keeps = normalize is False or (normalize is None and not self._pipeline.is_normalized)
            return array[:dimensions] if keeps else shorter
        return normalized(array) if normalize else array


def _load_options(options: Options) -> LoadOptions:
    return LoadOptions(
        dtype=options.dtype,
        revision=options.model_revision,
        tokenizer_revision=options.tokenizer_revision,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        do_lower_case=options.do_lower_case,
        max_length=options.max_length,
    )


def _result(text: Any, tokens: TokenizedText, numbers: Logits) -> Result:
    special = tokens.sequence_ids
    return Result(
        text,
        tokens.input_ids.tolist(),
        None if tokens.offsets is None else tokens.offsets.tolist(),
        [] if special is None else (special == -1).tolist(),
        numbers,
    )
