"""The texts that ways to embed are compared on."""

from benchmarks.texts import mixed_texts, short_texts


def test_the_same_texts_come_again_and_no_text_is_there_twice() -> None:
    assert mixed_texts(50) == mixed_texts(50)
    assert len(set(mixed_texts(50))) == 50


def test_short_texts_have_the_words_of_a_question_and_mixed_ones_up_to_a_page() -> None:
    short = [len(text.split()) for text in short_texts(300)]
    mixed = [len(text.split()) for text in mixed_texts(300)]

    assert (min(short), max(short)) == (3, 13)
    assert min(mixed) < 10
    assert 170 < max(mixed) < 190
