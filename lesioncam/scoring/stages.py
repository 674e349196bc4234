"""The two stages as operators of the scoring pipeline: each takes a `pyarrow.Table`, returns one.

A failed image is a row like any other; the networks see only the good ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

from lesioncam import __version__
from lesioncam.cluster import device_here
from lesioncam.columns import BOX_COLUMNS, Status, probability_columns
from lesioncam.schema import MANIFEST_SCHEMA, scores_schema
from lesioncam.scoring.fetch import pixel_column, pixels_of
from lesioncam.settings import ModelSettings
from lesioncam.telemetry import timed
from lesioncam.vision.classifier import CropClassifier, Localizer, combine, to_channels_first
from lesioncam.vision.crop import boxes_in_image
from lesioncam.vision.network import VGGGAP, build_network, prepare_for_inference


@dataclass(frozen=True)
class Compute:
    """How an actor runs its network."""

    precision: str
    batch_size: int

    def load(self, settings: ModelSettings, state: ray.ObjectRef) -> VGGGAP:
        """The network of one stage, ready for inference in this process."""
        device = device_here()
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is an actor for each core
        network = build_network(settings, ray.get(state))
        return prepare_for_inference(network, device, self.precision)

    def batch(self, column: pa.ChunkedArray, side: int) -> tuple[Tensor, int]:
        """A pixel column as (batch_size, 3, side, side) on the device, and how many are real.

        The rest is black: every pass has one shape, so that an image's result
        does not depend on how many others came with it.
        """
        pixels = pixels_of(column, side)
        batch = np.zeros((self.batch_size, side, side, 3), np.uint8)
        batch[: len(pixels)] = pixels
        return to_channels_first(torch.from_numpy(batch)).to(device_here()), len(pixels)


class Localize:
    """Stage 1: canvases -> probabilities, CAM, box and crop."""

    def __init__(self, settings: ModelSettings, state: ray.ObjectRef, compute: Compute):
        self._settings, self._compute = settings, compute
        self._localize = Localizer(settings, compute.load(settings, state))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `canvas` by `crop` and what stage 1 found; null and black in failed rows."""
        with timed("localize", table.num_rows):
            return self._localized(table)

    def _localized(self, table: pa.Table) -> pa.Table:
        settings = self._settings
        good = _good_rows(table)
        chosen = table.take(good)
        canvases, count = self._compute.batch(chosen["canvas"], settings.canvas_size)
        found = self._localize(canvases)
        boxes = boxes_in_image(
            found.boxes[:count].cpu(),
            settings.canvas_size,
            torch.from_numpy(chosen["width"].to_numpy().astype(np.int64)),
            torch.from_numpy(chosen["height"].to_numpy().astype(np.int64)),
        )
        maps = found.maps[:count].cpu().numpy()
        columns: dict[str, pa.Array] = {
            **_probability_arrays(found.probabilities[:count], settings.classes, "stage1"),
            **{
                name: pa.array(boxes[:, i].numpy(), pa.int32())
                for i, name in enumerate(BOX_COLUMNS)
            },
            "cam_flat": pa.array(found.flat[:count].cpu().numpy()),
            "cam": pa.array([one.tobytes() for one in maps], pa.binary()),
        }
        side = settings.input_size
        crop_pixels = np.zeros((table.num_rows, side, side, 3), np.uint8)
        crop_pixels[good.to_numpy()] = found.crops[:count].permute(0, 2, 3, 1).cpu().numpy()
        return _append_scattered(table.drop_columns("canvas"), good, columns).append_column(
            "crop", pixel_column(crop_pixels)
        )


class Classify:
    """Stage 2: crops -> probabilities, and the finished row in the scores' schema.

    A row is newer than all that stood there before its run, whatever this machine's clock says.
    """

    def __init__(
        self,
        settings: ModelSettings,
        state: ray.ObjectRef,
        compute: Compute,
        model: str,
        run_id: str,
        not_before: datetime,
    ):
        self._settings, self._compute = settings, compute
        self._model, self._run_id = model, run_id
        self._not_before = not_before
        self._schema = scores_schema(settings.classes)
        self._classify = CropClassifier(settings, compute.load(settings, state))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Finish the rows; the result has the scores' schema and `row`, to name its part by."""
        with timed("classify", table.num_rows):
            return self._classified(table)

    def _classified(self, table: pa.Table) -> pa.Table:
        settings = self._settings
        good = _good_rows(table)
        chosen = table.take(good)
        crops, count = self._compute.batch(chosen["crop"], settings.input_size)
        stage2 = self._classify(crops)[:count].cpu()
        stage1_columns = probability_columns(settings.classes, "stage1")
        stage1 = torch.from_numpy(np.stack([chosen[name].to_numpy() for name in stage1_columns], 1))
        final = combine(stage1, stage2, settings.stage2_weight)
        names = np.array(settings.classes, dtype=object)
        columns = {
            **_probability_arrays(final, settings.classes, "final"),
            **_probability_arrays(stage2, settings.classes, "stage2"),
            "prediction": pa.array(names[final.argmax(dim=1).numpy()], pa.string()),
        }
        rows = _append_scattered(table.drop_columns("crop"), good, columns)
        constant = {
            "model": self._model,
            "run_id": self._run_id,
            "lesioncam_version": __version__,
            "scored_at": max(self._not_before, datetime.now(UTC)),
        }
        for name, value in constant.items():
            array = pa.repeat(pa.scalar(value, self._schema.field(name).type), rows.num_rows)
            rows = rows.append_column(name, array)
        finished = rows.select(self._schema.names).cast(self._schema)
        return finished.append_column(MANIFEST_SCHEMA.field("row"), rows["row"])


def _good_rows(table: pa.Table) -> pa.Array:
    """Places of the rows that are ok."""
    return pa.array(np.flatnonzero(pc.equal(table["status"], Status.OK).to_numpy()), pa.int64())


def _probability_arrays(
    probabilities: Tensor, classes: Sequence[str], stage: str
) -> dict[str, pa.Array]:
    values = probabilities.float().cpu().numpy()
    names = probability_columns(classes, stage)
    return {name: pa.array(values[:, i], pa.float32()) for i, name in enumerate(names)}


def _append_scattered(
    table: pa.Table, places: pa.Array, columns: Mapping[str, pa.Array]
) -> pa.Table:
    """Append columns that have values at `places` only, null elsewhere."""
    source = np.full(table.num_rows, -1)
    source[places.to_numpy()] = np.arange(len(places))
    indices = pa.array(source, pa.int64(), mask=source < 0)
    for name, values in columns.items():
        table = table.append_column(name, values.take(indices))
    return table
