"""The actors alone: what they make of a table is what the networks make of its canvases."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from lesioncam.columns import Status, probability_columns
from lesioncam.schema import MANIFEST_SCHEMA
from lesioncam.scoring.fetch import pixel_column
from lesioncam.scoring.stages import Classify, Compute, Localize
from lesioncam.settings import ModelSettings
from lesioncam.storage.bundle import load_bundle
from lesioncam.vision.classifier import CropClassifier, Localizer, to_channels_first
from lesioncam.vision.network import build_network
from tests.messy import lesion

COMPUTE = Compute("float32", 4)
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def decoded(canvases: np.ndarray) -> pa.Table:
    """A table as decoding leaves it, all of its images good."""
    count = len(canvases)
    manifest = [
        {"row": row, "uri": f"/images/{row}.png", "size": 1, "etag": "e", "last_modified": NOW}
        for row in range(count)
    ]
    table = pa.Table.from_pylist(manifest, MANIFEST_SCHEMA)
    for name, values in {
        "status": pa.array([Status.OK] * count, pa.string()),
        "error_kind": pa.nulls(count, pa.string()),
        "error": pa.nulls(count, pa.string()),
        "width": pa.array([96] * count, pa.int32()),
        "height": pa.array([72] * count, pa.int32()),
        "canvas": pixel_column(canvases),
    }.items():
        table = table.append_column(name, values)
    return table


def probabilities(table: pa.Table, settings: ModelSettings, stage: str) -> torch.Tensor:
    columns = probability_columns(settings.classes, stage)
    return torch.from_numpy(np.stack([table[name].to_numpy() for name in columns], axis=1))


@pytest.mark.usefixtures("local_ray", "threads_restored")
@pytest.mark.parametrize("test_time_rotation", [False, True])
def test_both_stages_look_at_images_as_the_bundle_says(
    bundle_uri: str, test_time_rotation: bool
) -> None:
    bundle = load_bundle(bundle_uri)
    settings = replace(bundle.settings, test_time_rotation=test_time_rotation)
    side = settings.canvas_size
    drawn = np.stack([np.asarray(lesion(96, 72, n).resize((side, side))) for n in range(3)])
    localized = Localize(settings, ray.put(bundle.stage1), COMPUTE)(decoded(drawn))
    scored = Classify(settings, ray.put(bundle.stage2), COMPUTE, "m", "r", NOW)(localized)

    stage1, stage2 = (
        build_network(settings, state).eval() for state in (bundle.stage1, bundle.stage2)
    )
    canvases = to_channels_first(torch.from_numpy(drawn))

    def by_hand(test_time_rotation: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model = replace(settings, test_time_rotation=test_time_rotation)
        found = Localizer(model, stage1)(canvases)
        return found.probabilities, CropClassifier(model, stage2)(found.crops)

    for stage, own, other in zip(
        ("stage1", "stage2"),
        by_hand(test_time_rotation),
        by_hand(not test_time_rotation),
        strict=True,
    ):
        seen = probabilities(scored, settings, stage)
        torch.testing.assert_close(seen, own, atol=1e-4, rtol=0)
        assert (seen - other).abs().max() > 1e-3, stage
