"""Models of every task, small and of chance, as directories."""

from pathlib import Path
from typing import Any

import pytest
from tests.hfserver.tiny_encoders import bert_config, make, save
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

LABELS = {0: "bad", 1: "fair", 2: "good"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give a directory of each kind: classes, labels, ranker, tags, masks, embeddings."""
    root = tmp_path_factory.mktemp("models")
    models: dict[str, Any] = {
        "classes": make(BertForSequenceClassification, bert_config(id2label=LABELS)),
        "labels": make(
            BertForSequenceClassification,
            bert_config(id2label=LABELS, problem_type="multi_label_classification"),
        ),
        "ranker": make(BertForSequenceClassification, bert_config(num_labels=1)),
        "tags": make(BertForTokenClassification, bert_config(id2label=TAGS)),
        "masks": make(BertForMaskedLM, bert_config(tie_word_embeddings=False)),
        "embeddings": make(BertModel, bert_config()),
    }
    return {name: save(root / name, model) for name, model in models.items()}
