"""What is read of a directory: weights, a GGUF file, defaults, limits."""

import gc
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.hfserver.generation.tiny_generators import N_BYTES, llama, save, t5
from transformers import BartConfig, GPT2Config, LlamaConfig, MptConfig, T5Config

from hfserver.checkpoint import open_directory
from hfserver.detect import Task
from hfserver.generation.defaults import model_length, sampling_defaults, token_rules
from hfserver.generation.loading import LoadedGenerator, engine_config, load_generator
from hfserver.generation.options import GenerationOptions
from hfserver.gguf_files import find_gguf
from hfserver.loading import LoadOptions
from kserve.errors import ModelLoadError


def load(directory: Path, task: Task = Task.TEXT_GENERATION, **generation: Any) -> LoadedGenerator:
    options = LoadOptions(max_length=generation.pop("max_length", None))
    return load_generator(open_directory(directory), options, GenerationOptions(**generation), task)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"), llama())


def test_weights_and_tokenizer_are_read(directory: Path) -> None:
    loaded = load(directory)

    ids = loaded.tokenizer("hello", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, llama()(ids).logits)
    assert loaded.rules.eos_ids == {N_BYTES}
    assert loaded.max_model_len == 100_000


def test_model_with_an_encoder_is_read(tmp_path: Path) -> None:
    loaded = load(save(tmp_path, t5()), Task.TEXT2TEXT_GENERATION)

    assert loaded.model.config.is_encoder_decoder
    assert loaded.rules.decoder_start_ids == (0,)
    assert loaded.defaults.temperature == 0


def test_defaults_are_those_of_generation_config(tmp_path: Path) -> None:
    model = llama()
    settings = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    model.generation_config.update(do_sample=True, max_new_tokens=77, **settings)
    model.generation_config.eos_token_id = [3, N_BYTES]
    save(tmp_path, model)

    loaded = load(tmp_path)

    defaults = loaded.defaults
    assert {name: getattr(defaults, name) for name in settings} == settings
    assert (defaults.max_tokens, defaults.min_p) == (77, None)
    assert loaded.rules.eos_ids == {3, N_BYTES}


def test_what_is_not_done_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = llama()
    model.generation_config.update(num_beams=4, no_repeat_ngram_size=3)

    with caplog.at_level(logging.WARNING):
        sampling_defaults(model)

    assert "num_beams = 4, no_repeat_ngram_size = 3 has no effect" in caplog.text


def test_decoder_has_to_begin_with_something() -> None:
    model = t5()
    model.generation_config.decoder_start_token_id = None
    model.generation_config.bos_token_id = None
    model.config.decoder_start_token_id = None

    with pytest.raises(ModelLoadError, match="expected decoder_start_token_id"):
        token_rules(model)


@pytest.mark.parametrize(
    ("config", "wanted", "length"),
    [
        (LlamaConfig(max_position_embeddings=300), None, 300),
        (LlamaConfig(max_position_embeddings=300), 100, 100),
        (GPT2Config(n_positions=200), None, 200),
        (BartConfig(max_position_embeddings=128), None, 128),
        (T5Config(n_positions=512), 2000, 2000),
        (MptConfig(max_seq_len=64), None, 64),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int | None) else str(value),
)
def test_context_is_as_long_as_the_model_says_or_shorter(
    config: Any, wanted: int | None, length: int
) -> None:
    assert model_length(config, wanted) == length


def test_context_beyond_the_model_is_refused(directory: Path) -> None:
    with pytest.raises(ModelLoadError, match="--max_model_len: expected at most 100000"):
        load(directory, max_length=100_001)


# What is asked of an executor: two bytes a token.
ROOM: Any = SimpleNamespace(
    device=torch.device("cpu"), kv_bytes=lambda n_tokens, n_prompt_tokens: 2 * n_tokens
)


def test_memory_is_shared_out_unless_it_is_given(directory: Path) -> None:
    loaded = load(directory)

    own = engine_config(loaded, GenerationOptions(), ROOM)
    given = engine_config(
        loaded, GenerationOptions(kv_cache_bytes=200_000, prefix_cache_bytes=0), ROOM
    )

    assert own.kv_cache_bytes == pytest.approx(4 * own.prefix_cache_bytes, abs=8)
    assert own.kv_cache_bytes > 1 << 24
    assert (given.kv_cache_bytes, given.prefix_cache_bytes) == (200_000, 0)
    assert own.max_model_len == given.max_model_len == 100_000


def test_context_is_no_longer_than_the_cache(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = engine_config(load(directory), GenerationOptions(kv_cache_bytes=1001), ROOM)

    assert config.max_model_len == 500
    assert "Contexts are 500 tokens: 100000, which" in caplog.text
    with pytest.raises(ModelLoadError, match="--kv_cache_bytes: expected at least 2, .* got 1"):
        engine_config(load(directory), GenerationOptions(kv_cache_bytes=1), ROOM)


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
@pytest.mark.filterwarnings("ignore")
def test_weights_may_be_made_smaller(quantization: str, directory: Path) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = load(directory, quantization=quantization)

    layer = loaded.model.model.layers[0].mlp.gate_proj
    assert layer.weight.dtype in (torch.int8, torch.uint8)
    ids = torch.tensor([[*b"hello"]])
    with torch.inference_mode():
        near, exact = loaded.model(ids).logits.float(), llama()(ids).logits
    correlation = np.corrcoef(near.numpy().ravel(), exact.numpy().ravel())[0, 1]
    assert 0.7 < correlation < 1


def test_bitsandbytes_has_to_be_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)

    with pytest.raises(ModelLoadError, match=r"hfserver\[bitsandbytes\]"):
        load(directory, quantization="bnb-8bit")


def write_gguf(path: Path) -> None:
    """Write the model of `llama()` as llama.cpp's converter does, in float32."""
    model = llama(max_position_embeddings=400)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        array = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            # llama.cpp turns pairs that are neighbours, transformers those of the two halves.
            n_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = array.reshape(n_heads, 2, -1, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file_is_read_with_the_tokenizer_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "other", llama())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).rename(tmp_path / name)
    write_gguf(tmp_path / "toy.gguf")

    loaded = load(tmp_path)

    ids = torch.tensor([[*b"hello"]])
    with torch.inference_mode():
        found, exact = loaded.model(ids).logits, llama()(ids).logits
    assert torch.allclose(found, exact, atol=1e-3)
    assert loaded.tokenizer("hello").input_ids == [*b"hello"]
    assert loaded.max_model_len == 400


def test_damaged_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "toy.gguf").write_bytes(b"GGUF but no more")

    with pytest.raises(ModelLoadError, match="toy.gguf: "):
        load(tmp_path)
    # It does without while a file is read.
    assert gc.isenabled()


def test_gguf_file_is_not_made_smaller(tmp_path: Path) -> None:
    (tmp_path / "toy.gguf").touch()

    with pytest.raises(ModelLoadError, match="--quantization: expected safetensors"):
        load(tmp_path, quantization="bnb-8bit")


def test_gguf_file_is_found_where_there_are_no_safetensors(tmp_path: Path) -> None:
    assert find_gguf(tmp_path) is None
    (tmp_path / "a.gguf").touch()
    assert find_gguf(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "model.safetensors").touch()
    assert find_gguf(tmp_path) is None


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a.gguf", "b.gguf"), "expected one GGUF file, found a.gguf, b.gguf"),
        (("a-00001-of-00002.gguf",), "found parts of one"),
    ],
)
def test_one_gguf_file_is_expected(names: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()

    with pytest.raises(ModelLoadError, match=reason):
        find_gguf(tmp_path)
