"""Daft: its own download, decoding and resizing, and a class with a batch method a stage."""

from typing import Any

import daft
import numpy as np
import torch
from daft import DataType, Series, col
from daft.functions import decode_image, download, resize

from benchmarks.peers.model import (
    BATCH,
    boxes_of,
    chosen_map,
    cut,
    decide,
    load_stage,
    read_flags,
    shrink,
)
from lesioncam.storage.bundle import load_bundle

LOCALIZED = DataType.struct(
    {
        "stage1": DataType.list(DataType.float32()),
        "box": DataType.list(DataType.int64()),
        "crop": DataType.tensor(DataType.uint8()),
    }
)
CLASSIFIED = DataType.struct(
    {"prediction": DataType.string(), "probabilities": DataType.list(DataType.float32())}
)


@daft.cls(max_concurrency=1)
class Stage1:
    """Canvases to probabilities, boxes and crops."""

    def __init__(self, bundle: str, precision: str):
        self.network, self.settings = load_stage(bundle, 1, precision)

    @daft.method.batch(return_dtype=LOCALIZED, unnest=True, batch_size=BATCH)  # type: ignore[untyped-decorator]
    @torch.inference_mode()
    def localize(self, images: Series) -> list[dict[str, Any]]:
        """Classify, and crop what the map shows."""
        settings = self.settings
        canvases = torch.from_numpy(np.stack(images.to_pylist())).permute(0, 3, 1, 2)
        logits, features = self.network(shrink(canvases, settings.input_size))
        maps = chosen_map(self.network, features, logits, settings.crop.map)
        boxes, crop_boxes = boxes_of(maps, settings)
        crops = cut(canvases, crop_boxes, settings.input_size).numpy()
        return [
            {"stage1": one, "box": box, "crop": crop}
            for one, box, crop in zip(
                logits.softmax(dim=1).tolist(), boxes.tolist(), crops, strict=True
            )
        ]


@daft.cls(max_concurrency=1)
class Stage2:
    """Crops to final probabilities."""

    def __init__(self, bundle: str, precision: str):
        self.network, self.settings = load_stage(bundle, 2, precision)

    @daft.method.batch(return_dtype=CLASSIFIED, unnest=True, batch_size=BATCH)  # type: ignore[untyped-decorator]
    @torch.inference_mode()
    def classify(self, crops: Series, stage1: Series) -> list[dict[str, Any]]:
        """Classify, and combine with stage 1."""
        pixels = torch.from_numpy(np.stack(crops.to_pylist()))
        stage2 = self.network(pixels)[0].softmax(dim=1)
        predictions, final = decide(torch.tensor(stage1.to_pylist()), stage2, self.settings)
        return [
            {"prediction": prediction, "probabilities": probabilities}
            for prediction, probabilities in zip(predictions, final.tolist(), strict=True)
        ]


def main() -> None:
    """Score a directory."""
    flags = read_flags()
    side = load_bundle(flags.bundle).settings.canvas_size
    stage1 = Stage1(flags.bundle, flags.precision)
    stage2 = Stage2(flags.bundle, flags.precision)
    canvas = resize(decode_image(download(col("path")), mode="RGB"), side, side)
    (
        daft.from_glob_path(f"{flags.images}/*.jpg")
        .select("path", canvas.cast(DataType.image("RGB", side, side)).alias("canvas"))
        .select("path", stage1.localize(col("canvas")))
        .select("path", "box", stage2.classify(col("crop"), col("stage1")))
        .write_parquet(flags.output)
    )


if __name__ == "__main__":
    main()
