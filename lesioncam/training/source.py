"""Source: which images a training run uses, their labels, and which are held out."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lesioncam.errors import InputError, RunBroke
from lesioncam.schema import TRANSIENT_KINDS
from lesioncam.storage.labels import Labels, match, read_labels
from lesioncam.storage.listing import Listing, image_id
from lesioncam.storage.masks import find_masks, read_mask
from lesioncam.training.canvases import Canvases, decode_canvases

log = logging.getLogger("lesioncam")

_MASK_SIDE = 64  # masks are compared with maps of 14 x 14
_MASK_THREADS = 8


@dataclass(frozen=True)
class Source:
    """Images and their labels, matched but not yet read.

    Attributes:
        uris: of the images that have a label.
        indices: (n,) int64, their classes' places.
        left_over: how many of what were not used.
        flag: the flag that named the images.
    """

    uris: tuple[str, ...]
    indices: np.ndarray
    left_over: Mapping[str, int]
    flag: str


def match_source(images: str, labels: Labels, flag: str, labels_flag: str) -> Source:
    """List images and join them to labels.

    Raises:
        InputError: no image has a label.
    """
    listing = Listing(images, flag)
    uris = [entry.uri for entry in listing]
    matched = match(labels, map(image_id, uris))
    if not len(matched.positions):
        raise InputError(
            f"{labels_flag}: none of its {len(labels.ids)} ids is the name of one of the "
            f"{len(uris)} images under {flag}; ids are file names without their ending"
        )
    left_over = {
        "images_without_label": matched.unlabelled,
        "labels_without_image": matched.unused,
        "duplicate_images": matched.duplicates,
        "ignored_files": listing.ignored,
    }
    shown = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in left_over.items())
    log.info("%s: %s labelled images; left over: %s", flag, f"{len(matched.positions):,}", shown)
    chosen = tuple(uris[position] for position in matched.positions)
    return Source(chosen, matched.indices, left_over, flag)


def match_validation(
    images: str | None, csv: str | None, labels: Labels, rest_class: str, training: Source
) -> Source | None:
    """The images that are only reported on, if `--val-images` and `--val-labels` name any.

    Raises:
        InputError: only one of the two is given, the classes are not those of `labels`, or an
            image is also trained on.
    """
    if images is None and csv is None:
        return None
    if images is None or csv is None:
        raise InputError("--val-images and --val-labels go together; give both or neither")
    theirs = read_labels(csv, rest_class, "--val-labels")
    if set(theirs.classes) - set(labels.classes) or theirs.ranked != labels.ranked:
        raise InputError(
            f"--val-labels: classes {', '.join(theirs.classes)} are not those of --labels, "
            f"{', '.join(labels.classes)}"
        )
    validation = match_source(images, theirs, "--val-images", "--val-labels")
    shared = {image_id(uri) for uri in validation.uris} & {image_id(uri) for uri in training.uris}
    if shared:
        raise InputError(
            f"--val-images: {len(shared)} of its {len(validation.uris)} images have the id of one "
            f"that is trained on; take them out of --labels or --val-labels"
        )
    return validation


def hold_out(indices: np.ndarray, labels: Labels, fraction: float, seed: int) -> np.ndarray:
    """Draw the held-out images class by class.

    Args:
        indices: (n,) int, the images' places in `labels.classes`.
        labels: for the class names.
        fraction: of each class; at least one image of it is held out and one left to train on.
        seed: of the draw.

    Returns:
        (n,) bool: held out.

    Raises:
        InputError: a class has fewer than two images.
    """
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(indices), bool)
    for place, name in enumerate(labels.classes):
        members = random.permutation(np.flatnonzero(indices == place))
        if len(members) < 2:
            raise InputError(
                f"--labels: class {name!r} has {len(members)} images under --images; at least two "
                f"are needed, one to train on and one held out"
            )
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held_out[members[:count]] = True
    return held_out


def read_source(source: Source, canvas_side: int) -> tuple[Canvases, np.ndarray]:
    """Decode a source's images; returns them and (m,) their numbers in the source.

    Raises:
        InputError: none of them can be decoded.
        RunBroke: some could not be fetched; to train without them would be another run.
    """
    canvases, good, failed = decode_canvases(source.uris, canvas_side)
    lost = sum(failed[kind] for kind in TRANSIENT_KINDS)
    if lost:
        raise RunBroke(
            f"{source.flag}: {lost} images could not be fetched, for a reason that may pass; run "
            f"the same command again"
        )
    if failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items()))
        log.warning("%s: %d images cannot be used: %s", source.flag, failed.total(), kinds)
    if not len(good):
        raise InputError(f"{source.flag}: none of the {len(source.uris)} images can be decoded")
    return canvases, good


def read_masks(source: Source, good: np.ndarray, masks: str) -> np.ndarray:
    """The lesion masks of a source's decoded images: (m, side, side) bool, empty for those without.

    Raises:
        InputError: no image has a mask, or one cannot be read.
    """
    by_id = find_masks(masks)
    names = [image_id(source.uris[number]) for number in good]
    lesions = np.zeros((len(names), _MASK_SIDE, _MASK_SIDE), bool)
    with_mask = [number for number, name in enumerate(names) if name in by_id]
    if not with_mask:
        raise InputError(f"--masks: none of the masks in {masks} is of an image of {source.flag}")
    with ThreadPoolExecutor(_MASK_THREADS) as threads:
        uris = [by_id[names[number]] for number in with_mask]
        for number, mask in zip(with_mask, threads.map(_small_mask, uris), strict=True):
            lesions[number] = mask
    log.info("--masks: %s of %s images have one", f"{len(with_mask):,}", f"{len(names):,}")
    return lesions


def _small_mask(uri: str) -> np.ndarray:
    return read_mask(uri, _MASK_SIDE)


def check_classes(labels: Labels, indices: np.ndarray, held_out: np.ndarray) -> None:
    """Refuse a split of the decoded images in which a class is missing on either side.

    Raises:
        InputError: naming the classes.
    """
    for part, where in ((~held_out, "left to train on"), (held_out, "held out")):
        missing = labels.missing_classes(indices[part])
        if missing:
            raise InputError(
                f"--images: no image of class {', '.join(missing)} could be decoded among those "
                f"{where}; mend the broken files or add images"
            )
