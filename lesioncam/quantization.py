"""Quantize: an existing bundle with what int8 needs, measured on images, in this process.

The weights stay as they are. `train` writes bundles that have it already.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesioncam.columns import TRANSIENT_KINDS, ErrorKind
from lesioncam.errors import InputError, RunFailedError
from lesioncam.scoring.read import READ_THREADS, read_canvas
from lesioncam.settings import Quantization
from lesioncam.storage.bundle import (
    Bundle,
    bundle_exists,
    copy_curves,
    read_bundle,
    save_bundle,
)
from lesioncam.storage.lease import refuse_other_run
from lesioncam.storage.listing import Listing, describe_skipped
from lesioncam.storage.store import Entry
from lesioncam.storage.uris import open_store
from lesioncam.vision.classifier import Localizer, to_channels_first, whole_boxes
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.decode import Decoded
from lesioncam.vision.network import build_network, prepare_for_inference
from lesioncam.vision.ranges import (
    RANGE_IMAGES,
    activation_ranges,
    spread,
    widest_ranges,
)

_BATCH = 16
_FEW = 100  # on fewer images, ranges were too narrow for others

log = logging.getLogger("lesioncam")


def quantize(bundle: str, images: str, output: str) -> dict[str, Any]:
    """Measure the activation ranges of a bundle's networks and write a bundle that has them.

    Args:
        bundle: a trained model.
        images: a directory or prefix, or a list; at most 300 of them are read.
        output: where the bundle goes; must not hold one yet.

    Returns:
        The new bundle's URI `bundle`, its digest `model`, and on how many `images` it was measured.

    Raises:
        InputError: no such bundle or images, none that can be read, or a bundle at `output`.
        RunFailedError: a store cannot be reached.
    """
    if bundle_exists(output):
        raise InputError(f"--output: {output} holds a bundle; name another directory")
    source, target = open_store(bundle), open_store(output)
    refuse_other_run(target, "--output")
    files = read_bundle(bundle)
    listing = Listing(images)
    chosen = spread(listing, RANGE_IMAGES)
    if listing.skipped:
        log.info("%s", describe_skipped(listing.skipped))
    target.check_writable()
    canvases = _decode(chosen, files.settings.canvas_size)
    trained = files.load()
    quantization, count = _measure(trained, canvases)
    if not count:
        raise InputError(f"--images: none of {len(chosen)} images in {images} can be decoded")
    if count < _FEW:
        log.warning(
            "--images: %d images; on fewer than %d, the ranges may be too narrow for other images",
            count,
            _FEW,
        )
    copy_curves(source, target)
    training = {**trained.training, "quantized": {"model": trained.digest, "images": count}}
    quantized = replace(trained, training=training, quantization=quantization)
    digest = save_bundle(quantized, output, files.card)
    return {"bundle": output, "model": digest, "images": count}


def _decode(entries: list[Entry], canvas_size: int) -> Iterator[np.ndarray]:
    """The canvases of images, (S, S, 3) uint8; logs how many cannot be used.

    Raises:
        RunFailedError: images whose store was out of reach: another try would read them.
    """
    failed: Counter[ErrorKind] = Counter()
    with ThreadPoolExecutor(READ_THREADS) as threads:
        outcomes = threads.map(
            lambda entry: read_canvas(entry.uri, entry.size, entry.archived, canvas_size), entries
        )
        for outcome in outcomes:
            if isinstance(outcome, Decoded):
                yield outcome.canvas
            else:
                failed[outcome.kind] += 1
    if transient := sum(failed[kind] for kind in TRANSIENT_KINDS):
        raise RunFailedError(
            f"--images: {transient} images could not be fetched; run the same command again"
        )
    if failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items()))
        log.warning("--images: %d images cannot be used: %s", failed.total(), kinds)


def _measure(bundle: Bundle, canvases: Iterator[np.ndarray]) -> tuple[Quantization, int]:
    """What int8 needs, and on how many canvases it was measured."""
    settings = bundle.settings
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage1, stage2 = (
        prepare_for_inference(build_network(settings, state), device, "float32")
        for state in (bundle.stage1, bundle.stage2)
    )
    localize = Localizer(settings, stage1)
    ranges1, ranges2, count = [], [], 0
    while block := list(islice(canvases, _BATCH)):
        batch = to_channels_first(torch.from_numpy(np.stack(block)).to(device))
        whole: Tensor = sample_boxes(batch, whole_boxes(batch), settings.input_size)
        crops, rotation = localize(batch).crops, settings.test_time_rotation
        ranges1.append(activation_ranges(stage1, whole, rotation=rotation))
        ranges2.append(activation_ranges(stage2, crops, rotation=rotation))
        count += len(block)
    return Quantization(widest_ranges(ranges1), widest_ranges(ranges2)), count
