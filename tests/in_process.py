"""`score` without Ray: the stages of its pipeline one after another, in this process.

For tests of what a run lists, repeats, records and reports; how Ray runs it is not theirs.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from lesioncam.cluster import Capacity, Node
from lesioncam.scoring.fetch import fetch_and_decode, read_pending
from lesioncam.scoring.plan import Plan, plan_for
from lesioncam.scoring.stages import Classify, Localize
from lesioncam.scoring.write import write_part
from lesioncam.storage.bundle import STAGES, BundleFiles, load_weights
from lesioncam.storage.results import Results
from lesioncam.storage.runs import Pending, RunRecord
from lesioncam.vision.classifier import CropClassifier, Localizer
from lesioncam.vision.engine import load_network

STREAM = "lesioncam.scoring.stream"


def patch_score(patch: pytest.MonkeyPatch) -> None:
    """Have `score` run without Ray."""
    plan = plan_for(Capacity((Node(cpus=2, gpus=0),)), gpus=0, precision="float32")
    always_free = SimpleNamespace(remote=lambda *_: None)
    window = SimpleNamespace(acquire=always_free, release=always_free)
    patch.setattr(f"{STREAM}.connected", nullcontext)
    patch.setattr(f"{STREAM}.check_cluster", lambda _: None)
    patch.setattr(f"{STREAM}.make_plan", lambda *_: plan)
    patch.setattr(f"{STREAM}.build_pipeline", Chain)
    patch.setattr(f"{STREAM}.open_window", lambda _: window)
    patch.setattr(f"{STREAM}.count_classified", lambda _: 0)
    patch.setattr("lesioncam.scoring.fetch.ray", SimpleNamespace(get=lambda answer: answer))


class Chain:
    """In place of the dataset; takes the arguments of `build_pipeline`."""

    def __init__(
        self,
        record: RunRecord,
        pending: Pending,
        bundle: BundleFiles,
        plan: Plan,
        results: Results,
        window: Any,
    ):
        self._record, self._bundle, self._plan = record, bundle, plan
        self._window = window
        self._output: dict[str, Any] = {
            "output": results.store.uri,
            "classes": bundle.settings.classes,
            "model": bundle.digest,
            "run_id": record.run_id,
            "not_before": max(pending.after, datetime.now(UTC)),
        }

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        """The receipts of the parts, each written when it is asked for."""
        settings, plan = self._bundle.settings, self._plan
        stage1, stage2 = (
            load_network(
                settings,
                load_weights(self._bundle.weights[stage]),
                torch.device("cpu"),
                plan.precision,
            )
            for stage in STAGES
        )
        localize = Localize(Localizer(settings, stage1), plan.batch_size)
        classify = Classify(CropClassifier(settings, stage2), plan.batch_size)
        names = pa.table({"name": self._record.pending.names()})
        for part in _split(read_pending(names, self._record.pending.uri), plan.part_rows):
            decoded = fetch_and_decode(part, settings.canvas_size, self._window)
            batches = _split(decoded, plan.batch_size)
            rows = pa.concat_tables(classify(localize(batch)) for batch in batches)
            yield from write_part(rows, **self._output, window=self._window).to_pylist()


def _split(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    return (table.slice(start, rows) for start in range(0, table.num_rows, rows))
