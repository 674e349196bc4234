"""What makes the peers' work equal: the same weights, the same inputs, the same crop rule.

Plain torch, image by image where a user would write it so.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop

from lesioncam.settings import ModelSettings
from lesioncam.storage.bundle import load_bundle
from lesioncam.vision.cam import choose_map, normalize_map
from lesioncam.vision.classifier import combine
from lesioncam.vision.crop import canvas_bounds, crop_boxes, lesion_boxes
from lesioncam.vision.network import VGGGAP, build_network

BATCH = 16


def read_flags() -> argparse.Namespace:
    """The flags of every peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True, help="a directory of JPEGs")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--output", required=True, help="a directory that does not exist yet")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


def load_stage(uri: str, stage: int, precision: str) -> tuple[VGGGAP, ModelSettings]:
    """A stage's network in evaluation mode, convolutions in a precision."""
    bundle = load_bundle(uri)
    network = build_network(bundle.settings, (bundle.stage1, bundle.stage2)[stage - 1]).eval()
    network.features.to(getattr(torch, precision))
    return network, bundle.settings


def shrink(canvases: Tensor, side: int) -> Tensor:
    """(B, 3, S, S) uint8 canvases to the (B, 3, s, s) that stage 1 classifies."""
    return F.interpolate(canvases.float(), (side, side), mode="bilinear").round().to(torch.uint8)


def chosen_map(network: VGGGAP, features: Tensor, logits: Tensor, rule: str) -> Tensor:
    """(B, h, w): the map behind the crop."""
    maps = torch.einsum("kc,bchw->bkhw", network.class_weights, features.float())
    return choose_map(maps, logits, rule)


def boxes_of(maps: Tensor, settings: ModelSettings) -> tuple[Tensor, Tensor]:
    """Of (B, h, w) maps: each lesion's box on the canvas, and its crop's box, (B, 4) both."""
    scaled, flat = normalize_map(maps)
    rule, canvas_size = settings.crop, settings.canvas_size
    bounds = canvas_bounds(scaled, rule.threshold, canvas_size)
    boxes = lesion_boxes(bounds, flat, rule, canvas_size)
    return boxes, crop_boxes(boxes, rule, canvas_size)


def cut(canvases: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(B, 3, s, s) uint8: each canvas's box, scaled."""
    crops = [
        resized_crop(canvas, y0, x0, y1 - y0, x1 - x0, [side, side], antialias=False)
        for canvas, (x0, y0, x1, y1) in zip(canvases, boxes.tolist(), strict=True)
    ]
    return torch.stack(crops)


def decide(stage1: Tensor, stage2: Tensor, settings: ModelSettings) -> tuple[list[str], Tensor]:
    """The predictions, and the final probabilities (B, K)."""
    final = combine(stage1, stage2, settings)
    return [settings.classes[k] for k in final.argmax(dim=1).tolist()], final
