"""Models of many families give in a batch what transformers' own forward gives text by text."""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tests.hfserver.tiny_encoders import VOCABULARY, bert_config, config_of, make

from hfserver.encoder.heads import EmbeddingHead, Head, HiddenHead, TokenHead
from hfserver.encoder.selfcheck import Executor, choose_executor
from hfserver.encoder.sentence import SentencePipeline
from hfserver.encoder.tokenization import TokenizedText

PACKED = (
    *("Albert", "Bert", "Camembert", "Data2VecText", "DistilBert", "Electra", "Ernie", "Esm"),
    *("EuroBert", "ModernBert", "NomicBert", "Roberta", "XLMRoberta"),
)
# Decoders embed and classify too; those of Gemma look both ways.
PACKED_DECODERS = ("Gemma3Text", "Llama", "Mistral", "Qwen3")
PADDED = ("Deberta", "DebertaV2", "MobileBert", "MPNet", "RoFormer")
ALL = (*PACKED, *PACKED_DECODERS, *PADDED)

MAX_LENGTH = 60


def choose(model: Any, heads: Sequence[Head] | None, **kwargs: Any) -> Executor:
    return choose_executor(model, heads, max_length=MAX_LENGTH, **kwargs)


def texts_of(config: Any, seed: int = 1) -> list[TokenizedText]:
    """Give texts of many lengths, in no order; their first token is [CLS] and their last [SEP]."""
    rng = np.random.default_rng(seed)
    texts = []
    for length in (7, 30, 3, 60, 7, 12, 2, 30, 45):
        ids = rng.integers(5, len(VOCABULARY), length, np.int64)
        ids[[0, -1]] = 2, 3
        types = np.sort(rng.integers(0, 2, length, np.int64))
        has_types = getattr(config, "type_vocab_size", 0) > 1
        texts.append(TokenizedText(ids, types if has_types else None))
    return texts


def forward(model: Any, text: TokenizedText) -> Any:
    """Run one text through transformers alone."""
    inputs = {"input_ids": torch.tensor(text.input_ids)[None]}
    if text.token_type_ids is not None:
        inputs["token_type_ids"] = torch.tensor(text.token_type_ids)[None]
    with torch.no_grad():
        return model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))


