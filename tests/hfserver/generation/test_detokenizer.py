"""Text in pieces is the text of the whole, whatever the pieces."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel, Metaspace
from tokenizers.models import BPE

from hfserver.generation.detokenizer import Detokenizer, StopStrings


def _bytes_tokenizer() -> Tokenizer:
    """Make a tokenizer of one token for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    tokenizer = Tokenizer(BPE({letters[byte]: byte for byte in range(256)}, []))
    tokenizer.decoder = ByteLevel()
    return tokenizer


_BYTES = _bytes_tokenizer()


def decode_bytes(ids: Sequence[int]) -> str:
    text: str = _BYTES.decode(list(ids))
    return text


# Characters of one to four bytes, and the one that stands for bytes that are none.
_LETTERS = "ab \n\x00é\u0301€漢\ufffd😀"


@given(st.text(_LETTERS, max_size=40), st.text(_LETTERS, max_size=8))
@settings(deadline=None, derandomize=True)
def test_pieces_make_the_whole_text(text: str, context: str) -> None:
    detokenizer = Detokenizer(decode_bytes, list(context.encode()))

    pieces = [detokenizer.add(byte) for byte in text.encode()]

    assert "".join(pieces) + detokenizer.finish() == text
    # No piece shows a character that is not complete.
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_character_that_is_never_completed_comes_at_the_end() -> None:
    detokenizer = Detokenizer(decode_bytes)

    pieces = [detokenizer.add(byte) for byte in b"a" + "é".encode()[:1]]

    assert (pieces, detokenizer.finish(), detokenizer.finish()) == (["a", ""], "\ufffd", "")


def test_bytes_that_are_no_text_do_not_hold_back_the_rest() -> None:
    detokenizer = Detokenizer(decode_bytes)

    pieces = [detokenizer.add(0xFF) for _ in range(20)]

    assert "".join(pieces) + detokenizer.finish() == "\ufffd" * 20
    assert "".join(pieces[:10])


def test_space_after_the_prompt_is_kept() -> None:
    tokenizer = Tokenizer(BPE({"▁a": 0, "▁b": 1, "c": 2}, []))
    tokenizer.decoder = Metaspace()

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids))
        return text

    after_prompt = Detokenizer(decode, [0])
    at_the_beginning = Detokenizer(decode)

    assert [after_prompt.add(1), after_prompt.add(2)] == [" b", "c"]
    assert [at_the_beginning.add(1), at_the_beginning.add(1)] == ["b", " b"]


def test_tokens_without_text_give_none() -> None:
    detokenizer = Detokenizer(lambda ids: "".join("x" for i in ids if i))

    assert [detokenizer.add(token_id) for token_id in [0] * 20 + [1]] == [""] * 20 + ["x"]
    assert len(detokenizer._ids) < 10


def _cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(
    st.text("abc", max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 99), max_size=6),
)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_stop_string_is_found_however_the_text_is_cut(
    text: str, stops: list[str], places: list[int]
) -> None:
    whole = StopStrings(stops)
    expected = whole.add(text) + whole.finish()
    pieces = StopStrings(stops)

    found = ""
    for piece in _cut(text, places):
        if pieces.found is None:
            found += pieces.add(piece)
    found += pieces.finish()

    assert (found, pieces.found) == (expected, whole.found)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        assert pieces.found is not None
        assert found + pieces.found == text[: min(ends)]
    else:
        assert (found, pieces.found) == (text, None)


@pytest.mark.parametrize(
    ("piece", "shown"), [("hello", "hello"), ("hello\n", "hello"), ("a\nb", "a\nb"), ("\n", "")]
)
def test_only_what_may_begin_a_stop_string_is_held_back(piece: str, shown: str) -> None:
    assert StopStrings(["\n\n", "\nUser"]).add(piece) == shown


def test_text_without_stop_strings_is_passed_on() -> None:
    stops = StopStrings([""])

    assert (stops.add("abc"), stops.finish(), stops.found) == ("abc", "", None)
