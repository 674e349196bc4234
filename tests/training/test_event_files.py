"""TensorBoard's event files, read back."""

import logging
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from lesioncam.storage.uris import open_store
from lesioncam.training.event_files import EventFiles
from lesioncam.training.progress import EpochReport


def entry(epoch: int, loss: float = 0.5, mean_auc: float | None = 0.75) -> dict[str, Any]:
    return {"epoch": epoch, "size": 96, "loss": loss, "mean_auc": mean_auc}


def report(stage: str, *history: dict[str, Any]) -> EpochReport:
    return EpochReport(stage, 3, history, 60.0)


def scalars(content: bytes) -> list[tuple[str, int, float]]:
    """Name, step and value of each scalar: records are a length, its CRC, an event and its CRC."""
    found = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        content = content[12 + length + 4 :]
    return found


def read(bundle: str, stage: str) -> list[tuple[str, int, float]]:
    """What TensorBoard reads of a stage: its files in the order of their names."""
    store = open_store(bundle).join(f"tensorboard/{stage}")
    return [one for name in store.names() for one in scalars(store.read(name))]


def test_an_epoch_is_a_file(tmp_path: Path) -> None:
    files = EventFiles(str(tmp_path))
    files.update(report("stage1", entry(1, loss=0.5)))
    files.update(report("stage1", entry(1, loss=0.5), entry(2, loss=0.25, mean_auc=None)))
    files.update(report("stage2", entry(1)))
    stage1 = [("size", 1, 96), ("loss", 1, 0.5), ("mean_auc", 1, 0.75), ("size", 2, 96),
              ("loss", 2, 0.25)]  # fmt: skip
    assert read(str(tmp_path), "stage1") == stage1
    assert read(str(tmp_path), "stage2") == [
        ("size", 1, 96),
        ("loss", 1, 0.5),
        ("mean_auc", 1, 0.75),
    ]
    names = [path.name for path in (tmp_path / "tensorboard" / "stage1").iterdir()]
    assert sorted(names) == [f"events.out.tfevents.000000000{epoch}" for epoch in (1, 2)]


def test_tensorboard_reads_them(tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    EventFiles(str(tmp_path)).update(report("stage1", entry(1), entry(2, loss=0.25)))
    found = loader.EventAccumulator(f"{tmp_path}/tensorboard/stage1").Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_a_resumed_training_continues_them(tmp_path: Path) -> None:
    EventFiles(str(tmp_path)).update(report("stage1", entry(1), entry(2)))
    before = read(str(tmp_path), "stage1")
    resumed = EventFiles(str(tmp_path))
    resumed.update(EpochReport("stage1", 3, [entry(1), entry(2)], 60.0, resumed=True))
    assert read(str(tmp_path), "stage1") == before
    resumed.update(report("stage1", entry(1), entry(2), entry(3)))
    assert [step for name, step, _ in read(str(tmp_path), "stage1") if name == "loss"] == [1, 2, 3]


def test_files_of_another_recipe_are_removed(tmp_path: Path) -> None:
    interrupted = EventFiles(str(tmp_path))
    interrupted.update(report("stage1", entry(1), entry(2)))
    interrupted.update(report("stage2", entry(1)))
    EventFiles(str(tmp_path)).update(report("stage1", entry(1, loss=0.125)))
    assert ("loss", 1, 0.125) in read(str(tmp_path), "stage1")
    assert {step for _, step, _ in read(str(tmp_path), "stage1")} == {1}
    assert read(str(tmp_path), "stage2") == []


def test_a_bundle_on_s3_has_them_too(bucket: str) -> None:
    bundle = f"s3://{bucket}/model"
    EventFiles(bundle).update(report("stage1", entry(1), entry(2)))
    assert [step for name, step, _ in read(bundle, "stage1") if name == "loss"] == [1, 2]


def test_a_failed_write_is_a_warning_and_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "model"
    blocked.write_text("")
    files = EventFiles(str(blocked))
    with caplog.at_level(logging.WARNING, "lesioncam"):
        files.update(report("stage1", entry(1)))
    (warning,) = caplog.messages
    assert warning.startswith("TensorBoard's event files could not be written: ")
    blocked.unlink()
    files.update(report("stage1", entry(1), entry(2)))
    assert {step for _, step, _ in read(str(blocked), "stage1")} == {1, 2}
