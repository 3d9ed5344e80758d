"""Memory that has been freed goes back to the system."""

import ctypes
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve import memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only")
def test_trim_returns_what_lies_between_blocks_in_use() -> None:
    # Each too small for a mapping of its own; the last one keeps the heap from shrinking by itself.
    blocks = [bytes(64 << 10) for _ in range(1000)]
    last = bytes(64 << 10)
    del blocks
    before = resident_bytes()

    memory.trim()

    assert before - resident_bytes() > 32 << 20
    assert len(last) == 64 << 10


def test_trim_does_nothing_where_the_c_library_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._malloc_trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())

    memory.trim()

    monkeypatch.undo()
    memory._malloc_trim.cache_clear()


class Circle:
    """Refers to itself, so that only the collector finds it."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def not_frozen() -> Iterator[None]:
    """Start from a process that keeps nothing out, whatever another test has left."""
    gc.unfreeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def is_looked_at(circle: Circle) -> bool:
    return any(found is circle for found in gc.get_objects())


def test_what_is_there_is_not_looked_at_inside_the_block(not_frozen: None) -> None:
    circle = Circle()

    with memory.frozen():
        inside = is_looked_at(circle)

    assert (inside, is_looked_at(circle)) == (False, True)


def test_garbage_is_found_before_it_would_be_kept(not_frozen: None) -> None:
    gone = weakref.ref(Circle())

    with memory.frozen():
        assert gone() is None


def test_release_finds_what_was_kept_and_is_garbage_now(not_frozen: None) -> None:
    circle, other = Circle(), Circle()
    gone = weakref.ref(circle)

    with memory.frozen():
        del circle
        gc.collect()
        before = gone()
        assert before is not None
        del before
        memory.release()
        assert gone() is None
        assert not is_looked_at(other)


def test_release_keeps_nothing_where_nothing_was_kept(not_frozen: None) -> None:
    circle = Circle()
    gone = weakref.ref(Circle())

    memory.release()

    assert (gone(), is_looked_at(circle)) == (None, True)


def test_what_comes_later_is_kept_too_inside_the_block_only(not_frozen: None) -> None:
    with memory.frozen():
        circle = Circle()
        gone = weakref.ref(Circle())
        memory.freeze_more()
        inside = (gone(), is_looked_at(circle))
    memory.freeze_more()

    assert inside == (None, False)
    assert is_looked_at(circle)
