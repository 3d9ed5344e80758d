"""Entities, against the pipeline of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.hfserver.tiny_encoders import bert_config, make, make_tokenizer, save
from transformers import (
    AutoTokenizer,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from hfserver.inputs import Wishes
from hfserver.options import STRATEGIES
from hfserver.tasks.results import Kind, Result
from hfserver.tasks.token_classification import TokenClassification, Words, offset_mapping
from kserve.errors import InvalidInput

LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC"}
TEXTS = [
    "Anna walked from Berlin to the house",
    "the cats jumping over , far away came Xanthippe home and",
    "walking",
    "",
]


def resulting(tokenizer: Any, model: Any, text: str) -> Result:
    """Give what the engine would give for a text alone."""
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0]
    return Result(
        text,
        encoded["input_ids"],
        encoded["offset_mapping"],
        [bool(is_special) for is_special in encoded["special_tokens_mask"]],
        logits.numpy(),
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return make(BertForTokenClassification, bert_config(id2label=LABELS))


def byte_tokenizer(directory: Path) -> Any:
    """Make a tokenizer that marks words and not what goes on with one, as RoBERTa's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=40, special_tokens=["<pad>", "<unk>"], initial_alphabet=[]
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_max_length=64
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_gives_the_entities_of_the_pipeline(
    strategy: str, kind: str, model: Any, tmp_path: Path
) -> None:
    made = make_tokenizer() if kind == "wordpiece" else byte_tokenizer(tmp_path)
    save(tmp_path, model, made)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    reference = pipeline("ner", model=model, tokenizer=tokenizer, aggregation_strategy=strategy)
    answers = TokenClassification(list(LABELS.values()), Words.of(tokenizer))

    rows = [
        answers.row(resulting(tokenizer, model, text), Kind.RICH, Wishes(strategy=strategy))
        for text in TEXTS[:3]
    ]

    expected = [reference(text) for text in TEXTS[:3]]
    for row in expected:
        for entity in row:
            entity["score"] = pytest.approx(float(entity["score"]), abs=1e-6)
    assert any(rows)
    assert rows == expected


def test_gives_the_numbers_of_the_classes_in_a_list_and_pads_tensors(model: Any) -> None:
    tokenizer = make_tokenizer()
    answers = TokenClassification(list(LABELS.values()), Words.of(tokenizer))
    results = [resulting(tokenizer, model, text) for text in TEXTS]

    rows = [answers.row(result, Kind.PLAIN, Wishes()) for result in results]
    tensors = answers.tensors(results, Kind.PLAIN, Wishes())

    lengths = [len(result.ids) for result in results]
    assert rows == [[result.numbers.argmax(axis=-1).tolist()] for result in results]
    (output,) = tensors.values()
    assert (str(output.dtype), output.shape) == ("int64", (4, 1, max(lengths)))
    assert [row[0][: lengths[place]] for place, row in enumerate(output.tolist())] == [
        row[0] for row in rows
    ]
    assert all((row[0, lengths[place] :] == -100).all() for place, row in enumerate(output))


@pytest.mark.parametrize("kind", [Kind.PROBABILITIES, Kind.RAW_LOGITS])
def test_gives_values_by_number_and_their_text_in_tensors(kind: Kind, model: Any) -> None:
    tokenizer = make_tokenizer()
    answers = TokenClassification(list(LABELS.values()), Words.of(tokenizer))
    results = [resulting(tokenizer, model, text) for text in TEXTS[1:3]]

    rows = [answers.row(result, kind, Wishes()) for result in results]
    tensors = answers.tensors(results, kind, Wishes())

    logits = torch.tensor(results[0].numbers)
    values = torch.softmax(logits, -1) if kind is Kind.PROBABILITIES else logits
    assert [list(token) for token in rows[0]] == [[0, 1, 2, 3, 4, 5]] * len(results[0].ids)
    assert [list(token.values()) for token in rows[0]] == pytest.approx(
        [pytest.approx(token, abs=5.1e-5) for token in values.tolist()]
    )
    (output,) = tensors.values()
    assert output.shape == (2, len(results[0].ids))
    assert output[0].tolist() == [str(token) for token in rows[0]]
    assert output[1].tolist()[len(results[1].ids) :] == ["{}"] * (
        len(results[0].ids) - len(results[1].ids)
    )


def test_offsets_are_padded_with_zeros(model: Any) -> None:
    results = [resulting(make_tokenizer(), model, text) for text in (TEXTS[0], "cat")]

    offsets = offset_mapping(results)

    assert offsets.shape == (2, len(results[0].ids), 2)
    assert offsets[0].tolist() == [list(pair) for pair in results[0].offsets or ()]
    assert offsets[1].tolist()[:3] == [[0, 0], [0, 3], [0, 0]]
    assert not offsets[1][3:].any()


def test_a_pair_and_a_tokenizer_without_offsets_are_refused(model: Any) -> None:
    tokenizer = make_tokenizer()
    answers = TokenClassification(list(LABELS.values()), Words.of(tokenizer))
    numbers = np.zeros((1, 6), np.float32)

    with pytest.raises(InvalidInput, match="got a pair of texts"):
        answers.row(Result(("a", "b"), [5], None, [False], numbers), Kind.RICH, Wishes())
    with pytest.raises(InvalidInput, match="has no offsets"):
        offset_mapping([Result("a", [5], None, [False], numbers)])


def test_without_offsets_entities_have_no_place(model: Any) -> None:
    tokenizer = make_tokenizer()
    answers = TokenClassification(list(LABELS.values()), Words.of(tokenizer))
    numbers = np.eye(6, dtype=np.float32)[[1, 2]]
    result = Result("the cat", [5, 6], None, [False, False], numbers)

    (entity,) = answers.row(result, Kind.RICH, Wishes())

    assert (entity["entity_group"], entity["word"]) == ("PER", "the cat")
    assert (entity["start"], entity["end"]) == (None, None)
