"""Loads an encoder with all that belongs to it: tokenizer, head, engine."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import transformers
from tokenizers import normalizers

from hfserver.checkpoint import Checkpoint
from hfserver.encoder.engine import (
    DEFAULT_MAX_BATCH_TOKENS,
    DEFAULT_MAX_QUEUED_TOKENS,
    EncoderEngine,
)
from hfserver.encoder.heads import EmbeddingHead, Head, HiddenHead, TokenHead
from hfserver.encoder.selfcheck import choose_executor
from hfserver.encoder.sentence import SentencePipeline, read_pipeline
from hfserver.encoder.tokenization import TextTokenizer, find_max_length
from hfserver.loading import LoadOptions, load_model, load_tokenizer, read_config
from kserve.errors import InvalidInput, ModelLoadError

# Embeddings are pooled from hidden states, never what a model's own pooler makes of them.
_POOLER: Final = ("pooler.*", "*.pooler.*")


class Output(Enum):
    """What an encoder gives for a text."""

    EMBEDDING = "embedding"
    """A vector, shape (dimension,)."""

    HIDDEN = "hidden"
    """The hidden states of its tokens, shape (n_tokens, size)."""

    SEQUENCE_LOGITS = "sequence_logits"
    """The logits of the labels, shape (n_labels,)."""

    TOKEN_LOGITS = "token_logits"
    """The logits of the labels of each token, shape (n_positions, n_labels)."""

    MASK_LOGITS = "mask_logits"
    """The logits of what may stand in the place of a token, shape (n_positions, n_tokens)."""


_AUTO_CLASSES: Final = {
    Output.SEQUENCE_LOGITS: "AutoModelForSequenceClassification",
    Output.TOKEN_LOGITS: "AutoModelForTokenClassification",
    Output.MASK_LOGITS: "AutoModelForMaskedLM",
}


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded encoder.

    Attributes:
        engine: Runs texts.
        tokenizer: Makes tokens of them.
        config: Transformers' configuration of the model.
        pipeline: What makes embeddings; None where none are made.
        execution: How texts run: `packed`, `padded` or `single`.
    """

    engine: EncoderEngine
    tokenizer: TextTokenizer
    config: Any
    pipeline: SentencePipeline | None
    execution: str

    @property
    def mask_token_id(self) -> int | None:
        """The token to fill in, where the tokenizer has one."""
        number: int | None = self.tokenizer.tokenizer.mask_token_id
        return number


def load_encoder(
    name: str,
    output: Output,
    checkpoint: Checkpoint,
    options: LoadOptions,
    *,
    pooling: str | None = None,
    max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
    max_queued_tokens: int = DEFAULT_MAX_QUEUED_TOKENS,
    hang_timeout_s: float = 0.0,
    on_failure: Callable[[str], object] | None = None,
) -> Encoder:
    """Load an encoder, and see how its texts are best run; blocks.

    Args:
        name: The model's name.
        output: What it gives for a text.
        checkpoint: Its files.
        options: How they are loaded.
        pooling: How embeddings are pooled; None is what the files say.
        max_batch_tokens: See `EncoderEngine`.
        max_queued_tokens: See `EncoderEngine`.
        hang_timeout_s: See `EncoderEngine`.
        on_failure: See `EncoderEngine`.

    Raises:
        ModelLoadError: A file is missing or damaged, or does not suit the output or an option.
    """
    pipeline = read_pipeline(checkpoint, options, pooling) if output is Output.EMBEDDING else None
    folder = pipeline.transformer_folder if pipeline else ""
    config = read_config(checkpoint, options, folder)
    tokenizer = load_tokenizer(checkpoint, options, folder)
    if pipeline is not None and pipeline.lowers_case and tokenizer.is_fast:
        _lower_case(tokenizer.backend_tokenizer)
    model = load_model(
        _auto_class(output, config),
        checkpoint,
        options,
        config=config,
        subfolder=folder,
        optional_weights=() if output in _AUTO_CLASSES else _POOLER,
    )
    text_tokenizer = TextTokenizer(
        tokenizer,
        _max_length(model, tokenizer, options, pipeline),
        name,
        has_token_types=getattr(config, "type_vocab_size", 2) > 1,
    )
    executor = choose_executor(
        model,
        _heads(output, pipeline, model),
        max_length=text_tokenizer.max_length,
        mask_token_id=tokenizer.mask_token_id if output is Output.MASK_LOGITS else None,
    )
    engine = EncoderEngine(
        name,
        executor,
        model.get_input_embeddings().weight.shape[0],
        max_batch_tokens=max_batch_tokens,
        max_queued_tokens=max_queued_tokens,
        hang_timeout_s=hang_timeout_s,
        on_failure=on_failure,
    )
    return Encoder(engine, text_tokenizer, config, pipeline, executor.kind)


def _auto_class(output: Output, config: Any) -> Any:
    name = _AUTO_CLASSES.get(output, "AutoModel")
    if output not in _AUTO_CLASSES and getattr(config, "is_encoder_decoder", False):
        # The encoder of T5 alone, as of sentence-t5.
        name = "AutoModelForTextEncoding"
    return getattr(transformers, name)


def _heads(output: Output, pipeline: SentencePipeline | None, model: Any) -> list[Head] | None:
    if pipeline is not None:
        return [EmbeddingHead(pipeline.to(model.device))]
    if output is Output.SEQUENCE_LOGITS:
        return None
    return [HiddenHead() if output is Output.HIDDEN else TokenHead()]


def _max_length(
    model: Any, tokenizer: Any, options: LoadOptions, pipeline: SentencePipeline | None
) -> int:
    try:
        wanted = find_max_length(model, tokenizer, options.max_length)
    except InvalidInput as exc:
        raise ModelLoadError(str(exc)) from exc
    if options.max_length is None and pipeline is not None and pipeline.max_length:
        return min(wanted, pipeline.max_length)
    return wanted


def _lower_case(backend: Any) -> None:
    """Put texts into lower case before all else, as sentence-transformers does."""
    rest = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
