"""Interrupts: Ctrl-C and SIGTERM end a run once, and its clean-up is not cut short.

Each raises KeyboardInterrupt until the clean-up begins, as Ray swallows some of them; those that
come within a second count as one. From the clean-up on they are ignored: raised in its middle they
would leave a lease behind, or end in a stack of Ray's.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER_S = 1.0  # the clean-up of the first begins within it
_interrupted = threading.Event()
_raised_at = 0.0

log = logging.getLogger("lesioncam")


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle both signals so inside; the handlers of before return at the end.

    Does nothing inside another `interruptible`, and in other threads than the main one, where
    Python allows no handlers.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is _interrupt:
        yield
        return
    _interrupted.clear()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handle_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler not set from Python, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def handle_signals() -> None:
    """Install the handlers, again where Ray has replaced them.

    Raises:
        KeyboardInterrupt: there was an interrupt already, and Ray has swallowed it.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _interrupt)
        if _interrupted.is_set():
            raise KeyboardInterrupt


def ignore_signals() -> None:
    """Let nothing interrupt the clean-up that begins here."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _interrupt(*_: Any) -> None:
    global _raised_at  # noqa: PLW0603  signals are of the whole process
    if not _interrupted.is_set():
        _interrupted.set()
        log.warning("interrupted: stopping")
    elif time.monotonic() - _raised_at < TOGETHER_S:
        return
    _raised_at = time.monotonic()
    raise KeyboardInterrupt
