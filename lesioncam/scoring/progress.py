"""How far a run is: a bar on a terminal, a line now and then in a log, and `progress.json`.

Counts and kinds only; names can identify patients.
"""

import logging
import sys
import time
from collections import Counter
from typing import Any

from tqdm import tqdm

from lesioncam.schema import Status
from lesioncam.storage.runs import RunRecord

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

    def begin(self, total: int) -> None:
        """So many images are to do; a bar shows them where there is a terminal."""
        self._total = total
        self._started = self._logged = self._written = time.monotonic()
        self._bar = tqdm(total=total, unit="image", desc="scoring", disable=not sys.stderr.isatty())
        self._record.write("progress", self.state())

    def add(self, outcome: str, count: int) -> None:
        """Count images with an outcome: `ok` or an error kind."""
        self.outcomes[outcome] += count
        self._bar.update(count)
        now = time.monotonic()
        if now - self._written >= _FILE_SECONDS:
            self._record.write("progress", self.state())
            self._written = now
        if self._bar.disable and now - self._logged >= LOG_SECONDS:
            log.info("%s", self.line())
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
            "seconds_left": round((self._total - done) / rate) if rate else None,
        }

    def line(self) -> str:
        """The same in one line for a log."""
        state = self.state()
        failed = sum(state["failed"].values())
        left = state["seconds_left"]
        return (
            f"scored {state['done']:,} of {state['total']:,} images, {failed:,} of them failed; "
            f"{state['images_per_second']:.1f} images/s, "
            f"{'unknown' if left is None else f'{left / 60:.0f} min'} left"
        )

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
