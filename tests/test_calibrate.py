"""Calibrate: a bundle gets calibration and operating points, with the weights as they were."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import lesioncam
from lesioncam.cli import main
from lesioncam.columns import STAGES, probability_columns
from lesioncam.errors import InputError
from lesioncam.schema import scores_schema
from lesioncam.storage.bundle import load_bundle, read_bundle, save_bundle
from lesioncam.storage.lease import LEASE_FILE
from lesioncam.storage.results import Results
from lesioncam.vision.metrics import evaluate_stages
from tests.conftest import CLASSES
from tests.training.small import FACTS, hold_lease

COUNT = 90


@pytest.fixture(scope="module")
def trained_uri(bundle_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny bundle with the facts that a training leaves."""
    uri = str(tmp_path_factory.mktemp("bundle") / "trained")
    probabilities = np.eye(3)[[0, 0, 1, 2]]
    figures = evaluate_stages(
        dict.fromkeys(STAGES, probabilities), np.array([0, 1, 1, 2]), CLASSES, CLASSES[:2]
    )
    for name in CLASSES:
        del figures["final"][name]["calibration_error"]  # as of an earlier version
    bundle = replace(load_bundle(bundle_uri), training=FACTS, metrics={"held_out": figures})
    save_bundle(bundle, uri, "# A tiny bundle\n")
    return uri


@pytest.fixture
def scores(trained_uri: str, tmp_path: Path) -> Path:
    """Rows of the bundle: image i is of class i % 3. The mean of both stages is too modest."""
    return write_scores(tmp_path / "scores", read_bundle(trained_uri).digest)


def write_scores(output: Path, model: str) -> Path:
    random = np.random.default_rng(0)
    rows = pd.DataFrame(index=range(COUNT), columns=scores_schema(CLASSES).names)
    rows["uri"] = [f"/images/{number:03d}.jpg" for number in range(COUNT)]
    rows["image_id"] = [f"{number:03d}" for number in range(COUNT)]
    rows["status"], rows["prediction"], rows["model"] = "ok", "nevus", model
    for stage in ("stage1", "stage2", "final"):
        raw = np.exp(2 * np.eye(3)[np.arange(COUNT) % 3] + 2 * random.normal(size=(COUNT, 3)))
        rows[probability_columns(CLASSES, stage)] = raw / raw.sum(axis=1, keepdims=True)
    results = Results(str(output))
    results.write_part("part-a.parquet", pa.Table.from_pandas(rows, scores_schema(CLASSES)))
    results.succeed()
    return output


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write_labels(tmp_path / "labels.csv", range(COUNT))


def write_labels(path: Path, numbers: Iterable[int]) -> Path:
    numbers = list(numbers)
    names = [CLASSES[number % 3] for number in numbers]
    frame = pd.DataFrame({"image_id": [f"{number:03d}" for number in numbers], "dx": names})
    frame.to_csv(path, index=False)
    return path


def test_a_bundle_gets_calibration_and_the_default_operating_point(
    trained_uri: str, scores: Path, labels: Path, tmp_path: Path
) -> None:
    output = tmp_path / "calibrated"
    done = lesioncam.calibrate(trained_uri, scores, labels, output)
    before, after = read_bundle(trained_uri), read_bundle(str(output))
    assert (done["bundle"], done["model"], done["images"]) == (str(output), after.digest, COUNT)
    assert after.digest != before.digest
    assert after.weights == before.weights
    assert after.settings.calibration is not None
    assert after.settings.calibration.temperature < 0.9
    (point,) = after.settings.operating_points
    assert (point.name, point.criterion, point.wanted) == ("melanoma", "sensitivity", 0.95)
    assert point.sensitivity >= 0.95
    assert done["operating_points"][0]["threshold"] == point.threshold
    assert after.load().training["calibrated"] == {"model": before.digest, "images": COUNT}
    assert "The results above are those of the training" in after.card
    assert "| melanoma | 1.000 | 0.667 | not measured |" in after.card


