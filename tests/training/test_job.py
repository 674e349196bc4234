import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import psutil
import pytest
import ray
import torch
from PIL import Image

from lesioncam.demo import draw_images
from lesioncam.errors import InputError, RunBroke
from lesioncam.settings import CropRule, TrainSettings
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.labels import read_labels
from lesioncam.storage.lease import LEASE_FILE, Holder, check_holder
from lesioncam.storage.store import open_store
from lesioncam.training.canvases import Canvases
from lesioncam.training.fit import fit, remove_checkpoints, told
from lesioncam.training.job import TrainRequest, checkpoints_of, initial_network, train
from lesioncam.training.predict import Seen
from lesioncam.training.stage import StageJob, StageState
from lesioncam.vision.network import VGGGAP

pytestmark = pytest.mark.usefixtures("local_ray")

SMALL = TrainSettings(
    backbone="tiny",
    stage1_epochs=2,
    stage2_epochs=1,
    batch_size=7,  # which two workers cannot halve
    learning_rate=0.02,
    dropout=0.0,
    val_fraction=0.25,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 drawn lesions and their labels, 27 to train on and 9 for validation; 20 masks, 3 empty."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_images(folder, 36, seed=3)
    labels = pd.read_csv(folder / "labels.csv")
    labels[:27].to_csv(folder / "train.csv", index=False)
    labels[27:].to_csv(folder / "val.csv", index=False)
    (folder / "masks").mkdir()
    for number in range(20):
        mask = Image.new("1", (480, 360))
        if number >= 3:  # the others say that there is no lesion
            mask.paste(1, (120, 90, 360, 270))
        mask.save(folder / "masks" / f"DRAWN_{number:05d}.png")
    return folder


@pytest.fixture(scope="module")
def trained(
    drawn: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, dict[str, Any]]:
    """A bundle that one worker trained, and what `train` returned."""
    bundle = tmp_path_factory.mktemp("trained") / "model"
    validation = {"val_images": f"{drawn}/images", "val_labels": f"{drawn}/val.csv"}
    return bundle, train(request(drawn, bundle, **validation))


def request(drawn: Path, bundle: Path | str, **changes: Any) -> TrainRequest:
    settings = replace(SMALL, **changes.pop("settings", {}))
    places = (f"{drawn}/images", f"{drawn}/train.csv", str(bundle))
    return TrainRequest(*places, settings, masks=f"{drawn}/masks", **changes)


def history(bundle: Path | str, stage: str = "stage1") -> list[dict[str, float]]:
    entries: list[dict[str, float]] = load_bundle(str(bundle)).training[stage]["history"]
    return entries


def weights(bundle: Path) -> dict[str, str]:
    """The digests of both stages' weights."""
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".safetensors")}


