"""The bytes that requests hold together."""

import pytest

from kserve.config import ServerConfig
from kserve.errors import RequestTooLarge, TooManyRequests
from kserve.protocol.rest import intake as intake_module
from kserve.protocol.rest.intake import Intake


def test_bytes_are_taken_up_to_the_limit_and_given_back() -> None:
    intake = Intake(max_inflight_bytes=100)

    intake.take(60)
    intake.take(40)
    intake.give_back(60)
    intake.take(60)

    assert intake.n_inflight_bytes == 100


def test_what_does_not_fit_now_is_refused_and_takes_nothing() -> None:
    intake = Intake(max_inflight_bytes=100)
    intake.take(60)

    with pytest.raises(TooManyRequests) as raised:
        intake.take(41)

    assert raised.value.retry_after_s == 1
    assert intake.n_inflight_bytes == 60


@pytest.mark.parametrize(("n_bytes", "n_held"), [(101, 0), (41, 60)], ids=["at once", "in pieces"])
def test_what_would_never_fit_is_too_large(n_bytes: int, n_held: int) -> None:
    intake = Intake(max_inflight_bytes=100)
    intake.take(n_held)

    with pytest.raises(RequestTooLarge, match="100 bytes"):
        intake.take(n_bytes, n_held)

    assert intake.n_inflight_bytes == n_held


def test_the_default_is_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "memory_limit", lambda: 4000)

    defaults = [Intake(), Intake.from_config(ServerConfig())]

    assert [intake.max_inflight_bytes for intake in defaults] == [1000, 1000]


def test_the_settings_of_a_server_are_taken_over() -> None:
    config = ServerConfig(
        max_request_bytes=1,
        max_inflight_bytes=2,
        header_timeout_s=3,
        body_timeout_s=4,
        send_timeout_s=5,
    )

    intake = Intake.from_config(config)

    assert (
        intake.max_request_bytes,
        intake.max_inflight_bytes,
        intake.header_timeout_s,
        intake.body_timeout_s,
        intake.send_timeout_s,
    ) == (1, 2, 3, 4, 5)
