import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import ray.train
import torch
from PIL import Image

from lesioncam.errors import InputError, RunFailedError
from lesioncam.settings import CropRule
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.labels import read_labels
from lesioncam.storage.lease import LEASE_FILE, check_holder
from lesioncam.storage.uris import open_store
from lesioncam.training.canvases import Canvases
from lesioncam.training.fit import remove_checkpoints
from lesioncam.training.initial import initial_network
from lesioncam.training.job import TrainRequest, checkpoints_of, train
from lesioncam.training.predict import Stage1Predictions
from lesioncam.training.stage import StageJob, StageState, read_state
from lesioncam.vision.network import VGGGAP
from tests.training.small import SMALL, history, request

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def trained(
    drawn: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, dict[str, Any]]:
    """A bundle that one worker trained, named from where it is, and what `train` returned."""
    folder = tmp_path_factory.mktemp("trained")
    validation = {"val_images": f"{drawn}/images", "val_labels": f"{drawn}/val.csv"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / "model", train(request(drawn, "model", **validation))


@pytest.fixture(scope="module")
def broke_off(
    drawn: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, dict[str, StageState]]:
    """Where two workers trained a bundle that found no room on the disk; their checkpoints."""

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    place = tmp_path_factory.mktemp("broke_off") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesioncam.training.job.save_bundle", full_disk)
        with pytest.raises(
            RunFailedError, match="no space left; fix that and run the same command again"
        ):
            train(request(drawn, place, workers=2))
    checkpoints = Path(f"{place}-checkpoints")
    return place, {
        stage: read_state(ray.train.Checkpoint(max(checkpoints.glob(f"{stage}-*/checkpoint_*/"))))
        for stage in ("stage1", "stage2")
    }


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

    def localize_all(canvases: Canvases, *_: object) -> Stage1Predictions:
        seen = len(canvases)
        maps = np.zeros((seen, 6, 6), np.uint8)
        return Stage1Predictions(np.zeros((seen, 3)), BOXES[:seen], VIEWS[:seen], maps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesioncam.training.job.ProgressBoard.create", lambda: None)
        patch.setattr("lesioncam.training.job.fit", fit)
        patch.setattr("lesioncam.training.job.localize_all", localize_all)
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
    assert [(entry["epoch"], entry["side"]) for entry in history(folder)] == [(1, 80), (2, 96)]
    assert bundle.training["stage1"]["best_epoch"] == 2  # the one at the full side
    assert set(bundle.metrics) == {"held_out", "validation"}
    assert bundle.metrics["held_out"]["localization"]["masks"] > 0
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


def test_two_workers_see_the_same_batches_as_one(
    drawn: Path, trained: tuple[Path, dict[str, Any]], broke_off: tuple[Path, dict[str, StageState]]
) -> None:
    one, two = load_bundle(str(trained[0])), broke_off[1]
    start = initial_network(SMALL, read_labels(f"{drawn}/train.csv", "nevus"))[1]
    before = {"stage1": (start, start), "stage2": (one.stage1, two["stage1"].best)}
    for stage, (one_before, two_before) in before.items():  # no weights are loaded for stage 2
        first = learned(getattr(one, stage), one_before)
        second = learned(two[stage].best, two_before)
        assert (second - first).norm() < 0.2 * first.norm()
        np.testing.assert_allclose(
            [entry["loss"] for entry in two[stage].history],
            [entry["loss"] for entry in history(trained[0], stage)],
            rtol=0.01,
        )


def test_the_same_command_goes_on_from_finished_stages(
    drawn: Path, broke_off: tuple[Path, dict[str, StageState]], caplog: pytest.LogCaptureFixture
) -> None:
    place, states = broke_off
    with caplog.at_level(logging.INFO, "lesioncam"):
        train(request(drawn, place, workers=2))
    assert "stage 1: going on from the checkpoint after epoch 2" in caplog.text
    assert "stage 2: going on from the checkpoint after epoch 1" in caplog.text
    assert not list(Path(f"{place}-checkpoints").iterdir())
    assert not open_store(str(place)).exists(LEASE_FILE)
    bundle = load_bundle(str(place))
    for stage, weights in (("stage1", bundle.stage1), ("stage2", bundle.stage2)):
        torch.testing.assert_close(dict(weights), dict(states[stage].best), rtol=0, atol=0)
        # Two workers looked at half of the held-out images each; now each image was predicted.
        best = states[stage].history[states[stage].best_epoch - 1]
        assert best["mean_auc"] == bundle.metrics["held_out"][stage]["mean"]["auc"]


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


def test_another_input_side_is_that_of_epochs_canvases_and_bundle(
    drawn: Path, tmp_path: Path
) -> None:
    small = {
        "input_size": 64,
        "stage1_epochs": 4,
        "low_resolution_fraction": 0.5,
        "low_resolution_scale": 0.75,
    }
    job, _ = asked(request(drawn, tmp_path / "model", settings=small))
    assert job.sides == (48, 48, 64, 64)
    assert (job.model.input_size, job.model.canvas_size) == (64, 128)
    assert (job.examples.boxes == (0, 0, 128, 128)).all()


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
        "test_time_rotation": True,
        "crop": CropRule(threshold=0.4),
    }
    assert run_id(**later) == first
    second = run_id("stage2")
    assert run_id("stage2", **later) != second
    assert run_id("stage2", stage2_weight=0.3) == second  # that is of what both came to
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
