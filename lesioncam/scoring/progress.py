"""Progress of a run: a bar on a terminal, log lines elsewhere, metrics, `progress.json`.

Counts and kinds only; names can identify patients.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lesioncam.columns import Status
from lesioncam.errors import LesioncamError
from lesioncam.logs import shows_bars
from lesioncam.scoring.outage import Outage
from lesioncam.storage.runs import RunRecord
from lesioncam.telemetry import Heartbeat, count_images, set_remaining

if TYPE_CHECKING:
    from lesioncam.scoring.pipeline import Run

_LOG_INTERVAL_S = 30.0
_FILE_INTERVAL_S = 5.0
_RATE_SECONDS = 60.0  # over which the rate is measured
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"

log = logging.getLogger("lesioncam")


def count_parts(run: "Run", receipts: Iterable[Mapping[str, Any]], progress: "Progress") -> None:
    """Count each part as it becomes durable, for as long as the store and the lease are there.

    Args:
        run: that writes them.
        receipts: of the parts, as `lesioncam.scoring.write.write_rows` gives them.
        progress: counts their images.

    Raises:
        RunFailedError: the store is out of reach, or the lease was lost.
    """
    outage = Outage(run.record)
    for receipt in receipts:
        part = dict(zip(receipt["outcomes"], receipt["counts"], strict=True))
        for outcome, count in part.items():
            progress.add(outcome, count)
        outage.check(part)
        run.lease.check()


class Progress:
    """Counts images as they are classified, and their outcomes as they become durable.

    Args:
        record: where `progress.json` goes.

    Attributes:
        outcomes: durable images by outcome: `ok` or an error kind.
    """

    def __init__(self, record: RunRecord):
        self.outcomes: Counter[str] = Counter()
        self._total, self._done, self._record = 0, 0, record
        self._ahead = 0  # of what is durable
        self._classified: Callable[[], int] = lambda: 0
        self._samples: deque[tuple[float, int]] = deque()
        self._started = self._logged = self._written = time.monotonic()
        self._last_line = ""
        self._showing = threading.RLock()
        self._on_terminal = ExitStack()
        self._bar = tqdm(disable=True)
        self._heartbeat = Heartbeat(self._beat)

    @property
    def _remaining(self) -> int:
        return self._total - self._done

    def begin(self, total: int) -> None:
        """Begin with so many pending images; on a terminal a bar shows them."""
        with self._showing:
            self._total = total
            self._started = self._logged = self._written = time.monotonic()
            if shows_bars():
                self._bar = tqdm(total=total, desc="loading the networks", bar_format=_BAR)
                self._on_terminal.enter_context(logging_redirect_tqdm([log]))
        self._record.write("progress", self.state())

    def follow(self, classified: Callable[[], int], ahead: int) -> None:
        """Also count images that are not durable yet.

        Args:
            classified: how many images were classified; a repeated one counts again.
            ahead: how many of them can be not yet durable.
        """
        self._classified, self._ahead = classified, ahead

    def add(self, outcome: str, count: int) -> None:
        """Count durable images with an outcome: `ok` or an error kind."""
        with self._showing:
            self.outcomes[outcome] += count
        count_images(outcome, count)
        self._update(0)

    def _beat(self) -> None:
        set_remaining(self._total - self.outcomes.total())
        self._update(self._classified())

    def _update(self, classified: int) -> None:
        with self._showing:
            durable = self.outcomes.total()
            ahead = min(classified, durable + self._ahead, self._total)
            self._done = max(self._done, durable, ahead)
            now = time.monotonic()
            if self._done:  # the rate leaves out what is loaded before the first image
                self._samples.append((now, self._done))
                while now - self._samples[0][0] > _RATE_SECONDS and len(self._samples) > 2:
                    self._samples.popleft()
            self._show(now)

    def _show(self, now: float) -> None:
        if now - self._written >= _FILE_INTERVAL_S:
            with suppress(LesioncamError):  # no scores are lost with it
                self._record.write("progress", self.state())
            self._written = now
        if not self._bar.disable:
            self._draw()
        elif now - self._logged >= _LOG_INTERVAL_S:
            self._log()
            self._logged = now

    def _draw(self) -> None:
        state = self.state()
        if self._done:
            self._bar.set_description_str("scoring", refresh=False)
        if state["images_per_second"]:
            self._bar.set_postfix_str(_speed(state), refresh=False)
        self._bar.n = self._done
        self._bar.refresh()

    def state(self) -> dict[str, Any]:
        """The content of `progress.json`."""
        with self._showing:
            seconds = time.monotonic() - self._started
            rate = self._rate(seconds)
            failed = {kind: n for kind, n in sorted(self.outcomes.items()) if kind != Status.OK}
            return {
                "done": self._done,
                "total": self._total,
                "failed": failed,
                "seconds": round(seconds, 1),
                "images_per_second": round(rate, 2),
                "seconds_remaining": self._seconds_remaining(rate),
            }

    def _rate(self, seconds: float) -> float:
        """Images per second of the last minute; 0 while unknown."""
        if self._samples and self._samples[-1][0] > self._samples[0][0]:
            (first, before), (last, after) = self._samples[0], self._samples[-1]
            if after > before:
                return (after - before) / (last - first)
        # All came at once, as in a run of a few images.
        return self._done / seconds if seconds and not self._remaining else 0.0

    def _seconds_remaining(self, rate: float) -> int | None:
        if not self._remaining:
            return 0
        return round(self._remaining / rate) if rate else None

    def close(self) -> None:
        """Leave the bar as it is; a log gets a last line."""
        self._heartbeat.stop()
        with self._showing:
            if self._bar.disable and self._total:
                self._log()
            self._on_terminal.close()
            self._bar.close()

    def _log(self) -> None:
        state = self.state()
        failed = sum(state["failed"].values())
        line = (
            f"scored {state['done']:,} of {state['total']:,} images, {failed:,} failed; "
            f"{_speed(state)}"
        )
        if line == self._last_line:
            return
        self._last_line = line
        fields = {
            "run_id": self._record.run_id,
            "remaining": self._remaining,
            "failed": failed,
            "failed_by_kind": state["failed"],
        }
        log.info("%s", line, extra=state | fields)


def _speed(state: dict[str, Any]) -> str:
    """The rate, and the time to come in words."""
    rate = f"{state['images_per_second']:.1f} images/s"
    seconds = state["seconds_remaining"]
    if seconds is None:
        return f"{rate}, time remaining unknown"
    if not seconds:
        return rate
    return (
        f"{rate}, {seconds} s remaining"
        if seconds < 90
        else (f"{rate}, {seconds / 60:.0f} min remaining")
    )
