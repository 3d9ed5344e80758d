"""Loads a model that writes text, with its tokenizer: from safetensors, or from a GGUF file."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from hfserver.checkpoint import Checkpoint, one_line
from hfserver.detect import Task
from hfserver.generation.defaults import (
    SamplingDefaults,
    model_length,
    sampling_defaults,
    token_rules,
)
from hfserver.generation.executors.base import Executor
from hfserver.generation.memory import memory_left
from hfserver.generation.options import GenerationOptions
from hfserver.generation.settings import EngineConfig, TokenRules, count_that_fits
from hfserver.gguf_files import find_gguf
from hfserver.loading import (
    LoadOptions,
    load_model,
    load_tokenizer,
    read_config,
    resolve_device,
    resolve_dtype,
)
from kserve.errors import ModelLoadError
from kserve.logging import logger

# Of the memory that the model leaves: what runs, and what is kept of what ran.
_KV_SHARE: Final = 1 / 2
_PREFIX_SHARE: Final = 1 / 8

# Below that no model answers anything of use.
_LEAST_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class LoadedGenerator:
    """A model that writes text, and what belongs to it.

    Attributes:
        model: Of transformers, on its device, in evaluation mode.
        tokenizer: Of transformers.
        rules: What the model says of some of its tokens.
        defaults: What holds where a request does not say.
        max_model_len: Tokens of a prompt and its answer together, at most.
    """

    model: Any
    tokenizer: Any
    rules: TokenRules
    defaults: SamplingDefaults
    max_model_len: int


def load_generator(
    checkpoint: Checkpoint, options: LoadOptions, generation: GenerationOptions, task: Task
) -> LoadedGenerator:
    """Load a model that writes text.

    Args:
        checkpoint: Its files.
        options: How they are read; its device is not looked at.
        generation: The device, and how the weights are made smaller.
        task: One of `GENERATIVE_TASKS`.

    Raises:
        ModelMissingError: A file is missing.
        ModelLoadError: A file is damaged, or what is asked for cannot be had.
    """
    gguf = find_gguf(checkpoint.directory)
    if gguf is None:
        model, tokenizer = _load_weights(checkpoint, options, generation, task)
    else:
        model, tokenizer = _load_gguf(checkpoint, options, generation, gguf)
    return LoadedGenerator(
        model=model,
        tokenizer=tokenizer,
        rules=token_rules(model),
        defaults=sampling_defaults(model),
        max_model_len=model_length(model.config, options.max_length),
    )


def engine_config(
    loaded: LoadedGenerator, generation: GenerationOptions, executor: Executor
) -> EngineConfig:
    """Give the limits of an engine, of which those of memory follow from what the model leaves.

    Raises:
        ModelLoadError: There is no room for even one token.
    """
    left = max(memory_left(executor.device), _LEAST_BYTES)
    kv_bytes, prefix_bytes = generation.kv_cache_bytes, generation.prefix_cache_bytes
    kv_bytes = int(left * _KV_SHARE) if kv_bytes is None else kv_bytes
    return EngineConfig(
        max_model_len=_length_that_fits(loaded.max_model_len, kv_bytes, executor),
        kv_cache_bytes=kv_bytes,
        prefix_cache_bytes=int(left * _PREFIX_SHARE) if prefix_bytes is None else prefix_bytes,
        max_batch_tokens=generation.max_num_batched_tokens,
        max_num_seqs=generation.max_num_seqs,
        max_waiting_requests=generation.max_waiting_requests,
        default_max_tokens=loaded.defaults.max_tokens,
    )


def _length_that_fits(wanted: int, kv_bytes: int, executor: Executor) -> int:
    """Give the longest context of which one has room in the KV cache."""
    found = count_that_fits(wanted, kv_bytes, lambda count: executor.kv_bytes(count, count))
    if found < 1:
        raise ModelLoadError(
            f"--kv_cache_bytes: expected at least {executor.kv_bytes(1, 1)}, which one token "
            f"takes, got {kv_bytes}"
        )
    if found < wanted:
        logger.warning(
            "Contexts are %d tokens: %d, which the model has or --max_model_len says, would take "
            "%d bytes of the KV cache, which has %d (--kv_cache_bytes)",
            *(found, wanted, executor.kv_bytes(wanted, wanted), kv_bytes),
        )
    return found


def _load_weights(
    checkpoint: Checkpoint, options: LoadOptions, generation: GenerationOptions, task: Task
) -> tuple[Any, Any]:
    config = read_config(checkpoint, options)
    has_encoder = task is Task.TEXT2TEXT_GENERATION
    auto_class = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM
    kwargs: dict[str, Any] = {}
    if generation.quantization is not None:
        kwargs["quantization_config"] = _quantization(generation.quantization)
        kwargs["device_map"] = {"": resolve_device(generation.device)}
    model = load_model(
        auto_class,
        checkpoint,
        _with_device(options, generation.device),
        config=config,
        **kwargs,
    )
    return model, load_tokenizer(checkpoint, options)


def _load_gguf(
    checkpoint: Checkpoint, options: LoadOptions, generation: GenerationOptions, path: Path
) -> tuple[Any, Any]:
    if generation.quantization is not None:
        raise ModelLoadError(
            f"{path}: --quantization: expected safetensors; a GGUF file is quantized already"
        )
    logger.info("%s: its weights are unpacked, and take as much memory as if they were not", path)
    device = resolve_device(generation.device)
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": path.parent,
        "gguf_file": path.name,
        "local_files_only": True,
    }
    # A boundary: the reader raises whatever a damaged file leads it to.
    try:
        with _without_collector():
            model = AutoModelForCausalLM.from_pretrained(
                **source, dtype=resolve_dtype(options.dtype, device, None)
            )
            if (path.parent / "tokenizer.json").exists():
                tokenizer = load_tokenizer(checkpoint, options)
            else:
                tokenizer = AutoTokenizer.from_pretrained(**source)
    except ModelLoadError:
        raise
    except Exception as exc:
        raise ModelLoadError(f"{path}: {type(exc).__name__}: {one_line(exc)}") from exc
    return model.to(device).eval(), tokenizer


@contextmanager
def _without_collector() -> Iterator[None]:
    """Let Python look for no garbage.

    A GGUF file's vocabulary is read as some 150,000 small arrays, three times, and looking at all
    of them again and again takes a third of the whole load.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _quantization(name: str) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ModelLoadError(
            f"--quantization {name}: expected bitsandbytes to be installed: hfserver[bitsandbytes]"
        )
    # It says at each multiplication which types it converts.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if name == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def _with_device(options: LoadOptions, device: str) -> LoadOptions:
    return replace(options, device=device)
