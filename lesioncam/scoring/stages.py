"""Stages: the two networks as functions of a table; each takes a `pyarrow.Table`, returns one.

The networks see only the good rows. Knows nothing about Ray, so that a job and the Python API run
the same code. Shapes: `B` batch, `K` classes, `S` canvas size, `s` input size.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lesioncam.columns import BOX_COLUMNS, Quality, probability_columns
from lesioncam.schema import STRINGS
from lesioncam.scoring.rows import (
    append_scattered,
    flag_arrays,
    good_rows,
    pixel_column,
    pixels_of,
    probability_arrays,
)
from lesioncam.settings import ModelSettings, Quantization, stage_ranges
from lesioncam.vision.classifier import CropClassifier, Localizer, combine, to_channels_first
from lesioncam.vision.crop import boxes_in_image
from lesioncam.vision.engine import load_network
from lesioncam.vision.hardware import BATCH_SIZES


class Localize:
    """Stage 1: canvases -> probabilities, CAM, box and crop.

    Args:
        localizer: with its network ready for inference.
        batch_size: B, the images of each forward pass; no table may have more rows.
    """

    def __init__(self, localizer: Localizer, batch_size: int):
        self._localizer, self._batch_size = localizer, batch_size

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `canvas` by `crop` and what stage 1 found, and complete `quality`.

        Null and black in failed rows.
        """
        settings = self._localizer.settings
        rows = good_rows(table)
        good = table.take(rows)
        device = self._localizer.network.class_weights.device
        batch = _batch(good["canvas"], settings.canvas_size, self._batch_size, device)
        found = self._localizer(batch)
        canvas_boxes, flat = found.boxes[: len(rows)].cpu(), found.flat[: len(rows)].cpu()
        boxes = boxes_in_image(
            canvas_boxes,
            settings.canvas_size,
            torch.from_numpy(good["width"].to_numpy().astype(np.int64)),
            torch.from_numpy(good["height"].to_numpy().astype(np.int64)),
        ).numpy()
        stage1 = found.probabilities[: len(rows)].float().cpu().numpy()
        maps = found.maps[: len(rows)].cpu().numpy()
        columns = {
            **probability_arrays(stage1, settings.classes, "stage1"),
            **{name: pa.array(boxes[:, i], pa.int32()) for i, name in enumerate(BOX_COLUMNS)},
            "cam_flat": pa.array(flat.numpy()),
            "cam": pa.array([cam.tobytes() for cam in maps], pa.binary()),
            "quality": pa.array(
                [
                    [*known, Quality.LESION_AT_BORDER] if at_border else known
                    for known, at_border in zip(
                        good["quality"].to_pylist(),
                        found.at_border[: len(rows)].tolist(),
                        strict=True,
                    )
                ],
                STRINGS,
            ),
        }
        side = settings.input_size
        crops = np.zeros((table.num_rows, side, side, 3), np.uint8)
        crops[rows.to_numpy()] = found.crops[: len(rows)].permute(0, 2, 3, 1).cpu().numpy()
        localized = append_scattered(table.drop_columns(["canvas", "quality"]), rows, columns)
        return localized.append_column("crop", pixel_column(crops))


class Classify:
    """Stage 2: crops -> its probabilities, the final ones and the prediction.

    Args:
        classifier: with its network ready for inference.
        batch_size: B, the images of each forward pass; no table may have more rows.
    """

    def __init__(self, classifier: CropClassifier, batch_size: int):
        self._classifier, self._batch_size = classifier, batch_size

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `crop` by what both stages say of the image; null in failed rows."""
        settings = self._classifier.settings
        rows = good_rows(table)
        good = table.take(rows)
        device = self._classifier.network.class_weights.device
        batch = _batch(good["crop"], settings.input_size, self._batch_size, device)
        stage2 = self._classifier(batch)[: len(rows)].cpu()
        stage1_columns = probability_columns(settings.classes, "stage1")
        stage1 = torch.from_numpy(np.stack([good[name].to_numpy() for name in stage1_columns], 1))
        final = combine(stage1, stage2, settings).float()
        names = np.array(settings.classes, dtype=object)
        columns = {
            **probability_arrays(final.numpy(), settings.classes, "final"),
            **probability_arrays(stage2.float().numpy(), settings.classes, "stage2"),
            **flag_arrays(final.numpy(), settings),
            "prediction": pa.array(names[final.argmax(dim=1).numpy()], pa.string()),
        }
        return append_scattered(table.drop_columns("crop"), rows, columns)


def load_stages(
    settings: ModelSettings,
    weights: Sequence[Mapping[str, Tensor]],
    device: torch.device,
    precision: str,
    quantization: Quantization | None,
) -> tuple[Localize, Classify]:
    """Both stages in this process.

    Args:
        settings: the bundle's.
        weights: of stage 1 and of stage 2.
        device: `cpu` or `cuda`.
        precision: of the convolutions.
        quantization: the bundle's; only int8 needs it.
    """
    stage1, stage2 = (
        load_network(settings, state, device, precision, ranges)
        for state, ranges in zip(weights, stage_ranges(quantization), strict=True)
    )
    batch_size = BATCH_SIZES[device.type]
    return (
        Localize(Localizer(settings, stage1), batch_size),
        Classify(CropClassifier(settings, stage2), batch_size),
    )


def _batch(column: pa.ChunkedArray, side: int, batch_size: int, device: torch.device) -> Tensor:
    """A pixel column as (B, 3, side, side) uint8 on the device; the last images may be black.

    Every forward pass has one shape, so that an image's result does not depend on how many others
    came with it.
    """
    pixels = pixels_of(column, side)
    batch = np.zeros((batch_size, side, side, 3), np.uint8)
    batch[: len(pixels)] = pixels
    return to_channels_first(torch.from_numpy(batch)).to(device)
