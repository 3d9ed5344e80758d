"""Tokens for masks, against the pipeline of transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.hfserver.tiny_encoders import VOCABULARY, bert_config, make, make_tokenizer
from transformers import BertForMaskedLM, pipeline

from hfserver.inputs import Wishes
from hfserver.tasks.fill_mask import FillMask
from hfserver.tasks.results import Kind, Result
from kserve.errors import InvalidInput

ONE = "the cat sat on the [MASK]"
TWO = "Anna [MASK] from [MASK] to Berlin"


@pytest.fixture(scope="module")
def model() -> Any:
    return make(BertForMaskedLM, bert_config(tie_word_embeddings=False))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def reference(model: Any, tokenizer: Any) -> Any:
    return pipeline("fill-mask", model=model, tokenizer=tokenizer)


def resulting(tokenizer: Any, model: Any, text: str) -> Result:
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids = encoded["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    masks = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    special = [bool(is_special) for is_special in encoded["special_tokens_mask"]]
    return Result(text, ids, encoded["offset_mapping"], special, logits[masks].numpy())


def approximate(rows: Any) -> Any:
    """Give a result with scores that need only be nearly the same."""
    if isinstance(rows, list):
        return [approximate(row) for row in rows]
    return {**rows, "score": pytest.approx(rows["score"], abs=1e-6)}


@pytest.mark.parametrize("text", [ONE, TWO])
@pytest.mark.parametrize(
    ("wishes", "arguments"),
    [
        pytest.param(Wishes(), {}, id="five by default"),
        pytest.param(Wishes(top_k=2), {"top_k": 2}, id="top_k"),
        pytest.param(Wishes(top_k=-1), {"top_k": len(VOCABULARY)}, id="all"),
        pytest.param(
            Wishes(targets=("cat", "home", "dog")),
            {"targets": ["cat", "home", "dog"]},
            id="targets",
        ),
        pytest.param(
            Wishes(targets=("cat", "housing"), top_k=1),
            {"targets": ["cat", "housing"], "top_k": 1},
            id="a target of several tokens",
        ),
    ],
)
def test_gives_the_tokens_of_the_pipeline(
    text: str, wishes: Wishes, arguments: Any, model: Any, tokenizer: Any, reference: Any
) -> None:
    row = FillMask(tokenizer).row(resulting(tokenizer, model, text), Kind.RICH, wishes)

    assert row == approximate(reference(text, **arguments))


def test_gives_columns_with_an_axis_more_for_several_masks(model: Any, tokenizer: Any) -> None:
    answers = FillMask(tokenizer)
    one, two = (resulting(tokenizer, model, text) for text in (ONE, TWO))

    columns = answers.tensors([one, one], Kind.RICH, Wishes(top_k=3))
    deeper = answers.tensors([two], Kind.RICH, Wishes(top_k=3))

    assert {name: (array.shape, array.dtype.kind) for name, array in columns.items()} == {
        "token_str": ((2, 3), "O"),
        "score": ((2, 3), "f"),
        "token": ((2, 3), "i"),
        "sequence": ((2, 3), "O"),
    }
    row = answers.row(one, Kind.RICH, Wishes(top_k=3))
    assert columns["token_str"].tolist() == [[cell["token_str"] for cell in row]] * 2
    assert deeper["token"].tolist() == [
        [[cell["token"] for cell in mask] for mask in answers.row(two, Kind.RICH, Wishes(top_k=3))]
    ]


def test_the_plain_answer_is_the_text_of_the_best_tokens(model: Any, tokenizer: Any) -> None:
    answers = FillMask(tokenizer)
    results = [resulting(tokenizer, model, text) for text in (ONE, TWO)]

    rows = [answers.row(result, Kind.PLAIN, Wishes()) for result in results]
    tensors = answers.tensors(results, Kind.PLAIN, Wishes())

    assert rows == [tokenizer.decode(result.numbers.argmax(-1)) for result in results]
    assert [array.tolist() for array in tensors.values()] == [rows]


def test_probabilities_and_logits_are_those_of_the_whole_vocabulary(
    model: Any, tokenizer: Any
) -> None:
    answers = FillMask(tokenizer)
    result = resulting(tokenizer, model, TWO)
    probabilities = torch.softmax(torch.tensor(result.numbers), -1)

    row = answers.row(result, Kind.PROBABILITIES, Wishes())
    logits = answers.row(result, Kind.RAW_LOGITS, Wishes())
    tensors = answers.tensors([result], Kind.RAW_LOGITS, Wishes())

    assert [len(mask) for mask in row] == [len(VOCABULARY)] * 2
    assert row[1][7] == {7: f"{probabilities[1, 7]:.4f}"}
    assert logits[1][7] == {7: float(result.numbers[1, 7])}
    (output,) = tensors.values()
    assert output.shape == (1, 2, len(VOCABULARY))
    assert output[0, 1, 7] == str(logits[1][7])


@pytest.mark.parametrize(
    ("text", "wishes", "message"),
    [
        pytest.param("the cat", Wishes(), r"at least one \[MASK\] in the text", id="no mask"),
        pytest.param(ONE, Wishes(targets=()), "at least one word", id="no target"),
        pytest.param(ONE, Wishes(targets=("",)), "expected words, got ''", id="empty target"),
    ],
)
def test_refuses(text: str, wishes: Wishes, message: str, model: Any, tokenizer: Any) -> None:
    result = resulting(tokenizer, model, text)

    with pytest.raises(InvalidInput, match=message):
        FillMask(tokenizer).row(result, Kind.RICH, wishes)


def test_tensors_need_as_many_masks_in_every_text(model: Any, tokenizer: Any) -> None:
    results = [resulting(tokenizer, model, text) for text in (ONE, TWO)]

    with pytest.raises(InvalidInput, match="as many masks in every text .* with 1 and 2"):
        FillMask(tokenizer).tensors(results, Kind.RICH, Wishes())


def test_no_text_gives_no_row(tokenizer: Any) -> None:
    columns = FillMask(tokenizer).tensors([], Kind.RICH, Wishes())

    assert {name: array.shape for name, array in columns.items()} == dict.fromkeys(
        ("token_str", "score", "token", "sequence"), (0, 0)
    )
    assert all(isinstance(array, np.ndarray) for array in columns.values())