def run(executor: Executor, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
    with torch.inference_mode():
        return executor.run(texts)


def assert_close(actual: Sequence[Any], expected: Sequence[Any]) -> None:
    for one, other in zip(actual, expected, strict=True):
        if len(other):
            np.testing.assert_allclose(one, other, rtol=0, atol=3e-5 * np.abs(other).max())


def class_of(family: str, suffix: str) -> Any:
    model_class = getattr(transformers, f"{family}{suffix}", None)
    if model_class is None:
        pytest.skip(f"transformers {transformers.__version__} has no {family}{suffix}")
    return model_class


@pytest.mark.parametrize("family", ALL)
def test_hidden_states_and_embeddings(family: str) -> None:
    config = config_of(family)
    model = make(class_of(family, "Model"), config)
    plain, pooled = copy.deepcopy(model), copy.deepcopy(model)
    texts = texts_of(config)
    hidden = [forward(plain, text)[0][0].numpy() for text in texts]
    # Without this a model that gives the same for every text would do: these end on the same token.
    assert np.abs(hidden[0][-1] - hidden[4][-1]).max() > 1e-2

    executor = choose(model, [HiddenHead()])

    assert executor.kind == ("padded" if family in PADDED else "packed")
    assert_close(run(executor, texts), hidden)
    embeddings = run(choose(pooled, [EmbeddingHead(SentencePipeline())]), texts)
    assert_close(embeddings, [states.mean(0) for states in hidden])


@pytest.mark.parametrize("family", ALL)
def test_logits_of_texts(family: str) -> None:
    config = config_of(family, num_labels=3)
    model = make(class_of(family, "ForSequenceClassification"), config)
    texts = texts_of(config)
    plain = copy.deepcopy(model)
    expected = [forward(plain, text).logits[0].numpy() for text in texts]
    assert np.ptp(np.array(expected), axis=0).min() > 1e-2

    executor = choose(model, None)

    assert executor.kind == ("padded" if family in PADDED else "packed")
    assert_close(run(executor, texts), expected)


@pytest.mark.parametrize("family", [*PACKED, *PADDED, "Llama", "Mistral", "Qwen3"])
def test_logits_of_tokens(family: str) -> None:
    config = config_of(family, num_labels=3)
    model = make(class_of(family, "ForTokenClassification"), config)
    texts = texts_of(config)
    plain = copy.deepcopy(model)
    expected = [forward(plain, text).logits[0].numpy() for text in texts]

    executor = choose(model, [TokenHead()])

    assert executor.kind == ("padded" if family in PADDED else "packed")
    assert_close(run(executor, texts), expected)


@pytest.mark.parametrize("family", [*PACKED, *PADDED])
def test_logits_of_masks(family: str) -> None:
    config = config_of(family)
    model = make(class_of(family, "ForMaskedLM"), config)
    texts = texts_of(config)
    plain = copy.deepcopy(model)
    expected = []
    for number, text in enumerate(texts):
        # None, one or several; the first may come last.
        text.positions = np.array([[], [1], [1, 0]][number % 3], np.int64)
        text.input_ids[text.positions] = config.mask_token_id or 4
        expected.append(forward(plain, text).logits[0].numpy()[text.positions])

    executor = choose(model, [TokenHead()], mask_token_id=4)

    assert executor.kind == ("padded" if family in PADDED else "packed")
    results = run(executor, texts)
    assert [len(result) for result in results] == [len(rows) for rows in expected]
    assert_close(results, expected)
    nothing = TokenizedText(texts[0].input_ids, positions=np.array([], np.int64))
    assert [len(result) for result in run(executor, [nothing])] == [0]


def test_padding_inside_a_text_is_where_transformers_has_it() -> None:
    config = config_of("Roberta")
    model = make(transformers.RobertaModel, config)
    text = texts_of(config)[1]
    text.input_ids[[3, 4, 20]] = config.pad_token_id
    expected = forward(copy.deepcopy(model), text)[0][0].numpy()

    executor = choose(model, [HiddenHead()])

    assert executor.kind == "packed"
    assert_close(run(executor, [texts_of(config)[0], text])[1:], [expected])


def test_a_decoder_without_padding_classifies_many_texts() -> None:
    config = config_of("Qwen3", num_labels=1, pad_token_id=None)
    model = make(transformers.Qwen3ForSequenceClassification, config)
    texts = texts_of(config)
    plain = copy.deepcopy(model)
    expected = [forward(plain, text).logits[0].numpy() for text in texts]

    executor = choose(model, None)

    assert executor.kind == "packed"
    assert_close(run(executor, texts), expected)


def test_a_decoder_whose_last_token_is_that_of_padding_looks_where_transformers_does() -> None:
    config = config_of("Qwen3", num_labels=1, pad_token_id=3)
    model = make(transformers.Qwen3ForSequenceClassification, config)
    texts = texts_of(config)
    plain = copy.deepcopy(model)
    expected = [forward(plain, text).logits[0].numpy() for text in texts]

    assert_close(run(choose(model, None), texts), expected)


def test_a_head_that_pools_all_tokens() -> None:
    config = config_of("ModernBert", num_labels=2, classifier_pooling="mean")
    model = make(transformers.ModernBertForSequenceClassification, config)
    texts = texts_of(config)
    plain = copy.deepcopy(model)
    expected = [forward(plain, text).logits[0].numpy() for text in texts]

    executor = choose(model, None)

    assert executor.kind == "packed"
    assert_close(run(executor, texts), expected)


def test_a_model_whose_head_asks_more_of_the_encoder_runs_text_by_text() -> None:
    config = config_of("Longformer", attention_window=8, num_labels=2)
    model = make(transformers.LongformerForSequenceClassification, config)
    texts = [text for text in texts_of(config) if len(text) < 40]
    plain = copy.deepcopy(model)
    expected = [forward(plain, text).logits[0].numpy() for text in texts]

    executor = choose(model, None)

    assert executor.kind == "single"
    assert_close(run(executor, texts), expected)


class Mixing(transformers.BertModel):  # type: ignore[misc]
    """An encoder whose tokens look at their neighbours beside attention, so cannot be packed."""

    @functools.wraps(transformers.BertModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, True)
        return output


def test_a_model_that_cannot_be_batched_at_all_runs_text_by_text() -> None:
    model = make(Mixing, bert_config())
    texts = texts_of(model.config)
    plain = copy.deepcopy(model)
    expected = [forward(plain, text)[0][0].numpy() for text in texts]

    executor = choose(model, [HiddenHead()])

    assert executor.kind == "single"
    assert_close(run(executor, texts), expected)


def test_a_model_that_hardly_looks_at_other_tokens_is_not_trusted_in_a_batch() -> None:
    model = make(transformers.BertModel, bert_config())
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight.mul_(1e-6)

    assert choose(model, [HiddenHead()]).kind == "single"


def test_a_model_in_bfloat16_is_packed() -> None:
    config = bert_config()
    model = make(transformers.BertModel, config).to(torch.bfloat16)
    texts = texts_of(config)
    plain = copy.deepcopy(model)
    expected = [forward(plain, text)[0][0].float().numpy() for text in texts]

    executor = choose(model, [HiddenHead()])

    assert executor.kind == "packed"
    for one, other in zip(run(executor, texts), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0.08)
