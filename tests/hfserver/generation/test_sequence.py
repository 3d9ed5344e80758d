"""How a sequence ends, and what text it gives."""

from typing import Any

import pytest

from hfserver.generation.settings import TokenRules

pytestmark = pytest.mark.anyio


async def test_end_of_sequence_token_ends_and_is_no_text(executor: Any, make_engine: Any) -> None:
    engine = make_engine(executor, TokenRules(eos_ids=frozenset({5})))

    answer = await engine.ask([1], max_tokens=20)

    assert answer.tokens == {0: [2, 3, 4, 5]}
    assert answer.text == {0: "<2><3><4>"}
    assert answer.finish == {0: ("stop", None)}


async def test_end_of_sequence_token_may_be_ignored(executor: Any, make_engine: Any) -> None:
    engine = make_engine(executor, TokenRules(eos_ids=frozenset({5})))

    answer = await engine.ask([3], max_tokens=4, ignore_eos=True)

    assert answer.tokens == {0: [4, 5, 6, 7]}
    assert answer.text == {0: "<4><5><6><7>"}


@pytest.mark.parametrize(("include", "text"), [(False, "<2><3>"), (True, "<2><3><4>")])
async def test_stop_token_ends_and_is_said(
    include: bool, text: str, executor: Any, make_engine: Any
) -> None:
    answer = await make_engine(executor).ask(
        [1], max_tokens=20, stop_token_ids=[4, 9], include_stop=include
    )

    assert (answer.text, answer.finish) == ({0: text}, {0: ("stop", 4)})


@pytest.mark.parametrize(("include", "text"), [(False, "<2><3"), (True, "<2><3><4")])
async def test_stop_string_across_tokens_is_cut_off(
    include: bool, text: str, executor: Any, make_engine: Any
) -> None:
    answer = await make_engine(executor).ask([1], max_tokens=20, stop=["><4"], include_stop=include)

    assert answer.tokens == {0: [2, 3, 4]}
    assert (answer.text, answer.finish) == ({0: text}, {0: ("stop", "><4")})


async def test_text_that_is_held_back_comes_with_the_end(executor: Any, make_engine: Any) -> None:
    answer = await make_engine(executor).ask([1], max_tokens=2, stop=["<3><9>"])

    assert (answer.text, answer.finish) == ({0: "<2><3>"}, {0: ("length", None)})


async def test_nothing_stops_before_min_tokens(executor: Any, make_engine: Any) -> None:
    engine = make_engine(executor, TokenRules(eos_ids=frozenset({3})))

    answer = await engine.ask([1], max_tokens=20, min_tokens=3, stop=["<2>"], stop_token_ids=[4, 0])

    # Three tokens that are not 3 and not 4: the likeliest of what is left is the first.
    assert answer.tokens[0][:1] == [2]
    assert len(answer.tokens[0]) >= 3
    assert answer.text[0].startswith("<2>")


async def test_first_and_last_token_may_be_forced(executor: Any, make_engine: Any) -> None:
    engine = make_engine(executor, TokenRules(forced_bos_id=50, forced_eos_id=7))

    answer = await engine.ask([1], max_tokens=4)

    assert answer.tokens == {0: [50, 51, 52, 7]}


async def test_log_probability_of_each_token_comes_with_it(executor: Any, make_engine: Any) -> None:
    answer = await make_engine(executor).ask([1], max_tokens=2, logprobs=1)

    assert [one.token_id for one in answer.logprobs[0]] == [2, 3]
    assert [one.top[0][0] for one in answer.logprobs[0]] == [2, 3]


async def test_special_tokens_are_text_where_asked_for(executor: Any, make_engine: Any) -> None:
    def decode(ids: Any, skip_special_tokens: bool) -> str:
        return "".join(f"<{i}>" for i in ids if i < 50 or not skip_special_tokens)

    engine = make_engine(executor, decode=decode)

    skipped = await engine.ask([48], max_tokens=3)
    shown = await engine.ask([48], max_tokens=3, skip_special_tokens=False)

    assert (skipped.text, shown.text) == ({0: "<49>"}, {0: "<49><50><51>"})
