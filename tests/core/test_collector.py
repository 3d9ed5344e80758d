"""What the collector looks at, and what it finds."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from kserve import collector


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

    with collector.frozen():
        inside = is_looked_at(circle)

    assert (inside, is_looked_at(circle)) == (False, True)


def test_garbage_is_found_before_it_would_be_kept(not_frozen: None) -> None:
    gone = weakref.ref(Circle())

    with collector.frozen():
        assert gone() is None


def test_release_finds_what_was_kept_and_is_garbage_now(not_frozen: None) -> None:
    circle, other = Circle(), Circle()
    gone = weakref.ref(circle)

    with collector.frozen():
        del circle
        gc.collect()
        before = gone()
        assert before is not None
        del before
        collector.release()
        assert gone() is None
        assert not is_looked_at(other)


def test_release_keeps_nothing_where_nothing_was_kept(not_frozen: None) -> None:
    circle = Circle()
    gone = weakref.ref(Circle())

    collector.release()

    assert (gone(), is_looked_at(circle)) == (None, True)


def test_what_comes_later_is_kept_too_inside_the_block_only(not_frozen: None) -> None:
    with collector.frozen():
        circle = Circle()
        gone = weakref.ref(Circle())
        collector.freeze_more()
        inside = (gone(), is_looked_at(circle))
    collector.freeze_more()

    assert inside == (None, False)
    assert is_looked_at(circle)


@pytest.mark.parametrize(
    ("before", "inside"),
    [
        pytest.param((700, 10, 10), (20_000, 10, 10), id="Python's own"),
        pytest.param((500, 5, 5), (500, 5, 5), id="set by the user"),
    ],
)
def test_young_garbage_is_looked_for_less_often_inside_the_block(
    before: tuple[int, int, int], inside: tuple[int, int, int], not_frozen: None
) -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(*before)

    with collector.frozen():
        seen = gc.get_threshold()
    after = gc.get_threshold()
    gc.set_threshold(*thresholds)

    assert (seen, after) == (inside, before)
