import threading

import pytest

from lesioncam.telemetry import Heartbeat


def test_a_beat_goes_on_until_it_is_stopped_and_tells_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lesioncam.telemetry._BEAT_SECONDS", 0.001)
    left, told, beaten = 5, list[int](), threading.Event()

    def show() -> None:
        told.append(left)
        if len(told) == 3:
            beaten.set()

    beat = Heartbeat(show)
    assert beaten.wait(60)
    left = 0
    beat.stop()
    assert told[0] == 5
    assert told[-1] == 0
    assert not any(thread.name == "telemetry" for thread in threading.enumerate())