def learned(state: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What training changed in a network's weights, as one vector."""
    return torch.cat([(state[name] - before[name]).flatten() for name in sorted(before)])


BOXES = np.add.outer(np.arange(36), (8, 16, 80, 72))  # of the canvases by their number
VIEWS = BOXES + np.array([-4, -8, 8, 4])


class NotTrainedError(Exception):
    """In place of a stage: its job and its run's id."""


def asked(request: TrainRequest, stage: str = "stage1") -> tuple[StageJob, str]:
    """What Ray Train would be asked for that stage.

    One before it ends with half its weights, and sees the lesions at `BOXES`.
    """

    def fit(job: StageJob, run_id: str, *_: object) -> StageState:
        check_holder(open_store(request.bundle), job.holder)
        if job.stage == stage:
            raise NotTrainedError(job, run_id)
        halves = {name: tensor / 2 for name, tensor in ray.get(job.initial).items()}
        return StageState(best=halves)

    def localise_all(canvases: Canvases, *_: object) -> Seen:
        seen = len(canvases)
        maps = np.zeros((seen, 6, 6), np.uint8)
        return Seen(np.zeros((seen, 3)), BOXES[:seen], VIEWS[:seen], maps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesioncam.training.job.fit", fit)
        patch.setattr("lesioncam.training.job.localise_all", localise_all)
        with pytest.raises(NotTrainedError) as instead:
            train(request)
    job, run_id = instead.value.args
    return job, run_id


def test_one_command_ends_in_a_bundle_that_says_what_it_is(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    folder, returned = trained
    bundle = load_bundle(str(folder))
    assert bundle.digest == returned["model"]
    assert bundle.settings.classes == ("melanoma", "seborrheic_keratosis", "nevus")
    assert bundle.training["training_images"] == dict.fromkeys(bundle.settings.classes, 7)
    assert bundle.training["held_out_images"] == dict.fromkeys(bundle.settings.classes, 2)
    drawn, guessed = (bundle.training[f"outlines_{how}"] for how in ("drawn", "guessed"))
    assert 0 < drawn < 20  # some of the 20 are of held-out images
    assert 18 <= drawn + guessed < 21  # nothing is learned of an empty outline
    assert [(entry["epoch"], entry["side"]) for entry in history(folder)] == [(1, 48), (2, 96)]
    assert bundle.training["stage1"]["best_epoch"] == 2  # the one at the full side
    assert set(bundle.metrics) == {"held_out", "validation"}
    assert bundle.metrics["held_out"]["localisation"]["masks"] > 0
    assert bundle.metrics["validation"]["final"]["mean"]["n"] == 9
    assert any(
        not np.array_equal(bundle.stage1[name], bundle.stage2[name]) for name in bundle.stage1
    )
    card = (folder / "README.md").read_text()
    for part in ("Not a medical device", "## Limits", "@article{jia2017skin", "lesion masks"):
        assert part in card
    assert "DRAWN_" not in card + (folder / "bundle.json").read_text()
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["stage"].tolist() == ["stage1", "stage1", "stage2"]
    assert metrics["loss"].tolist() == [
        entry["loss"] for stage in ("stage1", "stage2") for entry in history(folder, stage)
    ]
    assert (metrics["waited_seconds"] <= metrics["seconds"]).all()
    assert metrics["prepared_seconds"].between(0, metrics["seconds"], inclusive="neither").all()


def test_a_finished_bundle_is_refused(drawn: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"--bundle: .* finished bundle"):
        train(request(drawn, trained[0]))


def take_away(bundle: Path) -> None:
    """Have a run of another machine hold the lease on a bundle."""
    other = Holder("run-0", "another-host", "its-boot", 1, 1, time.time() + 60)
    open_store(str(bundle)).write(LEASE_FILE, json.dumps(asdict(other)).encode())


def test_a_bundle_that_another_run_is_at_work_on_is_refused(drawn: Path, tmp_path: Path) -> None:
    take_away(tmp_path / "model")
    with pytest.raises(InputError, match=r"--bundle: .* is being written by run run-0"):
        train(request(drawn, tmp_path / "model"))


def test_a_run_that_another_has_followed_writes_no_checkpoint(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "model"

    def fit_too_late(*job: Any) -> StageState:
        take_away(bundle)
        return fit(*job)

    monkeypatch.setattr("lesioncam.training.job.fit", fit_too_late)
    monkeypatch.setattr("lesioncam.training.fit._WORKER_DEATHS", 0)
    with pytest.raises(RunBroke, match=r"stage1 broke off: .* is not run .* any more"):
        train(request(drawn, bundle))
    assert not list(Path(f"{bundle}-checkpoints").glob("stage1-*/checkpoint*/*"))
    assert json.loads((bundle / LEASE_FILE).read_text())["run_id"] == "run-0"


def test_what_breaks_in_ray_is_one_line(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object) -> None:
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr("lesioncam.training.job.read_source", break_off)
    with pytest.raises(RunBroke, match=r"broke off in Ray, .* run the same command again"):
        train(request(drawn, tmp_path / "model"))


def test_the_line_of_a_stage_that_ray_train_gave_up() -> None:
    lost = "Traceback ...\nRunBroke: it is gone; run the same command again\n\x1b[31m^^^\x1b[0m"
    assert told("stage1", RuntimeError(lost)) == (
        "stage1 broke off: RunBroke: it is gone; run the same command again"
    )
    assert told("stage2", RuntimeError("SIGKILL")) == (
        "stage2 broke off, run the same command again: SIGKILL"
    )
    memory = RuntimeError("torch.OutOfMemoryError: CUDA out of memory. Tried")
    assert told("stage2", memory).endswith("Tried; lower batch_size in --config")


def test_two_workers_see_the_same_batches_as_one(
    drawn: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    train(request(drawn, tmp_path / "two", workers=2))
    one, two = (load_bundle(str(bundle)) for bundle in (trained[0], tmp_path / "two"))
    start = initial_network(SMALL, read_labels(f"{drawn}/train.csv", "nevus"))[1]
    for stage in ("stage1", "stage2"):  # the second from the first, as no weights are loaded
        first, second = (
            learned(getattr(of, stage), start if stage == "stage1" else of.stage1)
            for of in (one, two)
        )
        assert (second - first).norm() < 0.2 * first.norm()
        losses = [
            [entry["loss"] for entry in history(bundle, stage)]
            for bundle in (trained[0], tmp_path / "two")
        ]
        np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


def test_workers_killed_in_both_stages_and_between_change_nothing(
    drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"stage1_epochs": 10, "stage2_epochs": 10, "batch_size": 4, "dropout": 0.5}
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    train(request(drawn, undisturbed, settings=long, workers=2))
    with caplog.at_level(logging.INFO, "lesioncam"), Killer(f"{disturbed}-checkpoints") as killer:
        train(request(drawn, disturbed, settings=long, workers=2))
    assert killer.killed == ["stage1", "_Predictor", "stage2"]
    for stage in ("stage1", "stage2"):
        assert f"{stage[:5]} {stage[5]}: going on from the checkpoint after epoch" in caplog.text
        first, second = history(undisturbed, stage), history(disturbed, stage)
        assert [entry["epoch"] for entry in second] == list(range(1, 11))
        np.testing.assert_allclose(
            [entry["loss"] for entry in second], [entry["loss"] for entry in first], rtol=1e-6
        )
    assert weights(disturbed) == weights(undisturbed)


class Killer(threading.Thread):
    """Kills a worker of each stage once it has a checkpoint, and a predictor between them."""

    def __init__(self, storage: str):
        super().__init__(daemon=True)
        self.storage = Path(storage)
        self.killed: list[str] = []
        self._over = threading.Event()

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.02):
            for stage in ("stage1", "stage2"):
                # Written once Ray Train knows of a checkpoint; the files are there before that.
                known = f"{stage}-*/checkpoint_manager_snapshot.json"
                if stage not in self.killed and list(self.storage.glob(known)):
                    self.kill("RayTrainWorker", stage)
            if "_Predictor" not in self.killed and "stage1" in self.killed:
                self.kill("_Predictor", "_Predictor")

    def kill(self, name: str, place: str) -> None:
        """SIGKILL to the processes of that name which this process's own Ray started."""
        for process in children(psutil.Process()):
            try:
                if name in " ".join(process.cmdline()):
                    process.kill()
                    self.killed.append(place)
                    return
            except psutil.Error:  # it ended meanwhile
                continue


def children(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def test_all_in_a_bucket_a_killed_worker_and_then_a_killed_run_end_in_a_bundle(
    drawn: Path, bucket: str, tmp_path: Path
) -> None:
    fill(bucket, drawn)
    bundle, log = f"s3://{bucket}/model", tmp_path / "log"
    recipe = "batch_size = 4\nval_fraction = 0.25\nlearning_rate = 0.02\nfrozen_blocks = 2\n"
    loaded = VGGGAP("tiny", 2).state_dict()
    torch.save(loaded, tmp_path / "w.pth")
    (tmp_path / "recipe.toml").write_text(recipe)
    command = [sys.executable, "-m", "lesioncam", "train", "--images", f"s3://{bucket}/images"]
    command += ["--labels", f"s3://{bucket}/two.csv", "--bundle", bundle, "--backbone", "tiny"]
    command += ["--epochs", "20,1", "--config", f"{tmp_path}/recipe.toml"]
    command += ["--weights", f"{tmp_path}/w.pth"]

    with started(command, log) as first:
        wait_for(log, "stage 1: epoch 4 of 20", first)  # Ray Train knows of a checkpoint by then
        for process in children(psutil.Process(first.pid)):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
        wait_for(log, "stage 1: going on from the checkpoint after epoch", first)
        driver = psutil.Process(first.pid)
        for process in [*children(driver), driver]:
            process.kill()
    with pytest.raises(InputError, match="--bundle"):
        load_bundle(bundle)

    with started(command, log) as again:
        assert again.wait(300) == 0, log.read_text()
    assert "--images: 1 images cannot be used: 1 empty" in log.read_text()
    assert "stage 1: going on from the checkpoint after epoch" in log.read_text()
    assert [entry["epoch"] for entry in history(bundle)] == list(range(1, 21))
    trained = load_bundle(bundle)
    assert trained.settings.classes == ("malignant", "benign")
    counts = (trained.training["training_images"], trained.training["held_out_images"])
    assert sum(sum(part.values()) for part in counts) == 35
    for stage in (trained.stage1, trained.stage2):  # two blocks' convolutions stay as loaded
        same = [name for name in loaded if torch.equal(stage[name], loaded[name])]
        assert [name for name in same if name.endswith("weight")] == [
            "features.0.weight",
            "features.3.weight",
        ]


def fill(bucket: str, drawn: Path) -> None:
    """Put the drawn images there, one of them broken, and labels of two other classes."""
    client = boto3.client("s3")
    for path in (drawn / "images").iterdir():
        client.upload_file(str(path), bucket, f"images/{path.name}")
    client.put_object(Bucket=bucket, Key="images/DRAWN_00000.jpg", Body=b"")
    labels = pd.read_csv(drawn / "labels.csv").rename(columns={"image_id": "image"})
    labels["malignant"] = labels["melanoma"]
    labels["benign"] = 1 - labels["melanoma"]
    csv = labels[["image", "malignant", "benign"]].to_csv(index=False)
    client.put_object(Bucket=bucket, Key="two.csv", Body=csv.encode())


def started(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("w") as said:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return subprocess.Popen(command, env=environment, stderr=said)


def wait_for(log: Path, line: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process has said it."""
    deadline = time.monotonic() + 240
    while line not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_the_same_command_goes_on_from_finished_stages(
    drawn: Path,
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    bundle = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr("lesioncam.training.job.save_bundle", full_disk)
        with pytest.raises(RunBroke, match="no space left; mend that; run the same command again"):
            train(request(drawn, bundle))
    assert Path(f"{bundle}-checkpoints").exists()
    with caplog.at_level(logging.INFO, "lesioncam"):
        train(request(drawn, bundle))
    assert "stage 1: going on from the checkpoint after epoch 2" in caplog.text
    assert "stage 2: going on from the checkpoint after epoch 1" in caplog.text
    assert not list(Path(f"{bundle}-checkpoints").iterdir())
    assert not open_store(str(bundle)).exists(LEASE_FILE)
    assert weights(bundle) == weights(trained[0])


def test_seven_classes_with_no_rest_class(drawn: Path, tmp_path: Path) -> None:
    names = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    labels = pd.read_csv(drawn / "labels.csv")[["image_id"]]
    for place, name in enumerate(names):
        labels[name] = (labels.index % 7 == place).astype(int)
    labels.to_csv(tmp_path / "seven.csv", index=False)
    seven = replace(request(drawn, tmp_path / "model"), labels=f"{tmp_path}/seven.csv", masks=None)
    train(seven)
    bundle = load_bundle(f"{tmp_path}/model")
    assert bundle.settings.classes == tuple(names)
    assert bundle.training["ranked"] == names
    assert bundle.metrics["held_out"]["final"]["mean"]["auc"] is not None


def test_copies_of_validation_images_are_left_out(
    drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "val").mkdir()
    labels = pd.read_csv(drawn / "labels.csv")
    for number in range(6):
        with Image.open(drawn / "images" / f"DRAWN_{number:05d}.jpg") as image:
            image.save(tmp_path / "val" / f"COPY_{number}.jpg", quality=80)
    copies = labels[:6].assign(image_id=[f"COPY_{number}" for number in range(6)])
    copies.to_csv(tmp_path / "val.csv", index=False)
    validation = {"val_images": f"{tmp_path}/val", "val_labels": f"{tmp_path}/val.csv"}
    with caplog.at_level(logging.WARNING, "lesioncam"):
        job, _ = asked(request(drawn, tmp_path / "model", **validation))
    assert "--images: 6 left out, copies of --val-images under another name" in caplog.text
    assert len(job.examples.canvases) == len(job.examples.labels) == 21


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda frame: frame.drop(columns="image_id"), "no id column"),
        (lambda frame: frame.replace({"melanoma": {1.0: 0.5}}), "column 'melanoma' holds '0.5'"),
        (lambda frame: frame.assign(image_id="x" + frame["image_id"]), "none of its 36 ids"),
        (lambda frame: frame[frame["melanoma"] == 0], "class 'melanoma' has 0 images"),
    ],
)
def test_bad_labels_are_one_line_and_nothing_is_written(
    drawn: Path, tmp_path: Path, edit: Any, message: str
) -> None:
    edit(pd.read_csv(drawn / "labels.csv")).to_csv(tmp_path / "labels.csv", index=False)
    bad = replace(request(drawn, tmp_path / "model"), labels=f"{tmp_path}/labels.csv", masks=None)
    with pytest.raises(InputError, match=message) as error:
        train(bad)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_validation_images_that_are_trained_on_are_refused(drawn: Path, tmp_path: Path) -> None:
    validation = {"val_images": f"{drawn}/images", "val_labels": f"{drawn}/labels.csv"}
    with pytest.raises(InputError, match="--val-images: 27 of its 36 images have the id of one"):
        train(request(drawn, tmp_path / "model", **validation))


def test_more_workers_than_images_in_a_batch_are_refused(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--workers: 9 workers cannot share a batch of 7 images"):
        train(request(drawn, tmp_path / "model", workers=9))


def test_stage_2_learns_what_stage_1_shows_it(drawn: Path, tmp_path: Path) -> None:
    validation = {"val_images": f"{drawn}/images", "val_labels": f"{drawn}/val.csv"}
    first, second = (
        asked(request(drawn, tmp_path / "model", **validation), stage)[0].examples
        for stage in ("stage1", "stage2")
    )
    assert (first.boxes == (0, 0, 192, 192)).all()
    np.testing.assert_array_equal(second.boxes, VIEWS[:27])
    assert len(first.boxes) == len(second.boxes) == len(second.canvases) == 27
    for same in ("labels", "held_out"):
        np.testing.assert_array_equal(getattr(first, same), getattr(second, same))
    np.testing.assert_array_equal(first.lesions.grid, second.lesions.grid)


def test_stage_2_starts_from_the_loaded_weights_with_a_linear_layer_of_its_own(
    drawn: Path, tmp_path: Path
) -> None:
    torch.save(VGGGAP("tiny", 3).state_dict(), tmp_path / "w.pth")

    def initial(stage: str, **settings: Any) -> dict[str, torch.Tensor]:
        weights = {"weights": str(tmp_path / "w.pth"), **settings}
        job, _ = asked(request(drawn, tmp_path / "model", settings=weights), stage)
        return dict(ray.get(job.initial))

    first, second = initial("stage1"), initial("stage2")
    assert first.keys() == second.keys()
    for name, tensor in second.items():
        if name.startswith("linear."):
            assert (tensor - first[name]).abs().max() > 0.05
        else:
            torch.testing.assert_close(tensor, first[name], rtol=0, atol=0)
    for name, tensor in initial("stage2", stage2_start="stage1").items():
        torch.testing.assert_close(tensor, first[name] / 2, rtol=0, atol=0)


def test_another_recipe_for_stage_2_keeps_stage_1_and_one_for_stage_1_does_not(
    drawn: Path, tmp_path: Path
) -> None:
    def run_id(stage: str = "stage1", **settings: Any) -> str:
        return asked(request(drawn, tmp_path / "model", settings=settings), stage)[1]

    first = run_id()
    assert run_id() == first
    later: dict[str, Any] = {
        "stage2_learning_rate": 0.001,
        "flips": True,
        "crop": CropRule(threshold=0.4),
    }
    assert run_id(**later) == first
    assert run_id("stage2", **later) != run_id("stage2")
    assert len({first, run_id(learning_rate=0.01), run_id(crop=CropRule(map="predicted"))}) == 3


def test_other_pixels_under_the_same_names_are_another_run(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "drawn")
    here = request(tmp_path / "drawn", tmp_path / "model")
    before = asked(here)[1]
    assert asked(here)[1] == before
    Image.new("RGB", (480, 360), "pink").save(tmp_path / "drawn" / "images" / "DRAWN_00000.jpg")
    assert asked(here)[1] != before


def test_bundles_that_share_a_storage_share_no_checkpoints(drawn: Path, tmp_path: Path) -> None:
    storage = f"{tmp_path}/storage"
    one, two = (
        checkpoints_of(request(drawn, tmp_path / place / "model", storage=storage))
        for place in ("one", "two")
    )
    assert one != two
    beside = f"{tmp_path}/one/../one/model/"
    assert checkpoints_of(request(drawn, beside, storage=storage)) == one
    bucket = [
        checkpoints_of(request(drawn, bundle, storage="s3://bucket/storage/"))
        for bundle in ("s3://bucket/model", "s3://bucket/model/", "s3://bucket/other/model")
    ]
    assert bucket[0] == bucket[1] != bucket[2]
    assert all(place.startswith("s3://bucket/storage/model-") for place in bucket)
    for place in (one, two):
        Path(place, "stage1-of-it").mkdir(parents=True)
    remove_checkpoints(one)
    assert not list(Path(one).iterdir())
    assert Path(two, "stage1-of-it").is_dir()


def test_a_loss_that_is_no_number_is_told(drawn: Path, tmp_path: Path) -> None:
    state = VGGGAP("tiny", 3).state_dict()
    torch.save({name: tensor * float("nan") for name, tensor in state.items()}, tmp_path / "w.pth")
    spoilt = {"weights": str(tmp_path / "w.pth")}
    with pytest.raises(InputError, match="stage1 diverged, its loss in epoch 1 is not a number"):
        train(request(drawn, tmp_path / "model", settings=spoilt))


def test_more_gpus_than_there_are_is_bad_input(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--gpu: 2 workers need a GPU each"):
        train(request(drawn, tmp_path / "model", workers=2, gpu=True))
    assert not list(tmp_path.iterdir())
