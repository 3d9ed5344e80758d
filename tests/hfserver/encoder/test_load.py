"""An encoder with its tokenizer, head and engine, as a directory has them."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.hfserver.tiny_encoders import bert_config, config_of, make, save

from hfserver.encoder.load import Encoder, Output, load_encoder
from hfserver.loading import LoadOptions, open_checkpoint
from kserve.errors import ModelLoadError

OPTIONS = LoadOptions(device="cpu", dtype="float32")
PAIR = ("the cat sat", "a dog ran far away")


def load(
    directory: Path, output: Output, options: LoadOptions = OPTIONS, **settings: Any
) -> Encoder:
    return load_encoder("m", output, open_checkpoint(directory, None, options), options, **settings)


def run(encoder: Encoder, *texts: Any) -> list[Any]:
    async def work() -> list[Any]:
        return await encoder.engine.run(await encoder.tokenizer.tokenize(texts))

    return asyncio.run(work())


def plain(model: Any, encoder: Encoder, text: Any) -> Any:
    (tokens,) = encoder.tokenizer.tokenize_blocking([text])
    types = tokens.token_type_ids
    inputs = {} if types is None else {"token_type_ids": torch.tensor(types)[None]}
    with torch.no_grad():
        return model(torch.tensor(tokens.input_ids)[None], **inputs)


@pytest.mark.parametrize(
    ("output", "class_name"),
    [
        (Output.SEQUENCE_LOGITS, "BertForSequenceClassification"),
        (Output.TOKEN_LOGITS, "BertForTokenClassification"),
        (Output.MASK_LOGITS, "BertForMaskedLM"),
    ],
    ids=lambda value: str(value),
)
def test_logits_of_a_pair_are_those_of_the_model(
    tmp_path: Path, output: Output, class_name: str
) -> None:
    model = make(getattr(transformers, class_name), bert_config(num_labels=3))
    encoder = load(save(tmp_path / "m", model), output)

    (logits,) = run(encoder, PAIR)

    expected = plain(model, encoder, PAIR).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert encoder.execution == "packed"
    assert encoder.pipeline is None
    assert encoder.mask_token_id == 4


def test_hidden_states_need_no_pooler(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(bert_config(), add_pooling_layer=False).eval()
    encoder = load(save(tmp_path / "m", model), Output.HIDDEN)

    (hidden,) = run(encoder, "the cat")

    expected = plain(model, encoder, "the cat")[0][0].numpy()
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-4)


def test_the_encoder_of_t5_embeds_without_its_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        initializer_factor=3.0,
    )
    model = make(transformers.T5ForConditionalGeneration, config)
    encoder = load(save(tmp_path / "m", model), Output.HIDDEN)

    hidden = run(encoder, "the cat", "a small dog ran far away")

    for states, text in zip(hidden, ("the cat", "a small dog ran far away"), strict=True):
        expected = plain(model.encoder, encoder, text)[0][0].numpy()
        np.testing.assert_allclose(states, expected, rtol=0, atol=1e-4)


def test_a_text_is_as_long_as_the_model_has_positions(tmp_path: Path) -> None:
    bert = save(tmp_path / "bert", make(transformers.BertModel, bert_config()))
    roberta = save(tmp_path / "roberta", make(transformers.RobertaModel, config_of("Roberta")))

    assert load(bert, Output.HIDDEN).tokenizer.max_length == 64
    # 66 positions, of which two are for padding.
    assert load(roberta, Output.HIDDEN).tokenizer.max_length == 64
    shorter = LoadOptions(device="cpu", max_length=10)
    assert load(bert, Output.HIDDEN, shorter).tokenizer.max_length == 10
    longer = LoadOptions(device="cpu", max_length=65)
    for directory in (bert, roberta):
        with pytest.raises(ModelLoadError, match="max_length: expected at most 64, .*, got 65"):
            load(directory, Output.HIDDEN, longer)


def test_the_longest_text_and_one_token_run(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", make(transformers.RobertaModel, config_of("Roberta")))
    encoder = load(directory, Output.EMBEDDING)

    long, short = run(encoder, "cat " * 500, [5])

    assert encoder.execution == "packed"
    assert np.isfinite(long).all()
    assert np.isfinite(short).all()


def test_settings_reach_the_engine(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", make(transformers.BertModel, bert_config()))

    encoder = load(directory, Output.HIDDEN, max_batch_tokens=3, max_queued_tokens=5)

    assert encoder.engine._max_batch_tokens == 3
    assert encoder.engine._max_queued_tokens == 5
    assert len(run(encoder, *["the cat"] * 4)) == 4
