"""Which handlers signals have, and for how long; `tests/faults` sends them to servers."""

import os
import signal
import threading
from typing import Any

import pytest

from kserve.signals import cancel_limit, ended_by_signals, stopped_by_signals

LONG_S = 1e6
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Exited(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise where this process would end."""

    def end(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr("os._exit", end)


@pytest.mark.parametrize("sig", SIGNALS)
def test_a_signal_ends_the_process_with_code_0(sig: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]

    with pytest.raises(Exited) as exited, ended_by_signals():
        os.kill(os.getpid(), sig)

    assert exited.value.args == (0,)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_the_first_signal_is_passed_on_and_the_second_ends_the_process() -> None:
    passed: list[signal.Signals] = []

    with pytest.raises(Exited) as exited, stopped_by_signals(passed.append, LONG_S):
        os.kill(os.getpid(), signal.SIGINT)
        cancel_limit()
        os.kill(os.getpid(), signal.SIGTERM)

    assert (passed, exited.value.args) == ([signal.SIGINT], (143,))


def test_handlers_come_back_after_a_failure() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(KeyError), ended_by_signals():
        raise KeyError

    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    during: list[Any] = []

    def work() -> None:
        with stopped_by_signals(lambda sig: None, LONG_S):
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert during == [before]
