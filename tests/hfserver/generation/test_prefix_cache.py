"""Blocks by what comes before them."""

import torch

from hfserver.generation.prefix_cache import BLOCK_TOKENS, PrefixCache, block_names


def block(value: int) -> list[torch.Tensor]:
    # 16 bytes.
    return [torch.full((4,), float(value))]


def test_only_whole_blocks_have_a_name() -> None:
    assert len(block_names(range(BLOCK_TOKENS - 1), "")) == 0
    assert len(block_names(range(2 * BLOCK_TOKENS + 5), "")) == 2


def test_name_depends_on_all_that_comes_before_and_on_the_salt() -> None:
    tokens = list(range(3 * BLOCK_TOKENS))
    changed = [99, *tokens[1:]]

    names = block_names(tokens, "")

    assert block_names(tokens[: 2 * BLOCK_TOKENS], "") == names[:2]
    assert not set(names) & set(block_names(changed, ""))
    assert not set(names) & set(block_names(tokens, "a"))


def test_blocks_are_found_up_to_the_first_that_is_missing() -> None:
    cache = PrefixCache(1000)
    cache.add([b"a", b"b", b"c"], [block(1), block(2), block(3)])

    found = cache.find([b"a", b"b", b"x", b"c"])

    assert [int(tensors[0][0]) for tensors in found] == [1, 2]
    assert cache.n_known([b"a", b"b", b"x"]) == 2
    assert cache.find([b"x"]) == []


def test_least_recently_used_blocks_go_first_and_last_ones_of_a_chain_before_its_first() -> None:
    cache = PrefixCache(64)
    cache.add([b"a", b"b"], [block(1), block(2)])
    cache.add([b"c", b"d"], [block(3), block(4)])
    cache.find([b"a", b"b"])

    cache.add([b"e"], [block(5)])

    assert cache.n_bytes == 64
    assert cache.n_known([b"c", b"d"]) == 1
    assert cache.n_known([b"a", b"b"]) == 2
    assert cache.n_known([b"e"]) == 1


def test_only_new_blocks_of_a_chain_are_added() -> None:
    cache = PrefixCache(1000)
    cache.add([b"a"], [block(1)])

    cache.add([b"a", b"b"], [block(2)])

    assert cache.n_bytes == 32
    assert [int(tensors[0][0]) for tensors in cache.find([b"a", b"b"])] == [1, 2]


def test_cache_without_room_keeps_nothing() -> None:
    cache = PrefixCache(15)

    cache.add([b"a"], [block(1)])

    assert (cache.n_bytes, cache.find([b"a"]), cache.has_room(16)) == (0, [], False)
