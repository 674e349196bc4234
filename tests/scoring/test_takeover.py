"""Takeover: a write that arrives late changes nothing that readers or the next run see.

Without Ray. A write is held on its way and goes through after another run has taken over the output
and finished.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lesioncam.errors import RunFailedError
from lesioncam.scoring import small
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.scoring.write import write_rows
from lesioncam.storage.lease import LEASE_FILE, Holder
from lesioncam.storage.results import COMMIT_FILE, SUCCESS, Results
from tests.faults.proxy import Hold
from tests.messy import write_lesions

IMAGES = 3
TIMEOUT_S = 60
EXPIRED = Holder("expired", "other-host", "other-boot/1", 1, 1, 0.0)
WRITES = {
    "part": ("part-", 1),
    "last part": ("part-", IMAGES),
    "merged file": ("compacted-", 1),
    "begin of a compaction": (COMMIT_FILE, 1),
    "commit of a compaction": (COMMIT_FILE, 2),
    "success": (SUCCESS, 1),
}


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("proxy")
        return f"s3://{request.getfixturevalue('bucket')}/scores"
    return str(tmp_path / "scores")


@pytest.fixture
def job(
    in_process: None, output: str, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ScoreRequest:
    """A run that writes a part for each image and merges them at its end."""
    write_lesions(tmp_path / "images", IMAGES)
    plan = small.make_plan("float32", quantized=False, on_gpu=False)
    monkeypatch.setattr(small, "make_plan", lambda *_, **__: replace(plan, part_rows=1))
    return ScoreRequest(str(tmp_path / "images"), bundle_uri, output)


@pytest.fixture
def hold(
    request: pytest.FixtureRequest, output: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hold]:
    """Holds one write of a name that begins so below the output, on its way to the store."""
    name, occurrence = WRITES[request.node.callspec.params.get("write", "part")]
    hold = Hold(f"{output.removeprefix('s3:/')}/{name}", occurrence)
    if output.startswith("s3://"):
        request.getfixturevalue("proxy").fault = hold
    else:
        real = Path.replace

        def held(self: Path, target: Path) -> Path:
            hold.wait(str(target))
            return real(self, target)

        monkeypatch.setattr(Path, "replace", held)
    yield hold
    hold.release()


class InThread(threading.Thread):
    """A call in a thread of its own; a failed run is no error here."""

    def __init__(self, call: Callable[..., object], *args: Any, **options: Any):
        super().__init__(daemon=True)
        self._call: Callable[[], object] = partial(call, *args, **options)
        self.start()

    def run(self) -> None:
        with suppress(RunFailedError):
            self._call()

    def end(self) -> None:
        self.join(TIMEOUT_S)
        assert not self.is_alive()


def visible(output: str) -> list[str]:
    """What readers see, and what the next run continues from."""
    store = Results(output).store
    return store.names() + [COMMIT_FILE] * store.exists(COMMIT_FILE)


def image_names(output: str) -> list[str]:
    """The image of each row, older rows too."""
    results = Results(output)
    filesystem, root = results.store.arrow()
    parts = [pq.read_table(f"{root}/{n}", filesystem=filesystem) for n in results.parts()]
    return sorted(uri.rsplit("/", 1)[-1] for uri in pa.concat_tables(parts)["uri"].to_pylist())


@pytest.mark.parametrize("write", WRITES)
def test_a_write_of_a_run_that_another_took_over_from_is_not_seen(
    job: ScoreRequest, output: str, hold: Hold, write: str
) -> None:
    first = InThread(score, job)
    assert hold.reached.wait(TIMEOUT_S)
    store = Results(output).store
    store.write(LEASE_FILE, json.dumps(asdict(EXPIRED)).encode())
    summary = score(job)
    assert (summary["ok"], summary["without_row"]) == (IMAGES, 0)
    assert image_names(output) == ["0.jpg", "1.jpg", "2.jpg"]
    store.delete(SUCCESS)  # as a third run does first
    before = visible(output)

    hold.release()
    first.end()
    assert visible(output) == before
    assert score(job)["scored_now"] == 0
    assert image_names(output) == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_part_of_a_task_that_was_repeated_meanwhile_is_not_seen(
    job: ScoreRequest, output: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task of a node that was taken for dead, while its run went on."""
    tasks: list[InThread] = []

    def repeated(*args: Any, **options: Any) -> pa.Table:
        if not tasks:
            tasks.append(InThread(write_rows, *args, **options))
            assert hold.reached.wait(TIMEOUT_S)
        return write_rows(*args, **options)

    monkeypatch.setattr(small, "write_rows", repeated)
    score(job)
    before = visible(output)
    hold.release()
    tasks[0].end()
    assert visible(output) == before
    assert image_names(output) == ["0.jpg", "1.jpg", "2.jpg"]
