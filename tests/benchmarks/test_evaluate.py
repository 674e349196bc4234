from pathlib import Path

import pytest

from benchmarks.evaluate import measure, measure_report, write_labels, write_scores
from lesioncam.storage.results import Results


@pytest.mark.parametrize("complete", [True, False])
def test_every_row_is_counted_once(complete: bool, tmp_path: Path) -> None:
    results, labels = Results(str(tmp_path / "scores")), tmp_path / "labels.csv"
    write_scores(results, 2_000)
    if complete:
        results.succeed()
    assert write_labels(labels, 2_000, 0.1) == 200
    measured = measure(results.store.uri, str(labels))
    assert measured.seconds > 0
    assert measured.counts["evaluated"] + measured.counts["images_without_label"] == 1_980
    assert measured.counts["failed_images"] == 20
    assert measured.counts["labels_without_image"] == 200 - measured.counts["evaluated"]
    reported = measure_report(results.store.uri, str(labels)).counts
    assert (reported["total"], reported["ok"], reported["failed"]) == (2_000, 1_980, 20)
