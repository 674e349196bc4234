"""What each stage trains on and from which weights, and which jobs are the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from lesioncam.settings import CropRule
from lesioncam.training.batches import Examples
from lesioncam.training.dataset import Dataset
from lesioncam.training.initial import initial_network
from lesioncam.training.stage import Setup, StageJob
from lesioncam.training.stage_jobs import stage1_job, stage2_job
from lesioncam.vision.network import VGGGAP
from tests.training.small import LABELS, SMALL, WORKERS, flat_dataset

pytestmark = pytest.mark.usefixtures("local_ray")

CROP_BOXES = np.add.outer(np.arange(4), (4, 8, 88, 76))
NO_BOARD: Any = None


def jobs(dataset: Dataset | None = None, **changes: Any) -> tuple[StageJob, StageJob]:
    """Both stages' jobs of a run whose stage 1 halves its weights."""
    settings = replace(SMALL, **changes).resolved()
    model, initial = initial_network(settings, LABELS)
    setup = Setup(settings, model, (0, 1), WORKERS, NO_BOARD, "/bundle", "run-1")
    dataset = dataset or flat_dataset(10, 90, 170, 250)
    stage1 = {name: tensor / 2 for name, tensor in initial.items()}
    return (
        stage1_job(setup, dataset, initial),
        stage2_job(setup, dataset, initial, stage1, CROP_BOXES),
    )


def test_stage_1_sees_whole_canvases_and_stage_2_crops_of_the_same_images() -> None:
    first, second = (ray.get(job.examples) for job in jobs())
    assert isinstance(first, Examples)
    assert (first.boxes == (0, 0, 192, 192)).all()
    np.testing.assert_array_equal(second.boxes, CROP_BOXES)
    assert len(first.boxes) == len(second.boxes) == len(second.canvases) == 4
    for same in ("labels", "held_out"):
        np.testing.assert_array_equal(getattr(first, same), getattr(second, same))
    np.testing.assert_array_equal(first.lesion_masks.grid, second.lesion_masks.grid)


def test_large_arrays_travel_by_reference() -> None:
    job, _ = jobs(flat_dataset(*range(0, 250, 2)))
    assert len(ray.cloudpickle.dumps(job)) < 10_000


def test_the_input_size_sets_those_of_epochs_and_canvases() -> None:
    first, second = jobs(
        input_size=64, stage1_epochs=4, low_resolution_fraction=0.5, low_resolution_scale=0.75
    )
    assert first.sizes == (48, 48, 64, 64)
    assert first.next_sizes == second.sizes == (64,)
    assert second.next_sizes == ()
    assert (first.setup.model.input_size, first.setup.model.canvas_size) == (64, 128)
    assert (ray.get(first.examples).boxes == (0, 0, 128, 128)).all()


def test_stage_2_starts_from_the_loaded_weights_with_a_new_linear_layer(tmp_path: Path) -> None:
    torch.save(VGGGAP("tiny", 3).state_dict(), tmp_path / "w.pth")
    loaded = f"{tmp_path}/w.pth"
    first, second = (ray.get(job.initial) for job in jobs(weights=loaded))
    assert first.keys() == second.keys()
    for name, tensor in second.items():
        if name.startswith("linear."):
            assert (tensor - first[name]).abs().max() > 0.05
        else:
            torch.testing.assert_close(tensor, first[name], rtol=0, atol=0)
    _, from_stage1 = jobs(weights=loaded, stage2_start="stage1")
    _, without_weights = jobs()
    for job in (from_stage1, without_weights):
        halved = ray.get(job.initial)
        assert (halved["mean"] - first["mean"] / 2).abs().max() == 0


def test_settings_of_stage_2_change_its_fingerprint_only() -> None:
    later: dict[str, Any] = {
        "stage2_learning_rate": 0.001,
        "test_time_rotation": True,
        "crop": CropRule(threshold=0.4),
    }
    first, second = (job.fingerprint for job in jobs())
    assert [job.fingerprint for job in jobs()] == [first, second]
    changed = [job.fingerprint for job in jobs(**later)]
    assert changed[0] == first
    assert changed[1] != second
    combined = jobs(stage2_weight=0.3)  # which is applied after both stages
    assert [job.fingerprint for job in combined] == [first, second]


@pytest.mark.parametrize("changes", [{"learning_rate": 0.01}, {"crop": CropRule(map="predicted")}])
def test_settings_of_stage_1_change_both_fingerprints(changes: dict[str, Any]) -> None:
    for before, after in zip(jobs(), jobs(**changes), strict=True):
        assert before.fingerprint != after.fingerprint


def test_other_pixels_under_the_same_names_are_another_job() -> None:
    one, same, other = (
        jobs(flat_dataset(*grays))[0].fingerprint
        for grays in ((10, 90, 170, 250), (10, 90, 170, 250), (10, 90, 171, 250))
    )
    assert one == same != other


def test_other_collections_are_another_job() -> None:
    dataset = flat_dataset(10, 90, 170, 250)
    known = np.array(dataset.known_classes)
    known[0, 0] = False
    for before, after in zip(
        jobs(dataset), jobs(replace(dataset, known_classes=known)), strict=True
    ):
        assert before.fingerprint != after.fingerprint
