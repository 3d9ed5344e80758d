"""Texts, pairs and numbers of tokens: what is added, what is cut, and what is refused."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hfserver.tiny_encoders import VOCABULARY, make_tokenizer
from transformers import ByT5Tokenizer

from hfserver.encoder.tokenization import (
    Text,
    TextTokenizer,
    TextTooLong,
    TokenizedText,
    TokenizeOptions,
)
from kserve.errors import InvalidInput

TOKENIZER = TextTokenizer(make_tokenizer(), max_length=12)
NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}


def read(*texts: Text, tokenizer: TextTokenizer = TOKENIZER, **options: Any) -> list[TokenizedText]:
    return tokenizer.tokenize_blocking(texts, TokenizeOptions(**options))


def words(text: TokenizedText) -> list[str]:
    return [VOCABULARY[number] for number in text.input_ids]


def test_a_text_gets_the_tokens_that_the_model_wants_around_it() -> None:
    (text,) = read("the cat sat")

    assert words(text) == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    assert text.token_type_ids is None
    assert (text.sequence_ids, text.offsets, text.word_ids) == (None, None, None)


def test_nothing_is_added_where_that_is_said() -> None:
    (text,) = read("the cat sat", add_special_tokens=False)

    assert words(text) == ["the", "cat", "sat"]


def test_a_pair_is_read_together_and_its_texts_are_told_apart() -> None:
    (text,) = read(("the cat", "a dog"))

    assert words(text) == ["[CLS]", "the", "cat", "[SEP]", "a", "dog", "[SEP]"]
    assert text.token_type_ids is not None
    assert text.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_model_without_types_gets_none() -> None:
    tokenizer = TextTokenizer(make_tokenizer(), 12, has_token_types=False)

    (text,) = read(("the cat", "a dog"), tokenizer=tokenizer)

    assert text.token_type_ids is None


def test_numbers_of_tokens_are_taken_as_they_are() -> None:
    (text,) = read([7, 8, 9])

    assert text.input_ids.tolist() == [7, 8, 9]


def test_where_each_token_stands_is_told_on_request() -> None:
    (text,) = read(("the walked", "dog"), with_offsets=True)

    assert words(text) == ["[CLS]", "the", "walk", "##ed", "[SEP]", "dog", "[SEP]"]
    assert text.offsets is not None
    assert text.offsets.tolist() == [[0, 0], [0, 3], [4, 8], [8, 10], [0, 0], [0, 3], [0, 0]]
    assert text.word_ids is not None
    assert text.word_ids.tolist() == [-1, 0, 1, 1, -1, 0, -1]
    assert text.sequence_ids is not None
    assert text.sequence_ids.tolist() == [-1, 0, 0, 0, -1, 1, -1]


LONG = "the cat sat on a mat and the dog ran far away and came back home"


def test_the_end_of_a_long_text_is_cut_and_what_was_added_stays() -> None:
    (text,) = read(LONG, truncation="right")

    assert words(text) == ["[CLS]", *LONG.split()[:10], "[SEP]"]
    assert text.n_cut == 6


def test_the_beginning_of_a_long_text_is_cut_and_what_was_added_stays() -> None:
    (text,) = read(LONG, truncation="left", with_offsets=True)

    assert words(text) == ["[CLS]", *LONG.split()[6:], "[SEP]"]
    assert text.offsets is not None
    assert text.offsets[1].tolist() == [LONG.index("and the"), LONG.index("and the") + 3]


def test_a_long_text_is_refused_where_nothing_may_be_cut() -> None:
    with pytest.raises(TextTooLong) as refused:
        read("the cat", LONG, truncation="none")

    assert str(refused.value) == (
        "text 1: expected at most 12 tokens, got 18; shorten it, or ask for truncation"
    )
    assert (refused.value.n_tokens, refused.value.max_length) == (18, 12)


def test_a_request_may_ask_for_less_than_the_model_takes_and_not_for_more() -> None:
    short, same = read(LONG, max_length=5)[0], read(LONG, max_length=500)[0]

    assert (len(short), len(same)) == (5, 12)


def test_long_numbers_are_cut_too() -> None:
    right, left = read(list(range(5, 25)))[0], read(list(range(5, 25)), truncation="left")[0]

    assert right.input_ids.tolist() == list(range(5, 17))
    assert left.input_ids.tolist() == list(range(13, 25))


@given(
    first=st.lists(st.sampled_from(VOCABULARY[5:15]), max_size=16),
    # Of a pair whose second is empty transformers makes a single text.
    second=st.none() | st.lists(st.sampled_from(VOCABULARY[5:15]), min_size=1, max_size=16),
    max_length=st.integers(4, 20),
    side=st.sampled_from(["left", "right"]),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_texts_are_cut_as_transformers_cuts_them(
    first: list[str], second: list[str] | None, max_length: int, side: Literal["left", "right"]
) -> None:
    theirs = make_tokenizer(truncation_side=side)
    ours = TextTokenizer(make_tokenizer(), max_length)
    parts: Sequence[str] = [" ".join(each) for each in (first, second) if each is not None]
    text: Text = parts[0] if second is None else (parts[0], parts[1])

    expected = theirs(*parts, truncation="longest_first", max_length=max_length)
    (actual,) = read(text, tokenizer=ours, truncation=side)

    assert actual.input_ids.tolist() == expected["input_ids"]
    types = [0] * len(actual) if actual.token_type_ids is None else actual.token_type_ids.tolist()
    assert types == expected["token_type_ids"]


def test_a_prompt_is_put_before_a_text_and_its_tokens_are_counted() -> None:
    (text,) = read("the cat", prompt="query : ")

    assert words(text) == ["[CLS]", "query", ":", "the", "cat", "[SEP]"]
    # With [CLS] and without [SEP].
    assert text.n_prompt_tokens == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ([5, -1], r"text 0: expected numbers of tokens from 0 to \d+, got -1"),
        ([5, 5000], r"text 0: expected numbers of tokens from 0 to \d+, got 5000"),
        ([True], "text 0: expected text or numbers of tokens, got True"),
        ([1.5], "text 0: expected text or numbers of tokens, got 1.5"),
        ("half \ud800 a pair", "texts from 0: expected strings of Unicode characters"),
        (("a", 5), "texts from 0: expected strings of Unicode characters"),
    ],
)
def test_what_is_no_text_is_refused(text: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read(text)


def test_many_texts_are_read_on_threads_and_come_back_in_order() -> None:
    whole = VOCABULARY[5:25]
    texts = [f"the {word}" for word in whole] * 20

    read_texts = asyncio.run(TOKENIZER.tokenize(texts))

    assert [words(text)[2] for text in read_texts] == [*whole] * 20


def test_a_refusal_names_the_text_among_many() -> None:
    texts = ["the cat"] * 100 + [LONG]

    with pytest.raises(TextTooLong, match="text 100: "):
        asyncio.run(TOKENIZER.tokenize(texts, TokenizeOptions(truncation="none")))


def test_what_the_tokenizer_was_saved_with_neither_cuts_nor_pads() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=16)

    (text,) = read("the cat sat on", tokenizer=TextTokenizer(tokenizer, 12))

    assert words(text) == ["[CLS]", "the", "cat", "sat", "on", "[SEP]"]


def test_a_tokenizer_in_python_reads_the_same_way() -> None:
    theirs = ByT5Tokenizer()
    ours = TextTokenizer(ByT5Tokenizer(), 6)

    whole, cut = read("abc", "abcdefgh", tokenizer=ours)

    assert whole.input_ids.tolist() == theirs("abc")["input_ids"]
    assert cut.input_ids.tolist() == theirs("abcde")["input_ids"]
    with pytest.raises(InvalidInput, match="this model's tokenizer, ByT5Tokenizer, gives no"):
        read("abc", tokenizer=ours, with_offsets=True)


def test_tokens_and_texts_of_numbers() -> None:
    ids = [NUMBERS["[CLS]"], NUMBERS["the"], NUMBERS["cat"]]

    assert TOKENIZER.tokens(ids) == ["[CLS]", "the", "cat"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "the cat"
    with pytest.raises(InvalidInput, match="got 999"):
        TOKENIZER.decode([999])
