"""Progress of a run: a bar on a terminal, log lines elsewhere, metrics, `progress.json`.

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
from lesioncam.telemetry import Heartbeat, count_images, set_remaining

_LOG_INTERVAL_S = 30.0
_FILE_INTERVAL_S = 5.0

log = logging.getLogger("lesioncam")


class Progress:
    """Counts outcomes as they become durable.

    Args:
        record: where `progress.json` goes.

    Attributes:
        outcomes: images by outcome: `ok` or an error kind.
    """

    def __init__(self, record: RunRecord):
        self.outcomes: Counter[str] = Counter()
        self._total, self._record = 0, record
        self._bar = tqdm(disable=True)
        self._started = self._logged = self._written = time.monotonic()
        self._heartbeat = Heartbeat(lambda: set_remaining(self._remaining))

    @property
    def _remaining(self) -> int:
        return self._total - self.outcomes.total()

    def begin(self, total: int) -> None:
        """Begin with so many pending images; on a terminal a bar shows them."""
        self._total = total
        self.start_clock()
        self._bar = tqdm(total=total, unit="image", desc="scoring", disable=not sys.stderr.isatty())
        self._record.write("progress", self.state())

    def start_clock(self) -> None:
        """Measure the rate from now on, as the cluster is ready."""
        self._started = self._logged = self._written = time.monotonic()

    def add(self, outcome: str, count: int) -> None:
        """Count images with an outcome: `ok` or an error kind."""
        self.outcomes[outcome] += count
        count_images(outcome, count)
        self._bar.update(count)
        now = time.monotonic()
        if now - self._written >= _FILE_INTERVAL_S:
            with suppress(LesioncamError):  # no scores are lost with it
                self._record.write("progress", self.state())
            self._written = now
        if self._bar.disable and now - self._logged >= _LOG_INTERVAL_S:
            self._log()
            self._logged = now

    def state(self) -> dict[str, Any]:
        """The content of `progress.json`."""
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
            "seconds_remaining": round(self._remaining / rate) if rate else None,
        }

    def close(self) -> None:
        """Remove the bar; a log gets a last line."""
        self._heartbeat.stop()
        if self._bar.disable and self._total:
            self._log()
        self._bar.close()

    def _log(self) -> None:
        state = self.state()
        failed = sum(state["failed"].values())
        seconds = state["seconds_remaining"]
        log.info(
            "scored %s of %s images, %s failed; %.1f images/s, %s",
            f"{state['done']:,}",
            f"{state['total']:,}",
            f"{failed:,}",
            state["images_per_second"],
            "time remaining unknown" if seconds is None else f"{seconds / 60:.0f} min remaining",
            extra=state
            | {
                "run_id": self._record.run_id,
                "remaining": self._remaining,
                "failed": failed,
                "failed_by_kind": state["failed"],
            },
        )
