import threading

import pytest

from lesioncam.telemetry import Heartbeat


def test_a_heartbeat_updates_until_it_is_stopped_and_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lesioncam.telemetry._HEARTBEAT_S", 0.001)
    remaining, values, updated = 5, list[int](), threading.Event()

    def update() -> None:
        values.append(remaining)
        if len(values) == 3:
            updated.set()

    heartbeat = Heartbeat(update)
    assert updated.wait(60)
    remaining = 0
    heartbeat.stop()
    assert values[0] == 5
    assert values[-1] == 0
    assert not any(thread.name == "telemetry" for thread in threading.enumerate())
