"""Dataset: a training run's decoded images, the held-out ones among them, and lesion masks."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lesioncam.columns import TRANSIENT_KINDS
from lesioncam.errors import InputError, RunFailedError
from lesioncam.settings import TrainSettings
from lesioncam.storage.labels import Labels
from lesioncam.storage.listing import image_id
from lesioncam.storage.masks import read_mask
from lesioncam.training.batches import LesionMasks
from lesioncam.training.canvases import Canvases, decode_canvases
from lesioncam.training.source import Inputs, Source
from lesioncam.vision.copies import (
    groups_by_name,
    groups_of_copies,
    join_groups,
    pairs_of_copies,
)

log = logging.getLogger("lesioncam")

_MASK_SIZE = 64  # of the grid that masks are read to; maps have 10 x 10 cells
_MASK_THREADS = 8


@dataclass(frozen=True)
class Images:
    """A source's decoded images, n of them.

    Attributes:
        uris: where they came from.
        canvases: their pixels.
        labels: (n,) int64, class indices.
        groups: of each image the patient or the like, empty where there is none.
        sizes: (n, 2) int64, width and height of the files, in pixels.
        thumbnails: (n, 16, 16, 3) uint8.
        estimated_masks: (n, 32, 32) bool, the lesion as estimated from color.
    """

    uris: tuple[str, ...]
    canvases: Canvases
    labels: np.ndarray
    groups: tuple[str, ...]
    sizes: np.ndarray
    thumbnails: np.ndarray
    estimated_masks: np.ndarray

    def __len__(self) -> int:
        return len(self.uris)

    def without(self, indices: np.ndarray) -> "Images":
        """All but these."""
        rest = np.setdiff1d(np.arange(len(self)), indices)
        return Images(
            tuple(self.uris[index] for index in rest),
            self.canvases.take(rest),
            self.labels[rest],
            tuple(self.groups[index] for index in rest),
            self.sizes[rest],
            self.thumbnails[rest],
            self.estimated_masks[rest],
        )


@dataclass(frozen=True)
class Dataset:
    """All images of a training run: n to train on or held out, and those only reported on.

    Attributes:
        images: n of them.
        held_out: (n,) bool.
        lesion_masks: of the n.
        known_classes: (n, K) bool, of `known_classes`.
        validation: images that are only reported on, or None.
    """

    images: Images
    held_out: np.ndarray
    lesion_masks: LesionMasks
    known_classes: np.ndarray
    validation: Images | None

    @property
    def canvases(self) -> Canvases:
        """Of the n images, then of the validation images."""
        if self.validation is None:
            return self.images.canvases
        return self.images.canvases.join(self.validation.canvases)

    @property
    def held_out_rows(self) -> np.ndarray:
        """Where the held-out images are in `canvases`."""
        return np.flatnonzero(self.held_out)

    @property
    def validation_rows(self) -> np.ndarray:
        """Where the validation images are in `canvases`."""
        return np.arange(len(self.images), len(self.canvases))


def make_dataset(inputs: Inputs, canvas_size: int, settings: TrainSettings) -> Dataset:
    """Decode the images, hold some out, and read or estimate their lesion masks.

    Raises:
        InputError: as `decode`, `split` and `read_lesion_masks` do.
        RunFailedError: a store did not answer.
    """
    images, validation = decode(inputs, canvas_size)
    held_out = split(images, inputs.labels, settings)
    lesion_masks = read_lesion_masks(images, inputs.mask_uris, settings)
    known = known_classes(images, inputs.labels)
    return Dataset(images, held_out, lesion_masks, known, validation)


def known_classes(images: Images, labels: Labels) -> np.ndarray:
    """Which classes each image's collection has: (n, K) bool; all for an image of no collection.

    Of a class that its collection lacks, an image says nothing: a network that learned to tell the
    two apart could have learned to tell the collections apart.
    """
    known = np.ones((len(images), len(labels.classes)), bool)
    names = np.array([labels.collection_by_id.get(image_id(uri), "") for uri in images.uris])
    for name in set(names.tolist()) - {""}:
        rows = names == name
        known[rows] = np.bincount(images.labels[rows], minlength=len(labels.classes)) > 0
    lacking = ~known.all(axis=1)
    if lacking.any():
        log.info(
            "--collection-column: %d images say nothing of the classes that their collections "
            "lack; %d of them are of collections with one class, and say nothing at all",
            lacking.sum(),
            (known.sum(axis=1) == 1).sum(),
        )
    return known


def decode(inputs: Inputs, canvas_size: int) -> tuple[Images, Images | None]:
    """The images to train on or hold out, without copies of validation images; and the latter.

    Raises:
        InputError: none of either can be decoded.
        RunFailedError: a store did not answer for some.
    """
    images = decode_source(inputs.training, canvas_size)
    if inputs.validation is None:
        return images, None
    validation = decode_source(inputs.validation, canvas_size)
    return without_copies_of(images, validation), validation


def decode_source(source: Source, canvas_size: int) -> Images:
    """Decode a source's images; logs how many cannot be decoded, and leaves them out.

    Raises:
        InputError: none of them can be decoded.
        RunFailedError: a store did not answer for some; another try may get them.
    """
    decoded = decode_canvases(source.uris, canvas_size)
    failed = decoded.failed
    unfetched = sum(failed[kind] for kind in TRANSIENT_KINDS)
    if unfetched:
        raise RunFailedError(
            f"{source.flag}: {unfetched} images could not be fetched, which may be temporary; run "
            f"the same command again"
        )
    if failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items()))
        log.warning("%s: %d images cannot be used: %s", source.flag, failed.total(), kinds)
    if not len(decoded.good):
        raise InputError(f"{source.flag}: none of the {len(source.uris)} images can be decoded")
    return Images(
        tuple(source.uris[index] for index in decoded.good),
        decoded.canvases,
        source.class_indices[decoded.good],
        tuple(source.groups[index] for index in decoded.good),
        decoded.sizes,
        decoded.thumbnails,
        decoded.estimated_masks,
    )


def without_copies_of(images: Images, validation: Images) -> Images:
    """The images that do not show the same picture as a validation image."""
    pairs = list(pairs_of_copies(images.thumbnails, validation.thumbnails))
    copied = np.unique([i for i, _ in pairs]).astype(np.int64)
    if len(copied):
        log.warning(
            "--images: %d images not used: duplicates of --val-images under another id", len(copied)
        )
    return images.without(copied)


def split(images: Images, labels: Labels, settings: TrainSettings) -> np.ndarray:
    """Which images are held out: (n,) bool.

    Raises:
        InputError: a class has no image to train on, or none to hold out.
    """
    groups = join_groups(groups_of_copies(images.thumbnails), groups_by_name(images.groups))
    held_out = hold_out(images.labels, groups, settings.val_fraction, settings.seed)
    for part, purpose in ((~held_out, "to train on"), (held_out, "to hold out")):
        missing = labels.missing_classes(images.labels[part])
        if missing:
            raise InputError(
                f"--images: class {', '.join(missing)} has no image {purpose}; unreadable files "
                f"are not used, and duplicates and groups are never split; add images of this class"
            )
    return held_out


def hold_out(labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw the held-out groups class by class; a group counts for its rarest class.

    Args:
        labels: (n,) int, class indices.
        groups: (n,) int, for each image the index of the first one of its group: copies of one
            picture, and images of one patient or the like.
        fraction: of each class's groups; at least one is held out and one trained on, where there
            are two.
        seed: of the draw.

    Returns:
        (n,) bool: held out.
    """
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    firsts = np.flatnonzero(groups == np.arange(len(groups)))
    by_frequency = np.argsort(np.argsort(-np.bincount(labels), kind="stable"))
    rarest = np.full(len(labels), -1)
    np.maximum.at(rarest, groups, by_frequency[labels])
    for class_index in np.unique(labels):
        members = random.permutation(firsts[rarest[firsts] == by_frequency[class_index]])
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held_out[members[:count]] = True
    return np.asarray(held_out[groups])


