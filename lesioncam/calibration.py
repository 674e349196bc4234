"""Calibrate: an existing bundle with calibration and operating points from images with labels.

Its weights stay as they are. `train` derives both on held-out images; whoever has other images, or
wants another sensitivity, derives them anew.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lesioncam.columns import risk_class
from lesioncam.errors import InputError
from lesioncam.evaluation.evaluate import (
    read_classes,
    read_labeled,
    read_labels_of,
    stage_probabilities,
)
from lesioncam.settings import DEFAULT_SENSITIVITY, ModelSettings
from lesioncam.storage.bundle import bundle_exists, copy_curves, read_bundle, save_bundle
from lesioncam.storage.labels import LabelColumns
from lesioncam.storage.lease import refuse_other_run
from lesioncam.storage.results import Results
from lesioncam.storage.uris import open_store
from lesioncam.training.card import model_card
from lesioncam.vision.operating_points import Wanted, concerns, recalibrate

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class CalibrateRequest:
    """The arguments of `lesioncam calibrate`.

    Attributes:
        bundle: a trained model.
        scores: the output of `lesioncam score` with it.
        labels: a table of labels.
        output: where the bundle goes; must not hold one yet.
        rest_class: the class of label rows with no 1.
        wanted: class -> what its operating point is chosen for. Of other classes it is what the
            bundle's were chosen for, or where it has none, a sensitivity of 0.95 for melanoma or
            malignant.
        id_column: of the labels, as `LabelColumns.image_id`.
        class_column: likewise, as `LabelColumns.class_name`.
    """

    bundle: str
    scores: str
    labels: str
    output: str
    rest_class: str
    wanted: Mapping[str, Wanted]
    id_column: str | None = None
    class_column: str | None = None


def calibrate(request: CalibrateRequest) -> dict[str, Any]:
    """Fit calibration and operating points to scores with labels, and write a bundle with them.

    Returns:
        The new bundle's URI `bundle`, its digest `model`, on how many `images` it was calibrated,
        and its `operating_points`, as `bundle.json` has them.

    Raises:
        InputError: no such bundle, scores or labels; scores of another model; an unknown class; or
            a bundle at `output`.
        RunFailedError: a store cannot be reached.
    """
    if bundle_exists(request.output):
        raise InputError(f"--output: {request.output} holds a bundle; name another directory")
    target = open_store(request.output)
    refuse_other_run(target, "--output")
    files = read_bundle(request.bundle)
    wanted = {**_default_wanted(files.settings), **request.wanted}
    for name in wanted:
        if name not in files.settings.classes:
            raise InputError(
                f"--sensitivity, --specificity: {name!r} is no class of the bundle; it has "
                f"{', '.join(files.settings.classes)}"
            )
    stage1, stage2, truth = _read_scores(request, files.settings.classes, files.digest)
    target.check_writable()
    settings = recalibrate(
        files.settings, stage1, stage2, truth, np.ones(stage1.shape, bool), wanted, "labeled images"
    )
    for line in concerns(settings, wanted):
        log.warning("--labels: %s", line)
    bundle = files.load()
    training = {**bundle.training, "calibrated": {"model": files.digest, "images": len(truth)}}
    bundle = replace(bundle, settings=settings, training=training)
    card = model_card(bundle)
    copy_curves(open_store(request.bundle), target)
    digest = save_bundle(bundle, request.output, card)
    return {
        "bundle": request.output,
        "model": digest,
        "images": len(truth),
        "operating_points": [asdict(point) for point in settings.operating_points],
    }


def _default_wanted(settings: ModelSettings) -> dict[str, Wanted]:
    """What the bundle's operating points were chosen for, or the default where it has none."""
    if settings.operating_points:
        return {point.name: (point.criterion, point.wanted) for point in settings.operating_points}
    name = risk_class(settings.classes)
    return {} if name is None else {name: ("sensitivity", DEFAULT_SENSITIVITY)}


def _read_scores(
    request: CalibrateRequest, classes: tuple[str, ...], model: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both stages' probabilities (n, K) of the scored images with a label, and their classes (n,).

    Raises:
        InputError: scores of another model, no image with a label, or a class without one.
    """
    results = Results(request.scores)
    if read_classes(results) != classes:
        raise InputError(f"--scores: {request.scores} has other classes than the bundle")
    columns = LabelColumns(request.id_column, request.class_column)
    labels = read_labels_of(request.labels, request.rest_class, columns, classes)
    rows, counts = read_labeled(results, labels, classes, ["model"])
    if set(rows["model"]) != {model}:
        raise InputError(
            f"--scores: {request.scores} was not scored with --bundle; score the images with it"
        )
    truth = rows["label"].to_numpy()
    of_class = dict(zip(classes, np.bincount(truth, minlength=len(classes)).tolist(), strict=True))
    for name, count in of_class.items():
        if not count:
            raise InputError(f"--labels: no scored image is of class {name}; add some")
    log.info("%s", ", ".join(f"{count:,} {name}" for name, count in of_class.items()))
    for name in ("images_without_label", "labels_without_image", "failed_images"):
        if counts[name]:
            log.info("not used: %s %s", f"{counts[name]:,}", name.replace("_", " "))
    stages = stage_probabilities(rows, classes)
    return stages["stage1"], stages["stage2"], truth
