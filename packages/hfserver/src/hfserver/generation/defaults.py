"""What a model's own files say about generation: `generation_config.json`, and its limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hfserver.generation.settings import TokenRules
from kserve.errors import ModelLoadError
from kserve.logging import logger

# What configurations call the longest context, in the order in which they are believed.
_LENGTH_NAMES: Final = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"),
    *("max_target_positions", "max_source_positions"),
)

# Where nothing bounds the context, such as with ALiBi, T5's buckets or a state space.
_UNBOUNDED_LEN: Final = 8192

# They change what is generated, and are not implemented: a log line says so once.
_UNSUPPORTED: Final = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "penalty_alpha": None,
    "typical_p": 1.0,
    "begin_suppress_tokens": None,
    "forced_decoder_ids": None,
}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds where a request does not say; None leaves it to the protocol.

    Attributes:
        temperature: See `SamplingParams`, as are all the others.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None


def token_rules(model: Any) -> TokenRules:
    """Give what a model says of some of its tokens.

    Args:
        model: A model of transformers.

    Raises:
        ModelLoadError: It has an encoder and does not say what its decoder begins with.
    """
    settings, config = model.generation_config, model.config
    starts: tuple[int, ...] = ()
    if config.is_encoder_decoder:
        start = _first(
            settings.decoder_start_token_id,
            getattr(config, "decoder_start_token_id", None),
            settings.bos_token_id,
        )
        if start is None:
            raise ModelLoadError(
                "generation_config.json: expected decoder_start_token_id, as for any model that "
                "has an encoder"
            )
        starts = (start,)
    return TokenRules(
        eos_ids=frozenset(_ids(settings.eos_token_id)),
        decoder_start_ids=starts,
        forced_bos_id=settings.forced_bos_token_id,
        forced_eos_id=_first(*_ids(settings.forced_eos_token_id)),
        suppressed_ids=tuple(settings.suppress_tokens or ()),
    )


def sampling_defaults(model: Any) -> SamplingDefaults:
    """Give a model's own defaults.

    Whether to sample at all is the request's to say, by its temperature, as with vLLM. With an
    encoder the default is 0, since translations and summaries are wanted to be the likeliest.

    Args:
        model: A model of transformers.
    """
    settings = model.generation_config
    ignored = [
        f"{name} = {value}"
        for name, usual in _UNSUPPORTED.items()
        if (value := getattr(settings, name, None)) not in (usual, None)
    ]
    if ignored:
        logger.warning("generation_config.json: %s has no effect here", ", ".join(ignored))
    temperature = settings.temperature
    if temperature is None and model.config.is_encoder_decoder and not settings.do_sample:
        temperature = 0.0
    return SamplingDefaults(
        temperature=temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=getattr(settings, "min_p", None),
        repetition_penalty=settings.repetition_penalty,
        max_tokens=settings.max_new_tokens,
    )


def model_length(config: Any, wanted: int | None = None) -> int:
    """Give the tokens of a prompt and its answer together, at most.

    Args:
        config: The model's configuration.
        wanted: What the user wants; None for what the model has.

    Raises:
        ModelLoadError: It is more than the model has.
    """
    text = config.get_text_config()
    own = [getattr(text, name, None) for name in _LENGTH_NAMES]
    found = [length for length in own if isinstance(length, int) and length > 0]
    if not found:
        return wanted or _UNBOUNDED_LEN
    if wanted is not None and wanted > found[0] and not _is_relative(text):
        raise ModelLoadError(
            f"--max_model_len: expected at most {found[0]}, which is the model's, got {wanted}"
        )
    return wanted or found[0]


def _is_relative(config: Any) -> bool:
    """Say whether a model's positions have no end: its length is only what it was trained with."""
    return config.model_type in ("t5", "mt5", "umt5", "longt5", "switch_transformers", "mpt")


def _ids(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