def read_lesion_masks(
    images: Images, mask_uris: Mapping[str, str], settings: TrainSettings
) -> LesionMasks:
    """The images' lesion masks: given ones where there are any, else estimated from color.

    Args:
        images: n of them.
        mask_uris: image id -> uri, as `match_masks` gives them.
        settings: the weights of either kind in the loss.

    Raises:
        InputError: a mask cannot be read, or has another aspect ratio than its image.
        RunFailedError: its store cannot be reached.
    """
    scale = _MASK_SIZE // images.estimated_masks.shape[1]
    grid = images.estimated_masks.repeat(scale, axis=1).repeat(scale, axis=2)
    uris = [mask_uris.get(image_id(uri)) for uri in images.uris]
    given = np.array([uri is not None for uri in uris], bool)
    with ThreadPoolExecutor(_MASK_THREADS) as threads:
        masks = threads.map(
            lambda uri, size: read_mask(uri, tuple(size), _MASK_SIZE),
            filter(None, uris),
            images.sizes[given].tolist(),
        )
        for index, mask in zip(np.flatnonzero(given), masks, strict=True):
            grid[index] = mask
    weights = np.where(given, settings.mask_weight, settings.estimated_mask_weight)
    return LesionMasks(grid, given, weights.astype(np.float32))
