"""The bytes that requests hold together."""

import pytest

from kserve.errors import RequestTooLarge, TooManyRequests
from kserve.protocol import inflight_bytes
from kserve.protocol.inflight_bytes import InflightBytes


def test_bytes_are_taken_up_to_the_limit_and_given_back() -> None:
    inflight = InflightBytes(100)

    inflight.take(60)
    inflight.take(40)
    inflight.give_back(60)
    inflight.take(60)

    assert inflight.n_bytes == 100


def test_what_does_not_fit_now_is_refused_and_takes_nothing() -> None:
    inflight = InflightBytes(100)
    inflight.take(60)

    with pytest.raises(TooManyRequests) as raised:
        inflight.take(41)

    assert raised.value.retry_after_s == 1
    assert inflight.n_bytes == 60


@pytest.mark.parametrize(("n_bytes", "n_held"), [(101, 0), (41, 60)], ids=["at once", "in pieces"])
def test_what_would_never_fit_is_too_large(n_bytes: int, n_held: int) -> None:
    inflight = InflightBytes(100)
    inflight.take(n_held)

    with pytest.raises(RequestTooLarge, match="100 bytes"):
        inflight.take(n_bytes, n_held)

    assert inflight.n_bytes == n_held


def test_the_default_is_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight_bytes, "memory_limit", lambda: 4000)

    assert InflightBytes().limit == 1000
