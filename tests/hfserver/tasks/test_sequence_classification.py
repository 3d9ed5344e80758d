"""Labels of texts, against the pipeline of transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.hfserver.tiny_encoders import bert_config, make, make_tokenizer
from transformers import BertForSequenceClassification, pipeline

from hfserver.inputs import Wishes
from hfserver.tasks.results import Kind, Result
from hfserver.tasks.sequence_classification import Labels, SequenceClassification

TEXTS = ["the cat sat on a mat", "Anna came back from Berlin", "far away"]
LABELS = {0: "bad", 1: "fair", 2: "good"}


def making(**kwargs: Any) -> Any:
    return make(BertForSequenceClassification, bert_config(**kwargs))


def resulting(model: Any, text: str) -> Result:
    encoded = make_tokenizer()(text, return_special_tokens_mask=True)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0]
    return Result(text, encoded["input_ids"], None, [], logits.numpy())


def approximate(rows: Any) -> Any:
    if isinstance(rows, list):
        return [approximate(row) for row in rows]
    return {**rows, "score": pytest.approx(rows["score"], abs=1e-6)}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"id2label": LABELS}, id="classes"),
        pytest.param({"num_labels": 4}, id="classes without names"),
        pytest.param(
            {"id2label": LABELS, "problem_type": "multi_label_classification"}, id="several labels"
        ),
        pytest.param({"num_labels": 1}, id="one label"),
        pytest.param({"num_labels": 1, "problem_type": "regression"}, id="regression"),
    ],
)
@pytest.mark.parametrize(
    ("wishes", "arguments"),
    [
        pytest.param(Wishes(), {}, id="the best"),
        pytest.param(Wishes(top_k=2), {"top_k": 2}, id="the best two"),
        pytest.param(Wishes(top_k=-1), {"top_k": None}, id="all"),
        pytest.param(
            Wishes(function="none", top_k=1), {"function_to_apply": "none", "top_k": 1}, id="logits"
        ),
        pytest.param(
            Wishes(function="sigmoid", top_k=3),
            {"function_to_apply": "sigmoid", "top_k": 3},
            id="sigmoid",
        ),
        pytest.param(
            Wishes(function="softmax", top_k=3),
            {"function_to_apply": "softmax", "top_k": 3},
            id="softmax",
        ),
    ],
)
def test_gives_the_labels_of_the_pipeline(config: Any, wishes: Wishes, arguments: Any) -> None:
    model = making(**config)
    reference = pipeline("text-classification", model=model, tokenizer=make_tokenizer())
    answers = SequenceClassification(Labels.from_config(model.config))

    rows = [answers.row(resulting(model, text), Kind.RICH, wishes) for text in TEXTS]

    assert rows == approximate(reference(TEXTS, **arguments))


def test_gives_columns_with_an_axis_more_for_several_labels() -> None:
    model = making(id2label=LABELS)
    answers = SequenceClassification(Labels.from_config(model.config))
    results = [resulting(model, text) for text in TEXTS]

    best = answers.tensors(results, Kind.RICH, Wishes())
    both = answers.tensors(results, Kind.RICH, Wishes(top_k=2))

    rows = [answers.row(result, Kind.RICH, Wishes(top_k=2)) for result in results]
    assert best["label"].tolist() == [row[0]["label"] for row in rows]
    assert {best["score"].dtype, both["score"].dtype} == {np.dtype(np.float32)}
    assert both["label"].tolist() == [[cell["label"] for cell in row] for row in rows]
    assert both["score"].tolist() == [[cell["score"] for cell in row] for row in rows]


def test_gives_the_numbers_of_classes_and_values_by_number() -> None:
    model = making(id2label=LABELS)
    answers = SequenceClassification(Labels.from_config(model.config))
    results = [resulting(model, text) for text in TEXTS]
    logits = torch.tensor(np.stack([result.numbers for result in results]))
    expected = {
        Kind.PLAIN: logits.argmax(-1).tolist(),
        Kind.RAW_LOGITS: [dict(enumerate(row)) for row in logits.tolist()],
        Kind.PROBABILITIES: [
            {number: float(f"{value:.4f}") for number, value in enumerate(row)}
            for row in torch.softmax(logits, -1)
        ],
    }

    rows = {kind: [answers.row(r, kind, Wishes()) for r in results] for kind in expected}
    tensors = {kind: answers.tensors(results, kind, Wishes())["output-0"] for kind in expected}

    assert rows == expected
    assert tensors[Kind.PLAIN].dtype == np.int64
    assert tensors[Kind.PLAIN].tolist() == expected[Kind.PLAIN]
    for kind in (Kind.RAW_LOGITS, Kind.PROBABILITIES):
        assert tensors[kind].tolist() == [str(row) for row in rows[kind]]


def test_no_text_gives_no_row() -> None:
    answers = SequenceClassification(Labels(("a", "b"), "softmax"))

    columns = answers.tensors([], Kind.RICH, Wishes(top_k=-1))

    assert {name: array.shape for name, array in columns.items()} == {
        "label": (0, 2),
        "score": (0, 2),
    }
