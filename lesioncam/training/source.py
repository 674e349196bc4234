"""Source: which images a training run uses, their labels, and which are held out."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lesioncam.columns import TRANSIENT_KINDS
from lesioncam.errors import InputError, RunFailedError
from lesioncam.settings import TrainSettings
from lesioncam.storage.labels import Labels, match, read_labels
from lesioncam.storage.listing import Listing, image_id
from lesioncam.storage.masks import find_masks, read_mask
from lesioncam.training.batches import Lesions
from lesioncam.training.canvases import Canvases, decode_canvases
from lesioncam.vision.copies import pairs_of_copies

log = logging.getLogger("lesioncam")

_MASK_SIDE = 64  # of the grid a drawn outline is kept on; maps have 10 x 10 cells
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
    if not len(matched.rows):
        raise InputError(
            f"{labels_flag}: none of its {len(labels.ids)} ids is the name of one of the "
            f"{len(uris)} images under {flag}; ids are file names without their ending"
        )
    left_over = {
        "images_without_label": matched.unlabeled,
        "labels_without_image": matched.unused,
        "duplicate_images": matched.duplicates,
        "skipped_files": listing.skipped.total(),
    }
    shown = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in left_over.items())
    log.info("%s: %s labeled images; left over: %s", flag, f"{len(matched.rows):,}", shown)
    chosen = tuple(uris[position] for position in matched.rows)
    return Source(chosen, matched.class_indices, left_over, flag)


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
    if set(theirs.classes) - set(labels.classes) or theirs.target_classes != labels.target_classes:
        raise InputError(
            f"--val-labels: classes {', '.join(theirs.classes)} are not those of --labels in their "
            f"order, {', '.join(labels.classes)}; give it the same columns"
        )
    validation = match_source(images, theirs, "--val-images", "--val-labels")
    shared = {image_id(uri) for uri in validation.uris} & {image_id(uri) for uri in training.uris}
    if shared:
        raise InputError(
            f"--val-images: {len(shared)} of its {len(validation.uris)} images have the id of one "
            f"that is trained on; take them out of --labels or --val-labels"
        )
    return validation


@dataclass(frozen=True)
class Images:
    """A source's decoded images, n of them.

    Attributes:
        uris: where they came from.
        canvases: their pixels.
        labels: (n,) int64, their classes' places.
        thumbnails: (n, 16, 16, 3) uint8.
        guesses: (n, 32, 32) bool, where color alone says the lesion is.
    """

    uris: tuple[str, ...]
    canvases: Canvases
    labels: np.ndarray
    thumbnails: np.ndarray
    guesses: np.ndarray

    def __len__(self) -> int:
        return len(self.uris)

    def without(self, numbers: np.ndarray) -> "Images":
        """All but these."""
        kept = np.setdiff1d(np.arange(len(self)), numbers)
        return Images(
            tuple(self.uris[number] for number in kept),
            self.canvases.take(kept),
            self.labels[kept],
            self.thumbnails[kept],
            self.guesses[kept],
        )


def read_source(source: Source, canvas_size: int) -> Images:
    """Decode a source's images; those that cannot be are left out, with a warning.

    Raises:
        InputError: none of them can be decoded.
        RunFailedError: some could not be fetched; to train without them would be another run.
    """
    decoded = decode_canvases(source.uris, canvas_size)
    failed = decoded.failed
    lost = sum(failed[kind] for kind in TRANSIENT_KINDS)
    if lost:
        raise RunFailedError(
            f"{source.flag}: {lost} images could not be fetched, for a reason that may pass; run "
            f"the same command again"
        )
    if failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items()))
        log.warning("%s: %d images cannot be used: %s", source.flag, failed.total(), kinds)
    if not len(decoded.good):
        raise InputError(f"{source.flag}: none of the {len(source.uris)} images can be decoded")
    return Images(
        tuple(source.uris[number] for number in decoded.good),
        decoded.canvases,
        source.indices[decoded.good],
        decoded.thumbnails,
        decoded.guesses,
    )


def without_copies_of(images: Images, validation: Images) -> Images:
    """Leave out the training images that show the same picture as a validation image."""
    pairs = list(pairs_of_copies(images.thumbnails, validation.thumbnails))
    copied = np.unique([i for i, _ in pairs]).astype(np.int64)
    if len(copied):
        log.warning("--images: %d left out, copies of --val-images under another name", len(copied))
    return images.without(copied)


def hold_out(labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw the held-out images class by class; copies go to the same side.

    Args:
        labels: (n,) int, the images' classes.
        groups: (n,) int, of each image the number of the first one that shows the same picture.
        fraction: of each class's pictures; at least one is held out and one left to train on, as
            far as there are so many.
        seed: of the draw.

    Returns:
        (n,) bool: held out.
    """
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    firsts = groups == np.arange(len(groups))  # the others go where their first one goes
    for place in np.unique(labels):
        members = random.permutation(np.flatnonzero((labels == place) & firsts))
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held_out[members[:count]] = True
    return np.asarray(held_out[groups])


def check_counts(labels: Labels, indices: np.ndarray) -> None:
    """Refuse classes of fewer than two images, before any image is read.

    Raises:
        InputError: naming the first one.
    """
    for place, name in enumerate(labels.classes):
        count = int((indices == place).sum())
        if count < 2:
            raise InputError(
                f"--labels: class {name!r} has {count} images under --images; at least two are "
                f"needed, one to train on and one held out"
            )


def check_classes(labels: Labels, indices: np.ndarray, held_out: np.ndarray) -> None:
    """Refuse a split in which a class is missing on either side.

    Raises:
        InputError: naming the classes.
    """
    for part, where in ((~held_out, "left to train on"), (held_out, "held out")):
        missing = labels.missing_classes(indices[part])
        if missing:
            raise InputError(
                f"--images: no image of class {', '.join(missing)} is {where} once unreadable "
                f"files are left out and copies kept together; add images of it"
            )


def match_masks(source: Source, masks: str | None) -> Mapping[str, str]:
    """Image id -> uri of its mask, of the source's images that have one; none without `--masks`.

    Raises:
        InputError: there are masks, but of none of the images.
    """
    if masks is None:
        return {}
    names = set(map(image_id, source.uris))
    of_images = {name: uri for name, uri in find_masks(masks).items() if name in names}
    if not of_images:
        raise InputError(f"--masks: none of the masks in {masks} is of an image of {source.flag}")
    log.info("--masks: %s of %s images have one", f"{len(of_images):,}", f"{len(names):,}")
    return of_images


def read_lesions(images: Images, masks: Mapping[str, str], settings: TrainSettings) -> Lesions:
    """Where the lesions are: drawn, where an image has a mask, else guessed from color.

    Args:
        images: n of them.
        masks: image id -> uri, as `match_masks` has it.
        settings: what is learned from either.

    Raises:
        InputError: a mask cannot be read.
        RunFailedError: its store cannot be reached.
    """
    scale = _MASK_SIDE // images.guesses.shape[1]
    grid = images.guesses.repeat(scale, axis=1).repeat(scale, axis=2)
    uris = [masks.get(image_id(uri)) for uri in images.uris]
    drawn = np.array([uri is not None for uri in uris], bool)
    with ThreadPoolExecutor(_MASK_THREADS) as threads:
        outlines = threads.map(lambda uri: read_mask(uri, _MASK_SIDE), filter(None, uris))
        for number, outline in zip(np.flatnonzero(drawn), outlines, strict=True):
            grid[number] = outline
    weights = np.where(drawn, settings.mask_weight, settings.estimated_mask_weight).astype(
        np.float32
    )
    return Lesions(grid, drawn, weights)
