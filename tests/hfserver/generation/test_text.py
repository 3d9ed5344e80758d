"""Tokens and text, with the tokenizers of transformers."""

from typing import Any

import pytest
from tests.hfserver.generation.tiny_generators import N_BYTES, VOCABULARY, tokenizer

from hfserver.generation.text import TextCodec
from kserve.protocol.rest.openai.errors import OpenAIError


@pytest.fixture
def codec() -> TextCodec:
    return TextCodec(tokenizer(), VOCABULARY)


def test_text_survives_the_way_to_tokens_and_back(codec: TextCodec) -> None:
    assert codec.decode(codec.encode(" a text, é")) == " a text, é"


def test_special_tokens_are_text_only_where_asked_for(codec: TextCodec) -> None:
    ids = [*b"a", N_BYTES]

    assert (codec.decode(ids), codec.decode(ids, False)) == ("a", "a</s>")


def test_name_of_a_token_is_its_text_within_others(codec: TextCodec) -> None:
    assert [codec.name(token_id) for token_id in b" a"] == [" ", "a"]
    assert codec.name(N_BYTES) == "</s>"
    # A byte that is no character has the tokenizer's name for it.
    assert codec.name(0xC3) not in ("", "\ufffd")


@pytest.mark.parametrize("token_id", [-1, VOCABULARY])
def test_unknown_token_is_refused(token_id: int, codec: TextCodec) -> None:
    reason = f"'prompt': expected token ids from 0 .*, got {token_id}"
    with pytest.raises(OpenAIError, match=reason) as caught:
        codec.check([5, token_id], "prompt")
    assert caught.value.response.error.param == "prompt"


class _Slow:
    """A tokenizer in Python: a token for each character."""

    is_fast = False

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        class Encoding:
            input_ids = [ord(character) for character in text]

        return Encoding

    def decode(
        self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        assert not clean_up_tokenization_spaces
        return "".join(map(chr, ids))

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return f"token {token_id}"


def test_tokenizer_without_a_fast_one_decodes_by_itself() -> None:
    codec = TextCodec(_Slow(), 1000)

    assert (codec.encode("ab"), codec.decode([97, 98]), codec.name(98)) == ([97, 98], "ab", "b")
