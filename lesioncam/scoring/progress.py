"""How far a run is: a bar on a terminal, a line now and then in a log, metrics, `progress.json`.

Counts and kinds only; names can identify patients.
"""

import logging
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from lesioncam.columns import Status
from lesioncam.errors import LesioncamError
from lesioncam.storage.runs import RunRecord
from lesioncam.telemetry import Heartbeat, count_images, show_left

LOG_SECONDS = 30.0
_FILE_SECONDS = 5.0

log = logging.getLogger("lesioncam")


class Progress:
    """Counts outcomes as they become durable.

    Args:
        record: where `progress.json` goes.
    """

    def __init__(self, record: RunRecord):
        self.outcomes: Counter[str] = Counter()
        self._total, self._record = 0, record
        self._bar = tqdm(disable=True)
        self._started = self._logged = self._written = time.monotonic()
        self._beat = Heartbeat(lambda: show_left(self._left))

    @property
    def _left(self) -> int:
        return self._total - self.outcomes.total()

    def begin(self, total: int) -> None:
        """So many images are to do; a bar shows them where there is a terminal."""
        self._total = total
        self.go()
        self._bar = tqdm(total=total, unit="image", desc="scoring", disable=not sys.stderr.isatty())
        self._record.write("progress", self.state())

    def go(self) -> None:
        """What was waited for is there: the rate counts from now."""
        self._started = self._logged = self._written = time.monotonic()

    def add(self, outcome: str, count: int) -> None:
        """Count images with an outcome: `ok` or an error kind."""
        self.outcomes[outcome] += count
        count_images(outcome, count)
        self._bar.update(count)
        now = time.monotonic()
        if now - self._written >= _FILE_SECONDS:
            with suppress(LesioncamError):  # no scores are lost with it
                self._record.write("progress", self.state())
            self._written = now
        if self._bar.disable and now - self._logged >= LOG_SECONDS:
            self._log()
            self._logged = now

    def state(self) -> dict[str, Any]:
        """What `progress.json` holds."""
        done = self.outcomes.total()
        seconds = time.monotonic() - self._started
        rate = done / seconds if seconds else 0.0
        failed = {kind: n for kind, n in sorted(self.outcomes.items()) if kind != Status.OK}
        return {
            "done": done,
            "total": self._total,
            "failed": failed,
            "seconds": round(seconds, 1),
            "images_per_second": round(rate, 2),
            "seconds_left": round(self._left / rate) if rate else None,
        }

    def close(self) -> None:
        """Take the bar away; a log gets a last line."""
        self._beat.stop()
        if self._bar.disable and self._total:
            self._log()
        self._bar.close()

    def _log(self) -> None:
        """The same in one line."""
        state = self.state()
        failed = sum(state["failed"].values())
        left = state["seconds_left"]
        log.info(
            "scored %s of %s images, %s of them failed; %.1f images/s, %s left",
            f"{state['done']:,}",
            f"{state['total']:,}",
            f"{failed:,}",
            state["images_per_second"],
            "unknown" if left is None else f"{left / 60:.0f} min",
            extra=state
            | {
                "run_id": self._record.run_id,
                "left": self._left,
                "failed": failed,
                "failed_by_kind": state["failed"],
            },
        )
