"""How fast scoring is here: the networks alone on canvases in memory, and JPEG files to Parquet.

    python -m benchmarks.score [--images 200] [--backbone vgg16]

Prints JSON. Weights are random, which costs the same as trained ones; images are drawn.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lesioncam.cluster import connected
from lesioncam.demo import draw_images
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.settings import CropRule
from lesioncam.storage.bundle import Bundle, ModelSettings, load_bundle, load_network, save_bundle
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.decode import decode
from lesioncam.vision.localise import classify, localise, to_channels_first
from lesioncam.vision.network import (
    BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    native_precision,
    prepare_for_inference,
)

BATCH = 16
ROUNDS = 5


def random_bundle(backbone: str, uri: str) -> None:
    """Save a bundle with random weights."""
    side = BACKBONES[backbone].input_side
    classes = ("melanoma", "seborrheic_keratosis", "nevus")
    settings = ModelSettings(
        classes, backbone, side, 2 * side, IMAGENET_MEAN, IMAGENET_STD, 0.5, CropRule()
    )
    state = settings.network().state_dict()
    save_bundle(Bundle(settings, state, state), uri, "random weights\n")


def networks_alone(bundle: Bundle) -> float:
    """Images a second through both stages, canvases in memory, all cores: the median round."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings, precision = bundle.settings, native_precision(device)
    first, second = (
        prepare_for_inference(load_network(settings, state), device, precision)
        for state in (bundle.stage1, bundle.stage2)
    )
    side = settings.canvas_side
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3)).astype(np.uint8)
    canvases = to_channels_first(torch.from_numpy(pixels)).to(device)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first one warms up
        started = time.perf_counter()
        found = localise(first, canvases, settings.input_side, settings.crop)
        classify(second, sample_boxes(canvases, found.boxes, settings.input_side)).cpu()
        seconds.append(time.perf_counter() - started)
    return BATCH / float(np.median(seconds[1:]))


def decode_alone(paths: list[Path], side: int) -> float:
    """Images a second from bytes in memory to canvases, one core."""
    files = [path.read_bytes() for path in paths]
    started = time.perf_counter()
    for data in files:
        decode(data, side)
    return len(files) / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="vgg16")
    flags = parser.parse_args()
    logging.getLogger("lesioncam").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        draw_images(Path(folder), flags.images, seed=0)
        random_bundle(flags.backbone, f"{folder}/model")
        bundle = load_bundle(f"{folder}/model")
        paths = sorted(Path(folder, "images").iterdir())
        figures = {
            "backbone": flags.backbone,
            "images": flags.images,
            "decode_images_per_second_per_core": decode_alone(paths, bundle.settings.canvas_side),
            "networks_images_per_second": networks_alone(bundle),
        }
        with connected():
            request = ScoreRequest(f"{folder}/images", f"{folder}/model", f"{folder}/scores")
            summary = score(request)
        figures["score_seconds_with_start"] = summary["seconds"]
        figures["score_images_per_second_with_start"] = summary["images_per_second"]
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
