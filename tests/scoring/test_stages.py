"""Stages: a table's columns are the networks' outputs for its canvases; without Ray."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from lesioncam.columns import ErrorKind, Quality, probability_columns
from lesioncam.schema import MANIFEST_SCHEMA
from lesioncam.scoring.rows import Outcome, with_canvases
from lesioncam.scoring.stages import Classify, Localize
from lesioncam.settings import Calibration, ModelSettings, OperatingPoint
from lesioncam.storage.bundle import Bundle, load_bundle
from lesioncam.vision.classifier import (
    CropClassifier,
    Localization,
    Localizer,
    TwoStageClassifier,
    to_channels_first,
)
from lesioncam.vision.decode import Decoded, DecodeError, decode_image
from lesioncam.vision.network import build_network
from tests.messy import lesion

BATCH = 4
STAGES = ("stage1", "stage2", "final")


def classifier(bundle: Bundle, settings: ModelSettings) -> TwoStageClassifier:
    stage1, stage2 = (
        build_network(settings, state).eval() for state in (bundle.stage1, bundle.stage2)
    )
    return TwoStageClassifier(Localizer(settings, stage1), CropClassifier(settings, stage2))


def classified(model: TwoStageClassifier, outcomes: Iterable[Outcome]) -> pa.Table:
    """Images through both stages."""
    outcomes = list(outcomes)
    manifest = [{"row": row, "uri": f"/{row}.png"} for row in range(len(outcomes))]
    table = pa.Table.from_pylist(manifest, MANIFEST_SCHEMA)
    table = with_canvases(table, outcomes, model.localize.settings.canvas_size)
    return Classify(model.classify, BATCH)(Localize(model.localize, BATCH)(table))


def images(settings: ModelSettings, count: int) -> list[Decoded]:
    return [decode_image(lesion(96, 72, seed), settings.canvas_size) for seed in range(count)]


def probabilities(table: pa.Table, settings: ModelSettings, stage: str) -> np.ndarray:
    columns = probability_columns(settings.classes, stage)
    return np.stack([table[name].to_numpy() for name in columns], axis=1)


@pytest.mark.parametrize("test_time_rotation", [False, True])
def test_columns_are_what_the_classifier_finds(bundle_uri: str, test_time_rotation: bool) -> None:
    bundle = load_bundle(bundle_uri)
    settings = replace(bundle.settings, test_time_rotation=test_time_rotation)
    model, decoded = classifier(bundle, settings), images(settings, 3)
    table = classified(model, decoded)
    canvases = np.stack([one.canvas for one in decoded])
    found = model(to_channels_first(torch.from_numpy(canvases)))
    expected = (found.localization.probabilities, found.stage2, found.final)
    for stage, values in zip(STAGES, expected, strict=True):
        np.testing.assert_allclose(probabilities(table, settings, stage), values, atol=1e-5)
    best = [settings.classes[k] for k in found.final.argmax(dim=1)]
    assert table["prediction"].to_pylist() == best
    assert table["cam"].to_pylist() == [cam.numpy().tobytes() for cam in found.localization.maps]


def test_an_image_alone_gives_the_numbers_it_gives_in_a_batch(bundle_uri: str) -> None:
    bundle = load_bundle(bundle_uri)
    model, decoded = classifier(bundle, bundle.settings), images(bundle.settings, BATCH)
    together = classified(model, decoded)
    for row, one in enumerate(decoded):
        alone = classified(model, [one])
        for name in set(alone.column_names) - {"row", "uri"}:
            assert alone[name].to_pylist() == together[name].slice(row, 1).to_pylist(), name


@pytest.mark.parametrize("at_border", [False, True])
def test_a_lesion_at_the_border_is_part_of_the_quality(
    bundle_uri: str, monkeypatch: pytest.MonkeyPatch, at_border: bool
) -> None:
    bundle = load_bundle(bundle_uri)
    localize = Localizer.__call__

    def found(*arguments: Any) -> Localization:
        return replace(localize(*arguments), at_border=torch.full((BATCH,), at_border))

    monkeypatch.setattr(Localizer, "__call__", found)
    good = replace(images(bundle.settings, 1)[0], quality=(Quality.OVEREXPOSED,))
    bad = DecodeError(ErrorKind.EMPTY, "no bytes")
    table = classified(classifier(bundle, bundle.settings), [bad, good])
    expected = ["overexposed", "lesion_at_border"] if at_border else ["overexposed"]
    assert table["quality"].to_pylist() == [None, expected]


def test_flags_are_set_from_the_threshold_on_and_null_without_one(bundle_uri: str) -> None:
    bundle = load_bundle(bundle_uri)
    bad = DecodeError(ErrorKind.EMPTY, "no bytes")
    decoded: list[Outcome] = [*images(bundle.settings, BATCH - 1), bad]
    calibration = Calibration(0.5, (0.5, 0.0, -0.5), 300, "a test")
    settings = replace(bundle.settings, calibration=calibration)
    final = probabilities(classified(classifier(bundle, settings), decoded), settings, "final")
    threshold = float(np.sort(final[:, 0])[1])  # the middle one of three
    point = OperatingPoint("melanoma", threshold, "sensitivity", 0.95, 1, 0.5, 50, 50, "a test")
    settings = replace(settings, operating_points=(point,))
    table = classified(classifier(bundle, settings), decoded)
    assert sorted(table["flag_melanoma"].to_pylist()[:-1]) == [False, True, True]
    expected = final[: BATCH - 1, 0] >= threshold
    assert table["flag_melanoma"].to_pylist() == [*expected.tolist(), None]
    for name in ("flag_seborrheic_keratosis", "flag_nevus"):
        assert table[name].null_count == BATCH


def test_final_probabilities_are_calibrated_and_the_stages_are_not(bundle_uri: str) -> None:
    bundle = load_bundle(bundle_uri)
    decoded = images(bundle.settings, BATCH)
    plain = classified(classifier(bundle, bundle.settings), decoded)
    calibration = Calibration(0.25, (0.0, 3.0, 0.0), 300, "a test")
    settings = replace(bundle.settings, calibration=calibration)
    table = classified(classifier(bundle, settings), decoded)
    for stage in ("stage1", "stage2"):
        for name in probability_columns(settings.classes, stage):
            assert table[name].equals(plain[name])
    mean = probabilities(plain, settings, "final")
    expected = mean**4 * np.exp([0, 3, 0])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(table, settings, "final"), expected, rtol=1e-4)
    best = [settings.classes[k] for k in expected.argmax(axis=1)]
    assert table["prediction"].to_pylist() == best


def test_failed_rows_keep_their_error_and_have_no_results(bundle_uri: str) -> None:
    bundle = load_bundle(bundle_uri)
    good, bad = images(bundle.settings, 1)[0], DecodeError(ErrorKind.EMPTY, "no bytes")
    table = classified(classifier(bundle, bundle.settings), [bad, good, bad])
    assert table["error_kind"].to_pylist() == ["empty", None, "empty"]
    results = [name for name in table.column_names if "p_" in name or name.startswith("box_")]
    for name in (*results, "cam", "cam_flat", "prediction", "quality"):
        assert table[name].is_null().to_pylist() == [True, False, True], name
