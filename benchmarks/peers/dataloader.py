"""Plain PyTorch: a Dataset, a DataLoader with two workers, pytorch-grad-cam, pandas.

The library's `GradCAM` finds a GAP network's class activation map by a backward pass; here the map
is taken from the weights, which is cheaper, and keeps its negative values, as the crop rule needs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.model import (
    BATCH,
    boxes_of,
    cut,
    decide,
    load_stage,
    read_flags,
    shrink,
)
from lesioncam.vision.network import VGGGAP


class Images(Dataset[tuple[str, Tensor]]):
    """JPEGs, each decoded whole and squashed onto a square canvas."""

    def __init__(self, folder: str, side: int):
        self.paths = sorted(Path(folder).glob("*.jpg"))
        self.side = side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        image = Image.open(self.paths[index]).convert("RGB")
        canvas = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        return str(self.paths[index]), torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


class Logits(nn.Module):
    """A network that returns what the CAM library expects: logits alone."""

    def __init__(self, network: VGGGAP):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) uint8 to (B, K)."""
        logits: Tensor = self.network(images)[0]
        return logits


class ClassActivationMap(BaseCAM):  # type: ignore[misc]
    """Zhou et al.'s map of a network that ends with global average pooling.

    Args:
        network: the network.
        rule: `predicted`, or `maximum` over all classes.
    """

    def __init__(self, network: VGGGAP, rule: str):
        super().__init__(
            Logits(network),
            [network.features],
            reshape_transform=Tensor.float,  # the library cannot read bfloat16
            uses_gradients=False,
        )
        self.weight = network.linear.weight.detach().numpy()
        self.rule = rule

    def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, int]:  # noqa: ARG002
        """The map's own size: the crop rule needs no larger one."""
        height, width = self.activations_and_grads.activations[0].shape[-2:]
        return width, height

    def get_cam_image(
        self,
        input_tensor: Tensor,  # noqa: ARG002
        target_layer: nn.Module,  # noqa: ARG002
        targets: Sequence[Any],
        activations: np.ndarray,
        *_: Any,
    ) -> np.ndarray:
        """(B, h, w), the smallest value 0, so that the library's rectification changes nothing."""
        maps = np.tensordot(self.weight, activations, axes=(1, 1))
        if self.rule == "predicted":
            chosen = maps[[target.category for target in targets], np.arange(len(activations))]
        else:
            chosen = maps.max(axis=0)
        return np.asarray(chosen - chosen.min(axis=(1, 2), keepdims=True))


@torch.inference_mode()
def main() -> None:
    """Score a directory."""
    flags = read_flags()
    first, settings = load_stage(flags.bundle, 1, flags.precision)
    second, _ = load_stage(flags.bundle, 2, flags.precision)
    cam = ClassActivationMap(first, settings.crop.map)
    loader = DataLoader(Images(flags.images, settings.canvas_size), BATCH, num_workers=2)
    tables = []
    for paths, canvases in loader:
        maps = torch.from_numpy(cam(shrink(canvases, settings.input_size), targets=None))
        boxes, crop_boxes = boxes_of(maps, settings)
        stage2 = second(cut(canvases, crop_boxes, settings.input_size))[0].softmax(dim=1)
        predictions, final = decide(cam.outputs.softmax(dim=1), stage2, settings)
        columns = {
            "path": paths,
            "prediction": predictions,
            "probabilities": list(final.numpy()),
            "box": list(boxes.numpy()),
        }
        tables.append(pd.DataFrame(columns))
    Path(flags.output).mkdir()
    pd.concat(tables).to_parquet(Path(flags.output, "scores.parquet"))


if __name__ == "__main__":
    main()
