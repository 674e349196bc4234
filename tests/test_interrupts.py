"""Interrupts: one KeyboardInterrupt reaches the run, and none its clean-up."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest

from lesioncam import interrupts
from lesioncam.interrupts import handle_signals, ignore_signals, interruptible


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """As at the start of a program; a Ray that other tests share has its own."""
    sigint = signal.signal(signal.SIGINT, signal.default_int_handler)
    sigterm = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, sigint)
    signal.signal(signal.SIGTERM, sigterm)


def interrupted(number: signal.Signals, cleaned_up: list[bool]) -> None:
    """A run that gets one signal, and three more during its clean-up."""
    with interruptible():
        try:
            with interruptible():  # as a verb inside a program that handles them already
                os.kill(os.getpid(), number)
        finally:
            ignore_signals()
            for later in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), later)
            cleaned_up.append(True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_raised_and_later_ones_do_not_reach_the_clean_up(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    cleaned_up: list[bool] = []
    with caplog.at_level(logging.INFO, "lesioncam"), pytest.raises(KeyboardInterrupt):
        interrupted(number, cleaned_up)
    assert cleaned_up
    assert caplog.messages == ["interrupted: stopping"]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_interrupts_that_come_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "TOGETHER_S", 60.0)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)


def test_an_interrupt_that_was_swallowed_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray swallows some while it starts."""
    monkeypatch.setattr(interrupts, "TOGETHER_S", 0.0)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray replaces it
        with pytest.raises(KeyboardInterrupt):
            handle_signals()
    with interruptible():
        handle_signals()  # another run
