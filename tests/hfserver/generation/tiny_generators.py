"""Directories of small random models that write text, with a tokenizer of bytes."""

import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hfserver.checkpoint import open_directory
from hfserver.detect import Task
from hfserver.generation.model import HuggingfaceGenerativeModel
from hfserver.generation.options import GenerationOptions
from hfserver.loading import LoadOptions

EOS, BOS = "</s>", "<s>"
N_BYTES = 256
VOCABULARY = 258
LIMIT = 50_000


def tokenizer() -> Any:
    """Make a tokenizer with a token for each byte, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(N_BYTES + place) for place, byte in enumerate(others)}
    bare = Tokenizer(BPE({letters[byte]: byte for byte in range(N_BYTES)}, []))
    bare.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bare.decoder = ByteLevelDecoder()
    bare.add_special_tokens([EOS, BOS])
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=EOS, bos_token=BOS)


def llama(**changes: Any) -> Any:
    """Make a model whose answers depend on the whole prompt."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 100_000,
        # At 0.02 with tied embeddings a random model repeats its last token.
        "initializer_range": 0.35,
        "tie_word_embeddings": False,
        "bos_token_id": N_BYTES + 1,
        "eos_token_id": N_BYTES,
        "pad_token_id": None,
        **changes,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def t5() -> Any:
    """Make a model with an encoder."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        initializer_factor=8.0,
        decoder_start_token_id=0,
        eos_token_id=N_BYTES,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config).eval()


def save(directory: Path, model: Any) -> Path:
    """Write a model and the tokenizer into a directory."""
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def make_model(directory: Path, name: str = "toy", **generation: Any) -> HuggingfaceGenerativeModel:
    """Make the unloaded model of a directory."""
    return HuggingfaceGenerativeModel(
        name,
        open_directory(directory),
        options=LoadOptions(max_length=LIMIT),
        generation=GenerationOptions(**{"kv_cache_bytes": 1 << 30, **generation}),
        task=Task.TEXT_GENERATION,
    )


def expected(prompt: str, n_tokens: int) -> tuple[list[int], str]:
    """Give the likeliest tokens, and their text, by `generate()`."""
    codec, reference = tokenizer(), llama()
    ids = codec(prompt, return_tensors="pt").input_ids
    output = reference.generate(ids, max_new_tokens=n_tokens, do_sample=False, pad_token_id=0)
    tokens = output[0, ids.shape[1] :].tolist()
    return tokens, codec.decode(tokens, skip_special_tokens=True)


def wait_for(is_so: Any) -> None:
    """Wait for what another thread does; the time only bounds a test that fails."""
    deadline = time.perf_counter() + 15
    while not is_so():
        assert time.perf_counter() < deadline
        time.sleep(0.005)
