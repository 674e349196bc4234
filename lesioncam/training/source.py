"""Source: the images, labels and masks a training run is given, matched by id; nothing decoded."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lesioncam.columns import check_classes, risk_class
from lesioncam.errors import InputError
from lesioncam.settings import TrainSettings
from lesioncam.storage.labels import LabelColumns, Labels, match, read_labels
from lesioncam.storage.listing import Listing, image_id
from lesioncam.storage.masks import find_masks

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class Source:
    """Images that have a label, n of them.

    Attributes:
        uris: of the images.
        class_indices: (n,) int64.
        groups: of each image the patient or the like, empty where there is none.
        not_used: how many files or labels were not used, by reason.
        flag: the flag that named the images.
    """

    uris: tuple[str, ...]
    class_indices: np.ndarray
    groups: tuple[str, ...]
    not_used: Mapping[str, int]
    flag: str


@dataclass(frozen=True)
class Inputs:
    """All files of a training run, listed and matched.

    Attributes:
        labels: the classes, and each image's.
        training: the images to train on or hold out.
        mask_uris: image id -> uri of its lesion mask.
        validation: images that are only reported on, or None.
    """

    labels: Labels
    training: Source
    mask_uris: Mapping[str, str]
    validation: Source | None


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
    not_used = {
        "images_without_label": matched.unlabeled,
        "labels_without_image": matched.unused,
        "duplicate_images": matched.duplicates,
        "skipped_files": listing.skipped.total(),
    }
    shown = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in not_used.items())
    log.info("%s: %s labeled images; not used: %s", flag, f"{len(matched.rows):,}", shown)
    chosen = tuple(uris[row] for row in matched.rows)
    groups = tuple(labels.group_by_id.get(image_id(uri), "") for uri in chosen)
    return Source(chosen, matched.class_indices, groups, not_used, flag)


def without_empty_classes(labels: Labels, source: Source) -> tuple[Labels, Source]:
    """The same without the classes that no image has; the archives have columns of such.

    Raises:
        InputError: fewer than two classes remain.
    """
    empty = labels.missing_classes(source.class_indices)
    if not empty:
        return labels, source
    log.warning("--labels: class %s is left out: it has no image under --images", ", ".join(empty))
    rest = [name for name in labels.classes if name not in empty]
    labels = labels.of_classes(check_classes(rest, "--labels"))
    indices = np.array([labels.by_id[image_id(uri)] for uri in source.uris], np.int64)
    return labels, replace(source, class_indices=indices)


def match_validation(
    images: str | None,
    csv: str | None,
    labels: Labels,
    rest_class: str,
    columns: LabelColumns,
    training: Source,
) -> Source | None:
    """The images that are only reported on, if `--val-images` and `--val-labels` name any.

    Raises:
        InputError: only one of the two is given, the classes are not those of `labels`, or an
            image is also in `training`.
    """
    if images is None and csv is None:
        return None
    if images is None or csv is None:
        raise InputError("--val-images and --val-labels go together; give both or neither")
    val_labels = read_labels(csv, rest_class, "--val-labels", replace(columns, collection=None))
    val_labels.check_classes(labels.classes, rest_class, "--val-labels")
    val_labels = val_labels.of_classes(labels.classes)
    validation = match_source(images, val_labels, "--val-images", "--val-labels")
    shared = {image_id(uri) for uri in validation.uris} & {image_id(uri) for uri in training.uris}
    if shared:
        raise InputError(
            f"--val-images: {len(shared)} of its {len(validation.uris)} images have the id of a "
            f"training image; remove them from --labels or --val-labels"
        )
    return validation


def without_groups_of(source: Source, validation: Source | None) -> Source:
    """The training images without those of a validation image's patient, or other group."""
    groups = set(validation.groups) - {""} if validation is not None else set()
    kept = [row for row, group in enumerate(source.groups) if group not in groups]
    removed = len(source.uris) - len(kept)
    if not removed:
        return source
    log.warning("--images: %d images not used: of a group of --val-images", removed)
    return replace(
        source,
        uris=tuple(source.uris[row] for row in kept),
        class_indices=source.class_indices[kept],
        groups=tuple(source.groups[row] for row in kept),
        not_used={**source.not_used, "images_of_validation_groups": removed},
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
    log.info("--masks: %s of %s images have a mask", f"{len(of_images):,}", f"{len(names):,}")
    return of_images


def flag_classes(settings: TrainSettings, labels: Labels) -> tuple[str, ...]:
    """The classes that get an operating point.

    Raises:
        InputError: the recipe names a class that the labels do not have.
    """
    if settings.flag_classes is None:
        name = risk_class(labels.classes)
        return () if name is None else (name,)
    for name in settings.flag_classes:
        if name not in labels.classes:
            raise InputError(
                f"--config: flag_classes names {name!r}; the labels have "
                f"{', '.join(labels.classes)}"
            )
    return settings.flag_classes


def check_counts(labels: Labels, class_indices: np.ndarray) -> None:
    """Refuse classes of fewer than two images, before any image is read.

    Raises:
        InputError: naming the first one.
    """
    for index, name in enumerate(labels.classes):
        count = int((class_indices == index).sum())
        if count < 2:
            raise InputError(
                f"--labels: class {name!r} has {count} images under --images; at least two are "
                f"needed, one to train on and one held out"
            )