def test_thresholds_are_chosen_for_what_is_wanted_and_again_for_the_same(
    trained_uri: str, labels: Path, scores: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    wanted: dict[str, Any] = {"sensitivity": {"melanoma": 0.8}, "specificity": {"nevus": 0.7}}
    done = lesioncam.calibrate(trained_uri, scores, labels, first, **wanted)
    again = write_scores(tmp_path / "again", done["model"])
    repeated = lesioncam.calibrate(first, again, labels, second)
    assert repeated["operating_points"] == done["operating_points"]
    assert wanted_of(done) == {"melanoma": ("sensitivity", 0.8), "nevus": ("specificity", 0.7)}
    assert all(point[point["criterion"]] >= point["wanted"] for point in done["operating_points"])


def wanted_of(done: dict[str, Any]) -> dict[str, tuple[str, float]]:
    return {
        point["name"]: (point["criterion"], point["wanted"]) for point in done["operating_points"]
    }


def test_a_class_that_is_not_named_keeps_its_threshold(
    trained_uri: str, labels: Path, scores: Path, tmp_path: Path
) -> None:
    done = lesioncam.calibrate(
        trained_uri, scores, labels, tmp_path / "out", sensitivity={"nevus": 0.9}
    )
    assert wanted_of(done) == {"melanoma": ("sensitivity", 0.95), "nevus": ("sensitivity", 0.9)}


def test_few_images_of_a_class_are_reported(
    trained_uri: str, scores: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = write_labels(tmp_path / "few.csv", range(30))
    with caplog.at_level(logging.INFO, "lesioncam"):
        assert lesioncam.calibrate(trained_uri, scores, few, tmp_path / "out")["images"] == 30
    assert "10 melanoma, 10 seborrheic_keratosis, 10 nevus" in caplog.text
    assert f"not used: {COUNT - 30} images without label" in caplog.text
    assert "the threshold for melanoma was chosen on 10 images of it and 20 others" in caplog.text


def test_the_verb_prints_the_thresholds(
    trained_uri: str,
    scores: Path,
    labels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = ["--bundle", trained_uri, "--scores", str(scores), "--labels", str(labels)]
    output = str(tmp_path / "out")
    wanted = ["--sensitivity", "melanoma=0.9,seborrheic_keratosis=0.8"]
    assert main(["calibrate", *paths, "--output", output, *wanted]) == 0
    printed = capsys.readouterr().out.splitlines()
    settings = read_bundle(output).settings
    assert printed[0] == f"calibrated on {COUNT} images"
    for line, point in zip(printed[1:3], settings.operating_points, strict=True):
        assert line == (
            f"flag_{point.name}: from p_{point.name} {point.threshold:.3g} on; sensitivity "
            f"{point.sensitivity:.3f}, specificity {point.specificity:.3f} on the labeled images"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sensitivity": {"mole": 0.9}}, "'mole' is no class of the bundle; it has melanoma"),
        ({"sensitivity": {"melanoma": 1.0}}, "sensitivity is 1.0; it should be above 0 and below"),
        (
            {"sensitivity": {"melanoma": 0.9}, "specificity": {"melanoma": 0.9}},
            "specificity is 'melanoma'; it should be of classes that sensitivity does not name",
        ),
    ],
)
def test_what_cannot_be_wanted_is_refused(
    trained_uri: str,
    scores: Path,
    labels: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        lesioncam.calibrate(trained_uri, scores, labels, tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_scores_of_another_model_and_a_class_without_images_are_refused(
    trained_uri: str, labels: Path, scores: Path, tmp_path: Path
) -> None:
    other = write_scores(tmp_path / "other", "another model")
    with pytest.raises(InputError, match="was not scored with bundle; score the images with it"):
        lesioncam.calibrate(trained_uri, other, labels, tmp_path / "out")
    two = write_labels(tmp_path / "two.csv", (n for n in range(COUNT) if n % 3 != 1))
    with pytest.raises(InputError, match="no scored image is of class seborrheic_keratosis"):
        lesioncam.calibrate(trained_uri, scores, two, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_not_overwritten(
    trained_uri: str, scores: Path, labels: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds a bundle; name another directory"):
        lesioncam.calibrate(trained_uri, scores, labels, trained_uri)
    hold_lease(tmp_path / "out", "another run")
    with pytest.raises(InputError, match="is being written by run another run"):
        lesioncam.calibrate(trained_uri, scores, labels, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.json")] == [Path(LEASE_FILE).name]
