"""The verbs as functions: `lesioncam.score`, `train`, `evaluate`, `report` and so on.

The command line calls these, so both have the same defaults, errors and results. Ray runs at
`RAY_ADDRESS` if that is set, else in this process's own local cluster.
"""

import inspect
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from lesioncam.arguments import check_argument
from lesioncam.columns import DATASETS, DEFAULT_REST_CLASS, PRECISIONS
from lesioncam.errors import InputError, LesioncamError

if TYPE_CHECKING:
    from lesioncam.settings import TrainSettings

Uri = str | PathLike[str]

_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")


def _verb(function: Callable[_Arguments, _Returned]) -> Callable[_Arguments, _Returned]:
    """Check a verb's texts and paths, and let its errors name keywords in place of flags."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
        try:
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                check_argument(name, value)
            return function(*args, **kwargs)
        except LesioncamError as error:
            error.name_keywords()
            raise

    return call


@_verb
def score(
    images: Uri,
    output: Uri,
    *,
    bundle: Uri,
    retry_failed: bool = False,
    max_failed_fraction: float | None = None,
    limit: int | None = None,
    all_files: bool = False,
    drop_unlisted: bool = False,
    keep_columns: Sequence[str] = (),
    precision: str = "auto",
    gpus: int | None = None,
) -> dict[str, Any]:
    """Classify images and write one Parquet row per image.

    Images that already have a row are skipped. Repeat the call to continue after a failure, or to
    score new images.

    Args:
        images: a directory or prefix, searched recursively; or a list: a `.csv`, `.tsv` or
            `.parquet` file with a `uri` column, or a `.txt` file with one path or URI a line.
            Relative paths are relative to the list.
        output: where to write Parquet; read it with `pandas.read_parquet`.
        bundle: a trained model.
        retry_failed: also score images again that failed for a permanent reason, not only those
            with `permission` or `unreachable`.
        max_failed_fraction: the fraction of the images that may fail before `outcome` is
            `too_many_failed`; None for no limit.
        limit: score only the first `limit` images; None for all.
        all_files: also score what is skipped below a directory or prefix: hidden files, masks by
            their names, and files whose ending is no image's.
        drop_unlisted: remove the rows of images that are not listed any more, also of those that
            were moved; not with `limit`.
        keep_columns: columns of the list in `images` to write into the scores, too, as text.
        precision: number format of the convolutions: `float32`, `bfloat16`, `int8`, or `auto` for
            that of the scores in `output`, and where there are none, for the fastest that the
            bundle has and all hardware computes in.
        gpus: maximum GPUs to use, including ones an autoscaling cluster must start; 0 for none,
            None for those available.

    Returns:
        The run's summary: `outcome` (`done` or `too_many_failed`), the counts `listed`, `ok`,
        `failed`, `failed_by_kind`, `unlisted` (images that have a row but are not listed),
        `dropped` (rows that `drop_unlisted` removed), `without_row` (listed images without a row:
        0), `shared_image_ids` (ids that several listed images have), `skipped` (files, by reason),
        `scored_now`, `seconds`, `images_per_second`, and `output`, the scores' URI.

    Raises:
        lesioncam.errors.InputError: no such images or bundle; the output holds scores of another
            model or precision; the precision is not there; or another run is writing to it.
        lesioncam.errors.RunFailedError: the run failed; repeat the call to continue.
    """
    fraction = max_failed_fraction
    _check(fraction is None or 0 <= fraction <= 1, "max_failed_fraction", fraction, "from 0 to 1")
    _check(limit is None or limit >= 1, "limit", limit, "at least 1")
    is_text = isinstance(keep_columns, str)  # a sequence, too: of letters
    _check(not is_text, "keep_columns", keep_columns, "a list of names")
    _check(precision in PRECISIONS, "precision", precision, f"one of {', '.join(PRECISIONS)}")
    _check(gpus is None or gpus >= 0, "gpus", gpus, "at least 0")
    from lesioncam.scoring.pipeline import ScoreRequest  # noqa: PLC0415
    from lesioncam.scoring.pipeline import score as run  # noqa: PLC0415

    return run(
        ScoreRequest(
            images=os.fspath(images),
            bundle=os.fspath(bundle),
            output=os.fspath(output),
            retry_failed=retry_failed,
            max_failed_fraction=max_failed_fraction,
            limit=limit,
            all_files=all_files,
            drop_unlisted=drop_unlisted,
            keep_columns=tuple(keep_columns),
            precision=precision,
            gpus=gpus,
        )
    )


@_verb
def train(
    images: Uri,
    labels: Uri,
    bundle: Uri,
    *,
    settings: "TrainSettings | Uri | None" = None,
    id_column: str | None = None,
    class_column: str | None = None,
    group_column: str | None = None,
    collection_column: str | None = None,
    masks: Uri | None = None,
    val_images: Uri | None = None,
    val_labels: Uri | None = None,
    workers: int = 1,
    gpu: bool | None = None,
    checkpoint_dir: Uri | None = None,
) -> dict[str, Any]:
    """Train both stages and write a bundle.

    Repeat the call to continue after a failure. A finished bundle is never overwritten.

    Args:
        images: as for `score`.
        labels: a table of labels (CSV): a column of image ids, and a 0/1 column per class or one
            column of class names.
        bundle: where to write the model; must not hold one yet.
        settings: the training settings, or the path of a TOML file of them; None for the defaults.
        id_column: the labels' column of image ids; None for `image_id`, `image`, `isic_id`,
            `image_name` or `img_id`.
        class_column: the labels' column of class names, or of 0 and 1; None for the only one, or
            a 0/1 column per class.
        group_column: the labels' column of the patient or lesion: images of one stay on one side
            of the split.
        collection_column: the labels' column of where an image comes from, a clinic or a camera:
            an image of a collection without a class says nothing about that class.
        masks: lesion masks of some or all images, `<image_id>.png` or `.bmp`, also with
            `_segmentation`, `_mask` or `_lesion` behind the id, to train the class activation maps
            on.
        val_images: extra images to report metrics on; they influence nothing.
        val_labels: the labels of `val_images`.
        workers: Ray Train workers.
        gpu: train each worker on a GPU; None for yes if the cluster has GPUs.
        checkpoint_dir: where to write checkpoints; None for `<bundle>-checkpoints`.

    Returns:
        `bundle`, the model's URI; `model`, its digest; `metrics`, by set of images (`held_out`,
        `validation`) and stage; and `operating_points`, as `bundle.json` has them.

    Raises:
        lesioncam.errors.InputError: bad images, labels, settings or weights; a finished bundle is
            there already; or another run is writing it.
        lesioncam.errors.RunFailedError: the run failed; repeat the call to continue.
    """
    _check(workers >= 1, "workers", workers, "at least 1")
    from lesioncam.settings import TrainSettings  # noqa: PLC0415
    from lesioncam.training.job import TrainRequest  # noqa: PLC0415
    from lesioncam.training.job import train as run  # noqa: PLC0415

    if settings is None:
        settings = TrainSettings()
    elif not isinstance(settings, TrainSettings):
        settings = read_settings(settings)
    return run(
        TrainRequest(
            images=os.fspath(images),
            labels=os.fspath(labels),
            bundle=os.fspath(bundle),
            settings=settings,
            masks=_optional(masks),
            val_images=_optional(val_images),
            val_labels=_optional(val_labels),
            workers=workers,
            gpu=gpu,
            checkpoint_dir=_optional(checkpoint_dir),
            id_column=id_column,
            class_column=class_column,
            group_column=group_column,
            collection_column=collection_column,
        )
    )


@_verb
def evaluate(
    scores: Uri,
    labels: Uri,
    *,
    output: Uri | None = None,
    rest_class: str = DEFAULT_REST_CLASS,
    id_column: str | None = None,
    class_column: str | None = None,
    masks: Uri | None = None,
    overlays: int = 0,
    metadata: Uri | None = None,
    by: Sequence[str] = (),
    submission: Uri | None = None,
) -> dict[str, Any]:
    """Compare scores with labels; writes `evaluation.json` and `evaluation.md`. Needs no Ray.

    Args:
        scores: the `output` of `score`.
        labels: as for `train`.
        output: where to write; None for `_evaluation` under the scores.
        rest_class: the class of images that have 0 in every column of the labels.
        id_column: as for `train`.
        class_column: as for `train`.
        masks: lesion masks, as for `train`, to compare maps and boxes with.
        overlays: how many images to draw with their map, box and mask, 24 a page, in
            `overlays.png`, `overlays-002.png` and so on.
        metadata: a table of facts about the images, such as age and sex, with a column of image
            ids as in `labels`.
        by: columns of `metadata`: the labeled images of each value, or of each band of numbers, are
            compared.
        submission: a `.csv` file to write the probabilities of the labeled images to, for the
            scorer of the ISIC challenges; None for none.

    Returns:
        `metrics`, the content of `evaluation.json`; `markdown`, that of `evaluation.md`; and
        `output`, the URI they were written to.

    Raises:
        lesioncam.errors.InputError: no scores, labels of other classes, no image with a label,
            or bad metadata.
    """
    _check(overlays >= 0, "overlays", overlays, "at least 0")
    _check(not isinstance(by, str), "by", by, "a list of names")
    from lesioncam.evaluation.evaluate import EvaluateRequest  # noqa: PLC0415
    from lesioncam.evaluation.evaluate import evaluate as run  # noqa: PLC0415

    metrics, markdown, written = run(
        EvaluateRequest(
            scores=os.fspath(scores),
            labels=os.fspath(labels),
            output=_optional(output),
            rest_class=rest_class,
            masks=_optional(masks),
            overlays=overlays,
            id_column=id_column,
            class_column=class_column,
            metadata=_optional(metadata),
            by=tuple(by),
            submission=_optional(submission),
        )
    )
    return {"metrics": metrics, "markdown": markdown, "output": written}


@_verb
def report(
    scores: Uri,
    *,
    labels: Uri | None = None,
    gallery: int = 120,
    output: Uri | None = None,
    rest_class: str = DEFAULT_REST_CLASS,
    id_column: str | None = None,
    class_column: str | None = None,
    metadata: Uri | None = None,
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """Write one HTML page to look at, `report.html`, and its figures, `report.json`. Needs no Ray.

    The page has thumbnails of the images, so it is as confidential as they are.

    Args:
        scores: the `output` of `score`.
        labels: as for `train`, to compare the scores with; None for none.
        gallery: how many images to show, at most 1000.
        output: where to write; None for `_report` under the scores.
        rest_class: as for `evaluate`.
        id_column: as for `train`.
        class_column: as for `train`.
        metadata: as for `evaluate`, where there are labels.
        by: as for `evaluate`.

    Returns:
        `report`, the content of `report.json`; and `output`, the URI both were written to.

    Raises:
        lesioncam.errors.InputError: no scores, labels of other classes, no image with a label,
            or bad metadata.
    """
    _check(0 <= gallery <= 1000, "--gallery", gallery, "from 0 to 1000")
    _check(not isinstance(by, str), "by", by, "a list of names")
    from lesioncam.evaluation.report import ReportRequest  # noqa: PLC0415
    from lesioncam.evaluation.report import report as run  # noqa: PLC0415

    content, written = run(
        ReportRequest(
            scores=os.fspath(scores),
            labels=_optional(labels),
            gallery=gallery,
            output=_optional(output),
            rest_class=rest_class,
            id_column=id_column,
            class_column=class_column,
            metadata=_optional(metadata),
            by=tuple(by),
        )
    )
    return {"report": content, "output": written}


@_verb
def calibrate(
    bundle: Uri,
    scores: Uri,
    labels: Uri,
    output: Uri,
    *,
    sensitivity: Mapping[str, float] = MappingProxyType({}),
    specificity: Mapping[str, float] = MappingProxyType({}),
    rest_class: str = DEFAULT_REST_CLASS,
    id_column: str | None = None,
    class_column: str | None = None,
) -> dict[str, Any]:
    """Fit a bundle's calibration and the thresholds of its flags, and write it as another bundle.

    The weights stay as they are. `train` does the same on held-out images. Needs no Ray.

    Args:
        bundle: a trained model.
        scores: the `output` of `score` with it, of images that it was not trained on.
        labels: as for `train`.
        output: where to write the bundle; must not hold one yet.
        sensitivity: class -> the sensitivity that its flags have on these images. For classes that
            neither it nor `specificity` names, what the bundle's flags were chosen for, and if it
            has none, 0.95 for melanoma or malignant.
        specificity: class -> likewise; not of a class in `sensitivity`.
        rest_class: as for `evaluate`.
        id_column: as for `train`.
        class_column: as for `train`.

    Returns:
        `bundle`, the new bundle's URI; `model`, its digest; `images`, on how many it was
        calibrated; and `operating_points`, as `bundle.json` has them.

    Raises:
        lesioncam.errors.InputError: no such bundle, scores or labels; scores of another model; an
            unknown class; or there is a bundle in `output` already.
        lesioncam.errors.RunFailedError: a store cannot be reached; repeat the call.
    """
    for name, values in (("sensitivity", sensitivity), ("specificity", specificity)):
        for value in values.values():
            _check(0 < value < 1, name, value, "above 0 and below 1")
    both = ", ".join(sorted(sensitivity.keys() & specificity.keys()))
    _check(not both, "specificity", both, "of classes that sensitivity does not name")
    from lesioncam.calibration import CalibrateRequest  # noqa: PLC0415
    from lesioncam.calibration import calibrate as run  # noqa: PLC0415

    return run(
        CalibrateRequest(
            bundle=os.fspath(bundle),
            scores=os.fspath(scores),
            labels=os.fspath(labels),
            output=os.fspath(output),
            rest_class=rest_class,
            wanted={
                **{name: ("sensitivity", value) for name, value in sensitivity.items()},
                **{name: ("specificity", value) for name, value in specificity.items()},
            },
            id_column=id_column,
            class_column=class_column,
        )
    )


@_verb
def quantize(bundle: Uri, images: Uri, output: Uri) -> dict[str, Any]:
    """Add to a bundle what int8 needs, and write it as another bundle. Needs no Ray.

    The weights stay as they are. `train` writes bundles that have it already.

    Args:
        bundle: a trained model.
        images: as for `score`: images like those that will be scored, of which up to 300 are read.
        output: where to write the bundle; must not hold one yet.

    Returns:
        `bundle`, the new bundle's URI; `model`, its digest; and `images`, on how many of them the
        ranges of the activations were measured.

    Raises:
        lesioncam.errors.InputError: no such bundle or images; no image that can be decoded; or
            there is a bundle in `output` already.
        lesioncam.errors.RunFailedError: a store cannot be reached; repeat the call.
    """
    from lesioncam.quantization import quantize as run  # noqa: PLC0415

    return run(os.fspath(bundle), os.fspath(images), os.fspath(output))


@_verb
def download(dataset: str, directory: Uri) -> dict[str, Any]:
    """Download public images with labels into the layout that `train` and `score` read.

    Needs no Ray. Repeat the call to continue after a failure, or to check what is there.

    Args:
        dataset: `isic2017`, all images of ISIC 2017 with labels, masks and metadata; or `sample`,
            24 of its validation images with labels.
        directory: a new or empty one, or one that a download of this dataset began.

    Returns:
        `directory`; `source`, the S3 prefix that it came from; how many `files` it has; how many of
        them were `downloaded` now, and their `bytes`; and `next_command`, a command line that uses
        them.

    Raises:
        lesioncam.errors.InputError: the directory has other files, or changed ones; the source has
            other objects than before, lacks one, or refuses; or the disk is too small.
        lesioncam.errors.RunFailedError: the source cannot be reached, or is damaged; repeat the
            call.
    """
    _check(dataset in DATASETS, "dataset", dataset, f"one of {', '.join(DATASETS)}")
    from lesioncam.downloads import download as run  # noqa: PLC0415

    return run(dataset, os.fspath(directory))


def read_settings(path: Uri) -> "TrainSettings":
    """Read training settings from a TOML file.

    Raises:
        lesioncam.errors.InputError: it cannot be read, is not TOML, or has an unknown field or a
            bad value.
    """
    from lesioncam.settings import TrainSettings, parse  # noqa: PLC0415

    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config: {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config: {path} is not TOML: {error}") from error
    return parse(TrainSettings, content, f"--config: {path}")


def _check(is_good: bool, name: str, value: object, expected: str) -> None:
    if not is_good:
        raise InputError(f"{name} is {value!r}; it should be {expected}")


def _optional(uri: Uri | None) -> str | None:
    return None if uri is None else os.fspath(uri)
