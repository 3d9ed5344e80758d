"""Checkpoints that are whole, damaged, pickles, of other tasks or types."""

import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from tests.hfserver.tiny_encoders import bert_config, make, make_tokenizer, save
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel

from hfserver.loading import (
    LoadOptions,
    has_bfloat16,
    load_model,
    load_tokenizer,
    open_checkpoint,
    read_config,
    read_weights,
    resolve_device,
    resolve_dtype,
)
from kserve.errors import ModelLoadError, ModelMissingError

OPTIONS = LoadOptions(device="cpu")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save(tmp_path / "model", make(BertModel, bert_config()))


def load(directory: Path, options: LoadOptions = OPTIONS, auto_class: Any = AutoModel) -> Any:
    return load_model(auto_class, open_checkpoint(directory, None, options), options)


def refusal(directory: Path, options: LoadOptions = OPTIONS, auto_class: Any = AutoModel) -> str:
    with pytest.raises(ModelLoadError) as refused:
        load(directory, options, auto_class)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_weights_are_those_of_the_files_and_the_model_is_for_inference(directory: Path) -> None:
    expected = BertModel.from_pretrained(directory).state_dict()

    model = load(directory)

    assert not model.training
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())


def test_nothing_is_asked_of_a_network_for_a_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    checkpoint = open_checkpoint(f"file://{directory}", None, OPTIONS)

    read_config(checkpoint, OPTIONS)
    load_tokenizer(checkpoint, OPTIONS)
    load_model(AutoModel, checkpoint, OPTIONS)


def test_without_a_config_the_files_found_are_named(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("none")

    with pytest.raises(ModelMissingError, match=r"expected config\.json, found weights\.txt"):
        read_config(open_checkpoint(tmp_path, None, OPTIONS), OPTIONS)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"model_type": "no-such"}'])
def test_a_damaged_config_is_named(directory: Path, content: bytes) -> None:
    (directory / "config.json").write_bytes(content)

    assert f"{directory}/config.json: " in refusal(directory)


def test_weights_that_are_cut_off_are_named(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    assert str(path) in refusal(directory)


def test_weights_that_are_no_safetensors_are_named(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")

    assert str(path) in refusal(directory)


def test_weights_of_other_shapes_are_refused(directory: Path) -> None:
    config = orjson.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_bytes(orjson.dumps({**config, "hidden_size": 64}))

    assert str(directory) in refusal(directory)


def test_a_head_that_would_be_of_chance_is_refused(directory: Path) -> None:
    reason = refusal(directory, auto_class=AutoModelForSequenceClassification)

    assert "the weights classifier.bias, classifier.weight are not there" in reason


def test_weights_that_are_not_needed_may_lack(tmp_path: Path) -> None:
    directory = save(tmp_path / "model", BertModel(bert_config(), add_pooling_layer=False))
    checkpoint = open_checkpoint(directory, None, OPTIONS)

    assert "pooler.dense.bias" in refusal(directory)
    load_model(AutoModel, checkpoint, OPTIONS, optional_weights=("pooler.*",))


def test_without_weights_the_files_found_are_named(directory: Path) -> None:
    (directory / "model.safetensors").unlink()

    assert "expected *.safetensors, found config.json" in refusal(directory)


def test_pickles_are_loaded_only_where_they_are_trusted(directory: Path) -> None:
    state = BertModel.from_pretrained(directory).state_dict()
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")

    assert "found pytorch_model.bin, pickles: start with --allow_pickle" in refusal(directory)
    model = load(directory, LoadOptions(device="cpu", allow_pickle=True))
    assert torch.equal(model.pooler.dense.weight, state["pooler.dense.weight"])
    weights = read_weights(directory, allow_pickle=True)
    assert set(weights) == set(state)


def test_code_of_a_checkpoint_runs_only_where_it_is_trusted(directory: Path) -> None:
    config = orjson.loads((directory / "config.json").read_bytes())
    own = {"auto_map": {"AutoConfig": "own.OwnConfig"}, "model_type": "own"}
    (directory / "config.json").write_bytes(orjson.dumps({**config, **own}))
    (directory / "own.py").write_text(
        "from transformers import BertConfig\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    checkpoint = open_checkpoint(directory, None, OPTIONS)

    with pytest.raises(ModelLoadError, match="start with --trust_remote_code if you trust"):
        read_config(checkpoint, OPTIONS)
    config = read_config(checkpoint, LoadOptions(trust_remote_code=True))
    assert type(config).__name__ == "OwnConfig"


def test_a_damaged_tokenizer_is_named(directory: Path) -> None:
    (directory / "tokenizer.json").write_text('{"version": "1.0"')

    with pytest.raises(ModelLoadError) as refused:
        load_tokenizer(open_checkpoint(directory, None, OPTIONS), OPTIONS)

    assert str(refused.value).startswith(f"{directory}: the tokenizer: ")
    assert "\n" not in str(refused.value)


def test_the_case_of_a_text_is_kept_unless_asked(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", make(BertModel, bert_config()), make_tokenizer())
    checkpoint = open_checkpoint(directory, None, OPTIONS)

    tokenizer = load_tokenizer(checkpoint, OPTIONS)

    assert tokenizer.tokenize("Anna sat") == ["Anna", "sat"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("float", torch.float32), ("half", torch.float16), ("bfloat16", torch.bfloat16)],
)
def test_a_type_that_is_asked_for_is_taken(name: str, expected: torch.dtype) -> None:
    config = bert_config(dtype=torch.float16)

    assert resolve_dtype(name, torch.device("cpu"), config) is expected


def test_the_type_on_a_cpu_is_one_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    half, brain = bert_config(dtype=torch.float16), bert_config(dtype=torch.bfloat16)

    def pretend(**capabilities: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    pretend(avx512_f=True, avx512_bf16=False)
    assert not has_bfloat16()
    assert resolve_dtype("auto", cpu, brain) is torch.float32
    pretend(avx512_bf16=True)
    assert resolve_dtype("auto", cpu, brain) is torch.bfloat16
    assert resolve_dtype("auto", cpu, half) is torch.float32
    assert resolve_dtype("auto", cpu, bert_config()) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda"), half) is torch.float16


def test_a_type_and_a_device_that_are_not_there_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="dtype: expected auto or one of .*, got 'int4'"):
        resolve_dtype("int4", torch.device("cpu"), bert_config())
    with pytest.raises(ModelLoadError, match="device 'abacus': "):
        resolve_device("abacus")
