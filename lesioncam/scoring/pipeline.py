"""The scoring job, which reads as its pipeline.

list -> pending -> fetch and decode -> localize -> classify -> write

What is listed and what is pending is decided here, without torch or Ray: a run with nothing to do
ends at once. `stream` has the steps on Ray.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from lesioncam import __version__
from lesioncam.address import check_ray, has_ray
from lesioncam.columns import Status
from lesioncam.errors import InputError, LesioncamError, RunFailedError, failed_by
from lesioncam.interrupts import ignore_signals, interruptible
from lesioncam.schema import check_kept_columns
from lesioncam.storage.bundle import BundleFiles, read_bundle
from lesioncam.storage.lease import Lease, refuse_other_run
from lesioncam.storage.listing import LISTED_TWICE, Listing
from lesioncam.storage.pending import Tally, count_shared_ids
from lesioncam.storage.results import Results
from lesioncam.storage.runs import Pending, RunRecord, new_run_id
from lesioncam.storage.store import Entry, StoreError
from lesioncam.storage.uris import open_store
from lesioncam.vision.hardware import check_ranges

if TYPE_CHECKING:
    from lesioncam.scoring.plan import Plan
    from lesioncam.scoring.progress import Progress

SMALL = 64  # images; on two cores, a run on Ray takes 17 s longer to start

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class ScoreRequest:
    """The arguments of `lesioncam score`.

    Attributes:
        images: a directory or prefix, or a CSV or Parquet file of `uri`s.
        bundle: a trained model.
        output: where the Parquet goes.
        retry_failed: score all failed images again, not only those with a transient error.
        max_failed_fraction: the fraction of the listed images that may fail, or None for any.
        limit: only the first so many images of the listing, or None for all.
        all_files: also the files that a listing skips.
        drop_unlisted: remove the rows of images that are not in the listing; not with `limit`.
        keep_columns: columns of the list in `images` that the scores get, too, in any order.
        precision: one of `lesioncam.columns.PRECISIONS`.
        gpus: the maximum to use, including ones an autoscaling cluster must start; None for those
            available.
    """

    images: str
    bundle: str
    output: str
    retry_failed: bool = False
    max_failed_fraction: float | None = None
    limit: int | None = None
    all_files: bool = False
    drop_unlisted: bool = False
    keep_columns: tuple[str, ...] = ()
    precision: str = "auto"
    gpus: int | None = None


@dataclass
class Run:
    """What the steps of one run share.

    Attributes:
        request: as it was made.
        bundle: checked, not loaded.
        results: the output's rows.
        record: the output's files about this run.
        lease: on the output.
        precision: `auto` for an output without rows, unless one was asked for.
        progress: None until images are scored.
        has_begun: whether the output may have changed: until then, bad input is refused.
        started_at: the run's start.
    """

    request: ScoreRequest
    bundle: BundleFiles
    results: Results
    record: RunRecord
    lease: Lease
    precision: str
    progress: "Progress | None" = None
    has_begun: bool = False
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def quantized(self) -> bool:
        """Whether the bundle has what int8 needs."""
        return self.bundle.quantization is not None

    def begin(self, plan: "Plan | None" = None) -> None:
        """From here on the output changes: by this plan, or None where nothing is to score."""
        self.record_request(plan)
        self.has_begun = True
        self.results.begin()

    def record_request(self, plan: "Plan | None" = None) -> None:
        """Write `run.json`: the request, and the plan once there is one."""
        content = {
            **asdict(self.request),
            "model": self.bundle.digest,
            "lesioncam_version": __version__,
            "started_at": self.started_at.isoformat(),
        }
        self.record.write("run", content | ({"plan": asdict(plan)} if plan else {}))


def score(request: ScoreRequest) -> dict[str, Any]:
    """Score every listed image that has no row yet; returns the run's summary.

    Written rows stay whatever happens; the same call continues from them.

    Raises:
        InputError: no such images or bundle; the output has rows of another model or precision, or
            another run is writing to it; or the hardware does not have the precision.
        RunFailedError: a listed image ended without a row, or the lease on the output was lost.
    """
    with interruptible():
        return _checked(request)


def _checked(request: ScoreRequest) -> dict[str, Any]:
    """Refuse what can be refused before anything is written; then run."""
    if request.drop_unlisted and request.limit is not None:
        raise InputError(
            "--drop-unlisted: not together with --limit, which lists only some of the images; "
            "remove one of the two"
        )
    results = Results(request.output)
    refuse_other_run(results.store)
    results.store.arrow()  # a name that pyarrow cannot take is refused before any work
    bundle = read_bundle(request.bundle)
    check_kept_columns(request.keep_columns, bundle.settings.classes)
    if f"{results.store.uri}/".startswith(f"{open_store(request.images).uri}/"):
        raise InputError("--output: it is inside --images; choose a directory outside of them")
    check_ray()
    check_ranges(request.precision, quantized=bundle.quantization is not None)
    if request.gpus:
        from lesioncam.scoring.stream import refuse_without_gpus  # noqa: PLC0415

        refuse_without_gpus(request.gpus)
    listing = Listing(
        request.images, all_files=request.all_files, keep_columns=request.keep_columns
    )
    entries = _started(
        listing.unordered() if request.limit is None else islice(listing, request.limit)
    )
    record = RunRecord(results.store, new_run_id())
    with Lease(results.store, record.run_id) as lease:
        written = results.check(bundle.settings.classes, bundle.digest, request.keep_columns)
        precision = _continued_precision(request.precision, written, results.store.uri)
        run = Run(request, bundle, results, record, lease, precision)
        try:
            return _score(run, listing, entries)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                ignore_signals()
            _record_failure(run, error)
            if isinstance(error, InputError) and not run.has_begun:
                raise
            if isinstance(error, InputError | StoreError | OSError):
                raise failed_by(error) from error
            raise


def _continued_precision(asked: str, written: str | None, output: str) -> str:
    """The precision of the rows that an output has, so that it never has several; else `asked`.

    Args:
        asked: one of `PRECISIONS`.
        written: that of the output's rows, or None.
        output: for messages.

    Raises:
        InputError: it has rows of another precision than was asked for.
    """
    if written is None or written == asked:
        return asked
    if asked != "auto":
        raise InputError(
            f"--precision: the scores in {output} were computed in {written}, not in {asked}; "
            f"leave it out, or name another output"
        )
    log.info("continuing in %s, as the scores that are there", written)
    return written


def _score(run: Run, listing: Listing, entries: Iterator[Entry]) -> dict[str, Any]:
    """List, score what is pending, compact the parts and count the rows; returns the summary."""
    started = time.monotonic()
    run.results.discard_staged()
    run.results.recover()
    run.record_request()
    rows = run.record.record_listing(entries)
    pending = _record_pending(run, rows)
    if pending.pending:
        _score_pending(run, pending)
    else:
        run.begin()
    run.lease.stop_workers()
    run.results.discard_staged()
    listed = (run.record.manifest(), rows) if run.request.drop_unlisted else None
    run.results.compact(run.record.run_id, run.lease.confirm, listed)
    tally = _checked_tally(run, rows)
    seconds = time.monotonic() - started
    summary = _outcome(tally, run.request.max_failed_fraction) | {
        "output": run.results.store.uri,
        "dropped": pending.unlisted - tally.unlisted,
        "shared_image_ids": count_shared_ids(run.record.manifest(), rows),
        "skipped": dict(listing.skipped + Counter({LISTED_TWICE: pending.repeated})),
        "scored_now": pending.pending,
        "seconds": round(seconds, 1),
        "images_per_second": round(pending.pending / seconds, 2),
    }
    run.record.finish(summary)
    if summary["outcome"] == "done" and run.request.limit is None:
        run.results.succeed(run.lease.confirm)
    return summary


def _score_pending(run: Run, pending: Pending) -> None:
    """Score the pending images: few of them in this process, unless it has a cluster."""
    if is_small(run.request, pending):
        from lesioncam.scoring import small  # noqa: PLC0415  loads torch

        small.score_pending(run, pending)
    else:
        from lesioncam.scoring import stream  # noqa: PLC0415  loads Ray

        stream.score_pending(run, pending)


def is_small(request: ScoreRequest, pending: Pending) -> bool:
    """Whether a run is over sooner without a Ray that it would have to start."""
    return pending.pending <= SMALL and not request.gpus and not has_ray()


def _record_pending(run: Run, rows: int) -> Pending:
    """Record the listed images that have no row yet, of a manifest of so many rows."""
    partitions = run.results.partitions(run.record.manifest(), rows)
    pending = run.record.record_pending(partitions, retry_failed=run.request.retry_failed)
    log.info(
        "%s images listed, %s to score",
        f"{pending.listed:,}",
        f"{pending.pending:,}",
        extra={
            "run_id": run.record.run_id,
            "listed": pending.listed,
            "remaining": pending.pending,
        },
    )
    if pending.unlisted and run.request.limit is None and not run.request.drop_unlisted:
        log.warning(
            "%s rows of the output are of images that are not in this listing; if the images were "
            "moved, they are scored again",
            f"{pending.unlisted:,}",
        )
    return pending


def _checked_tally(run: Run, rows: int) -> Tally:
    """Count the rows against a manifest of so many rows; each image must have exactly one."""
    partitions = run.results.partitions(run.record.manifest(), rows)
    tally = sum((partition.tally() for partition in partitions), start=Tally())
    if tally.without_row or tally.doubled:
        raise RunFailedError(
            f"{tally.without_row} of {tally.listed} listed images have no row in "
            f"{run.results.store.uri}, and {tally.doubled} rows are duplicates; run the same "
            f"command again"
        )
    return tally


def _outcome(tally: Tally, max_failed_fraction: float | None) -> dict[str, Any]:
    """The summary's counts, and whether too many images failed."""
    failed = tally.outcomes.copy()
    ok = failed.pop(Status.OK, 0)
    allowed = 1.0 if max_failed_fraction is None else max_failed_fraction
    return {
        "outcome": "too_many_failed" if failed.total() > allowed * tally.listed else "done",
        "listed": tally.listed,
        "ok": ok,
        "failed": failed.total(),
        "failed_by_kind": dict(sorted(failed.items())),
        "unlisted": tally.unlisted,
        "without_row": tally.without_row,
    }


def _started(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The same entries, the first taken already: a listing that fails does so before any write."""
    first = next(entries)
    return chain([first], entries)


def _record_failure(run: Run, error: BaseException) -> None:
    """Leave a summary of a failed run, unless the store is what failed."""
    with suppress(LesioncamError):
        content: dict[str, Any] = {"outcome": "failed", "error": type(error).__name__}
        if run.progress is not None:
            content["progress"] = run.progress.state()
        run.record.finish(content)
