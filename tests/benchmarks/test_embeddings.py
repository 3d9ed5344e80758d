"""The page of ways to embed, and how they are seen to agree before they are measured."""

from typing import Any

import numpy as np
import pytest
from benchmarks.embeddings import (
    HTTP,
    ONE_BY_ONE,
    Figures,
    _is_right,
    _request,
    check,
    measure_call,
    page,
    table,
)


def figures(*rates: float, cpu: float = 0.5) -> Figures:
    made = Figures()
    for rate in rates:
        made.add(rate, cpu)
    return made


def test_ratios_are_to_texts_one_by_one_of_the_same_kind() -> None:
    rows = {
        ("mixed", ONE_BY_ONE): figures(10, 30, 20),
        ("mixed", HTTP): figures(40, 50, 60, cpu=1.0),
        ("short", ONE_BY_ONE): figures(100),
    }

    lines = table(rows).splitlines()[2:]

    assert lines == [
        "| mixed | one by one | 20 | 10 to 30 | 1.00 | 40 | 1.00 |",
        "| mixed | ours, HTTP, 32 connections | 50 | 40 to 60 | 2.50 | 50 | 1.25 |",
        "| short | one by one | 100 | 100 to 100 | 1.00 | 200 | 1.00 |",
    ]
    assert page(rows, ["a note"]).endswith(f"{lines[-1]}\n\n- a note\n")


def test_a_way_that_gives_other_embeddings_is_not_measured() -> None:
    right: Any = lambda texts: np.ones((len(texts), 2))  # noqa: E731
    wrong: Any = lambda texts: np.full((len(texts), 2), 1.001)  # noqa: E731

    check({ONE_BY_ONE: right, "ours": right}, ["a"])
    with pytest.raises(RuntimeError, match="ours: 1.0e-03 from one by one"):
        check({ONE_BY_ONE: right, "ours": wrong}, ["a"])


def test_embeddings_are_counted_not_rounds() -> None:
    n_embedded = 0

    def embed(texts: Any) -> None:
        nonlocal n_embedded
        n_embedded += len(texts)
        sum(range(10_000))

    measured = Figures()
    measure_call(embed, ["a", "b", "c"], 0.05, measured)

    assert n_embedded % 3 == 0
    assert 0 < measured.rates[0] * 0.05 <= n_embedded * 1.01


def test_a_request_is_one_text_and_its_answer_an_embedding() -> None:
    head, _, body = _request("the cat").partition(b"\r\n\r\n")

    assert b"Content-Length: %d" % len(body) in head
    assert body == b'{"model":"m","input":"the cat","encoding_format":"base64"}'
    assert _is_right(b'{"data":[{"object":"embedding","embedding":"' + b"A" * 2048 + b'"}]}')
    assert not _is_right(b'{"error":{}}')
