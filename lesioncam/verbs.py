"""The verbs: the flags of each, and what it prints.

Modules are imported when a verb needs them, so that `--help` is quick, and `evaluate` and `report`
need neither torch nor Ray.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lesioncam.columns import DATASETS, DEFAULT_REST_CLASS, PRECISIONS
from lesioncam.flags import (
    Parser,
    class_fractions,
    epochs,
    fraction,
    inner_fraction,
    names,
    natural,
    positive,
)
from lesioncam.logs import print_error, print_result

if TYPE_CHECKING:
    from lesioncam.settings import TrainSettings

TOO_MANY_FAILED = 3

Flags = dict[str, Any]


class Verb(NamedTuple):
    """One verb of the command.

    Attributes:
        summary: one line for the list of verbs.
        description: the first lines of the verb's own help.
        example: a command line.
        add_flags: adds the verb's flags to its parser.
        run: runs the verb with the flags that were given; returns the exit code.
    """

    summary: str
    description: str
    example: str
    add_flags: Callable[[Parser], None]
    run: Callable[[Flags], int]


def _demo_flags(parser: Parser) -> None:
    flags = parser.add_argument_group("optional")
    flags.add_argument(
        "--dir",
        default="lesioncam-demo",
        metavar="DIR",
        help="directory to work in (default: %(default)s)",
    )


def _train_flags(parser: Parser) -> None:
    from lesioncam.settings import BACKBONES, TrainSettings  # noqa: PLC0415

    defaults = TrainSettings()
    required = parser.add_argument_group("required")
    _add_images(required)
    _add_labels(required)
    required.add_argument("--bundle", required=True, metavar="URI", help="where to write the model")

    data = parser.add_argument_group("data")
    _add_rest_class(data)
    _add_label_columns(data)
    data.add_argument(
        "--group-column",
        metavar="NAME",
        help="column of the patient or lesion: images of one stay on one side of the split",
    )
    data.add_argument(
        "--collection-column",
        metavar="NAME",
        help="column of where an image comes from, a clinic or a camera: an image of a collection "
        "without a class says nothing about that class",
    )
    data.add_argument(
        "--masks",
        metavar="URI",
        help="directory of lesion masks, <image_id>.png or .bmp, also with _segmentation, _mask or "
        "_lesion behind the id, to train the CAMs on",
    )
    data.add_argument(
        "--val-images",
        metavar="URI",
        help="extra images to report metrics on; they influence nothing",
    )
    data.add_argument("--val-labels", metavar="CSV", help="labels of --val-images")
    data.add_argument(
        "--val-fraction",
        type=inner_fraction,
        metavar="F",
        help="fraction of --images to hold out, by class; the best epoch is chosen on these, not "
        f"on --val-images (default: {defaults.val_fraction:g})",
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--backbone",
        choices=tuple(BACKBONES),
        help=f"network architecture; tiny is for tests and the demo (default: {defaults.backbone})",
    )
    model.add_argument(
        "--weights",
        metavar="W",
        help="pretrained weights: a torchvision name, such as VGG16_Weights.IMAGENET1K_FEATURES, "
        "or the URI of a state dict (.safetensors, .pth) that expects ImageNet normalization "
        "(default: random)",
    )
    model.add_argument(
        "--epochs",
        type=epochs,
        metavar="N[,M]",
        help="epochs of stage 1, stage 2; one number sets both "
        f"(default: {defaults.stage1_epochs},{defaults.stage2_epochs})",
    )
    model.add_argument(
        "--config",
        metavar="TOML",
        help="TOML file of recipe settings (docs/reference/settings.md); flags override it",
    )

    compute = parser.add_argument_group("compute")
    compute.add_argument(
        "--workers", type=positive, metavar="N", help="Ray Train workers (default: 1)"
    )
    compute.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        help="train each worker on a GPU (default: if the cluster has GPUs)",
    )
    compute.add_argument(
        "--checkpoint-dir",
        metavar="URI",
        help="where to write checkpoints (default: <bundle>-checkpoints)",
    )


def _score_flags(parser: Parser) -> None:
    required = parser.add_argument_group("required")
    _add_images(required)
    required.add_argument("--bundle", required=True, metavar="URI", help="a trained model")
    required.add_argument("--output", required=True, metavar="URI", help="where to write Parquet")

    images = parser.add_argument_group("images")
    images.add_argument(
        "--limit", type=positive, metavar="N", help="score only the first N images (default: all)"
    )
    images.add_argument(
        "--all-files",
        action="store_true",
        help="also score what is skipped in a directory or prefix: hidden files, masks by their "
        "names, and files whose ending is no image's",
    )
    images.add_argument(
        "--drop-unlisted",
        action="store_true",
        help="remove the rows of images that are not in --images any more, moved ones too "
        "(default: keep them)",
    )
    images.add_argument(
        "--keep-columns",
        type=names,
        metavar="NAME[,NAME]",
        help="columns of the list in --images, such as patient,site, to write into the scores, "
        "too, as text (default: none)",
    )
    images.add_argument(
        "--retry-failed",
        action="store_true",
        help="also score images again that failed for a permanent reason (default: only "
        "permission and unreachable)",
    )
    images.add_argument(
        "--max-failed-fraction",
        type=fraction,
        metavar="F",
        help="exit with code 3 if a larger fraction of the images failed (default: no limit)",
    )

    compute = parser.add_argument_group("compute")
    compute.add_argument(
        "--gpus",
        type=natural,
        metavar="N",
        help="maximum GPUs to use, including ones an autoscaling cluster must start; 0 for none "
        "(default: those available)",
    )
    compute.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="number format of the convolutions (default: auto: that of the scores in --output; "
        "if there are none, the fastest that the hardware and the bundle have)",
    )


def _evaluate_flags(parser: Parser) -> None:
    required = parser.add_argument_group("required")
    _add_scores(required)
    _add_labels(required)

    optional = parser.add_argument_group("optional")
    _add_rest_class(optional)
    _add_label_columns(optional)
    _add_metadata(optional)
    optional.add_argument(
        "--masks",
        metavar="URI",
        help="directory of lesion masks, <image_id>.png or .bmp, also with _segmentation, _mask or "
        "_lesion behind the id, to compare CAMs and boxes with",
    )
    optional.add_argument(
        "--overlays",
        type=natural,
        metavar="N",
        help="also draw N images with their CAM, box and mask, 24 a page: overlays.png, "
        "overlays-002.png and so on (default: 0)",
    )
    optional.add_argument(
        "--submission",
        metavar="CSV",
        help="also write the probabilities of the labeled images to this file, for the scorer of "
        "the ISIC challenges",
    )
    optional.add_argument(
        "--output",
        metavar="URI",
        help="where to write evaluation.json and evaluation.md (default: <scores>/_evaluation)",
    )


def _calibrate_flags(parser: Parser) -> None:
    required = parser.add_argument_group("required")
    required.add_argument("--bundle", required=True, metavar="URI", help="a trained model")
    required.add_argument(
        "--scores",
        required=True,
        metavar="URI",
        help="the --output of 'lesioncam score' with that model, of images that it was not trained "
        "on",
    )
    _add_labels(required)
    required.add_argument(
        "--output", required=True, metavar="URI", help="where to write the calibrated model"
    )

    optional = parser.add_argument_group("optional")
    optional.add_argument(
        "--sensitivity",
        type=class_fractions,
        metavar="CLASS=F[,CLASS=F]",
        help="flag images of a class at the highest threshold with this sensitivity (default for "
        "classes that are not named: what the model's flags were chosen for; if it has none, "
        "melanoma=0.95 or malignant=0.95)",
    )
    optional.add_argument(
        "--specificity",
        type=class_fractions,
        metavar="CLASS=F[,CLASS=F]",
        help="flag images of a class at the lowest threshold with this specificity",
    )
    _add_rest_class(optional)
    _add_label_columns(optional)


def _quantize_flags(parser: Parser) -> None:
    required = parser.add_argument_group("required")
    required.add_argument("--bundle", required=True, metavar="URI", help="a trained model")
    _add_images(required)
    required.add_argument(
        "--output", required=True, metavar="URI", help="where to write the model with the ranges"
    )


def _report_flags(parser: Parser) -> None:
    _add_scores(parser.add_argument_group("required"))

    optional = parser.add_argument_group("optional")
    _add_labels(optional, required=False)
    _add_rest_class(optional)
    _add_label_columns(optional)
    _add_metadata(optional)
    optional.add_argument(
        "--gallery",
        type=natural,
        metavar="N",
        help="how many images to show, at most 1000: suspicious ones, mistakes, disagreements of "
        "the stages, failures, and others drawn at random (default: 120)",
    )
    optional.add_argument(
        "--output",
        metavar="URI",
        help="where to write report.html and report.json (default: <scores>/_report)",
    )


def _download_flags(parser: Parser) -> None:
    required = parser.add_argument_group("required")
    required.add_argument(
        "dataset",
        metavar="DATASET",
        choices=DATASETS,
        help="isic2017: the 2,750 images of ISIC 2017 in three splits, with labels, masks, age and "
        "sex; sample: 24 of its validation images, with labels",
    )
    required.add_argument(
        "directory",
        metavar="DIR",
        help="local directory: a new or empty one, or one of an earlier download",
    )


def _add_scores(group: Any) -> None:
    group.add_argument(
        "--scores", required=True, metavar="URI", help="the --output of 'lesioncam score'"
    )


def _add_images(group: Any) -> None:
    group.add_argument(
        "--images",
        required=True,
        metavar="URI",
        help="directory or prefix, searched recursively; or a list: a .csv, .tsv or .parquet file "
        "with a 'uri' column, or a .txt file with one path or URI a line; relative paths are "
        "relative to the list",
    )


def _add_labels(group: Any, *, required: bool = True) -> None:
    group.add_argument(
        "--labels",
        required=required,
        metavar="CSV",
        help="table of labels: a column of image ids, and a 0/1 column per class or one column of "
        "class names",
    )


def _add_label_columns(group: Any) -> None:
    group.add_argument(
        "--id-column",
        metavar="NAME",
        help="column of the image ids (default: image_id, image, isic_id, image_name or img_id)",
    )
    group.add_argument(
        "--class-column",
        metavar="NAME",
        help="column of class names, such as dx, or of 0 and 1 (default: the only one, or a 0/1 "
        "column per class)",
    )


def _add_metadata(group: Any) -> None:
    group.add_argument(
        "--metadata",
        metavar="CSV",
        help="table of facts about the images, such as age and sex, with a column of image ids as "
        "in --labels",
    )
    group.add_argument(
        "--by",
        type=names,
        metavar="NAME[,NAME]",
        help="columns of --metadata: compare the labeled images of each value, or of each band of "
        "numbers",
    )


def _add_rest_class(group: Any) -> None:
    group.add_argument(
        "--rest-class",
        metavar="NAME",
        help=f"class of images that have 0 in every column (default: {DEFAULT_REST_CLASS})",
    )


def _demo(flags: Flags) -> int:
    from lesioncam.cluster import connected  # noqa: PLC0415
    from lesioncam.demo import run_demo  # noqa: PLC0415

    with connected():
        print_result(run_demo(Path(flags["dir"])))
    return 0


def _train(flags: Flags) -> int:
    settings = _take_settings(flags)
    from lesioncam.api import train  # noqa: PLC0415

    trained = train(**flags, settings=settings)
    for name, figures in trained["metrics"].items():
        means = ", ".join(
            f"{stage} {_shown(figures[stage]['mean']['auc'])}"
            for stage in ("stage1", "stage2", "final")
        )
        print_result(f"{name.replace('_', '-')} images: mean AUC {means}")
    _print_points(trained["operating_points"])
    print_result(f"bundle: {trained['bundle']} (model {trained['model'][:12]})")
    return 0


def _score(flags: Flags) -> int:
    from lesioncam.api import score  # noqa: PLC0415
    from lesioncam.storage.listing import describe_skipped  # noqa: PLC0415

    summary = score(**flags)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary["failed_by_kind"].items())
    print_result(
        f"{summary['listed']:,} images listed: {summary['ok']:,} ok, {summary['failed']:,} failed"
        f"{f' ({kinds})' if kinds else ''}; {summary['scored_now']:,} scored now in "
        f"{summary['seconds']:.0f} s",
        **summary,
    )
    if summary["dropped"]:
        print_result(f"removed {summary['dropped']:,} rows of images that are not in --images")
    if summary["unlisted"] and "limit" not in flags:
        print_result(
            f"{summary['unlisted']:,} more rows are of images that are not in --images; remove "
            f"them with --drop-unlisted"
        )
    if summary["shared_image_ids"]:
        print_result(
            f"{summary['shared_image_ids']:,} image_ids are not unique: several images have each; "
            f"tell them apart by uri"
        )
    if summary["skipped"]:
        print_result(describe_skipped(summary["skipped"]))
    print_result(f"scores: {summary['output']}")
    if summary["outcome"] == "too_many_failed":
        print_error("more images failed than --max-failed-fraction allows")
        return TOO_MANY_FAILED
    return 0


def _evaluate(flags: Flags) -> int:
    from lesioncam.api import evaluate  # noqa: PLC0415

    evaluation = evaluate(**flags)
    print_result(evaluation["markdown"])
    print_result(f"evaluation: {evaluation['output']}")
    if "submission" in flags:
        print_result(f"submission: {flags['submission']}")
    return 0


def _report(flags: Flags) -> int:
    from lesioncam.api import report  # noqa: PLC0415

    made = report(**flags)
    images = made["report"]["images"]
    flagged = "" if images["flagged"] is None else f"{images['flagged']:,} flagged, "
    print_result(
        f"{images['total']:,} images: {images['failed']:,} failed, {flagged}"
        f"{images['stages_disagree']:,} whose stages disagree"
    )
    print_result(f"report: {made['output']}/report.html")
    return 0


def _calibrate(flags: Flags) -> int:
    from lesioncam.api import calibrate  # noqa: PLC0415

    done = calibrate(**flags)
    print_result(f"calibrated on {done['images']:,} images")
    _print_points(done["operating_points"])
    print_result(f"bundle: {done['bundle']} (model {done['model'][:12]})")
    return 0


def _quantize(flags: Flags) -> int:
    from lesioncam.api import quantize  # noqa: PLC0415

    done = quantize(**flags)
    print_result(f"ranges measured on {done['images']:,} images")
    print_result(f"bundle: {done['bundle']} (model {done['model'][:12]})")
    return 0


def _download(flags: Flags) -> int:
    from lesioncam.api import download  # noqa: PLC0415

    done = download(**flags)
    checked = done["files"] - done["downloaded"]
    print_result(
        f"{done['files']:,} files in {done['directory']}: {done['downloaded']:,} downloaded now, "
        f"{checked:,} were there and are as published"
    )
    print_result(f"next:\n  {done['next_command']}")
    return 0


def _take_settings(flags: Flags) -> "TrainSettings":
    """Remove the flags that are training settings; returns `--config` with them over it."""
    from lesioncam.api import read_settings  # noqa: PLC0415
    from lesioncam.settings import TrainSettings  # noqa: PLC0415

    config = flags.pop("config", None)
    settings = TrainSettings() if config is None else read_settings(config)
    settable = ("val_fraction", "weights", "backbone", "rest_class")
    given = {name: flags.pop(name) for name in settable if name in flags}
    if epochs := flags.pop("epochs", None):
        given["stage1_epochs"], given["stage2_epochs"] = epochs
    return replace(settings, **given)


VERBS = {
    "demo": Verb(
        "try it: train, score, evaluate and report on generated images",
        "Train, score, evaluate and report on generated images, in a few minutes. Needs no\n"
        "data, no network and no GPU.",
        "lesioncam demo",
        _demo_flags,
        _demo,
    ),
    "train": Verb(
        "train a model on labeled images",
        "Train both stages on labeled images and write a bundle, which is a trained\n"
        "model. To continue after a failure, run the same command again. A finished\n"
        "bundle is never overwritten.",
        "lesioncam train --images images/ --labels labels.csv --bundle model \\\n"
        "      --weights VGG16_Weights.IMAGENET1K_FEATURES",
        _train_flags,
        _train,
    ),
    "score": Verb(
        "classify images and write Parquet",
        "Classify images and write Parquet, one row per image. Images that already have\n"
        "a row are skipped. Run the same command again to continue after a failure, or\n"
        "to score new images.",
        "lesioncam score --images s3://bucket/images --bundle model --output scores",
        _score_flags,
        _score,
    ),
    "evaluate": Verb(
        "compare scores with labels",
        "Compare scores with labels: AUCs with confidence intervals, also of subgroups such\n"
        "as age and sex, as JSON and Markdown.",
        "lesioncam evaluate --scores scores --labels labels.csv",
        _evaluate_flags,
        _evaluate,
    ),
    "report": Verb(
        "make a page to look at, from scores",
        "Make one HTML page to look at: verdicts, distributions and a gallery of images\n"
        "with their maps; with labels also ROC and calibration curves. It opens without a\n"
        "network. It shows images, so it is as confidential as they are.",
        "lesioncam report --scores scores --labels labels.csv",
        _report_flags,
        _report,
    ),
    "calibrate": Verb(
        "fit a model's probabilities and flags to labeled images",
        "Fit the calibration of a model, and the thresholds of its flags, to scored images\n"
        "with labels, and write a model that has them, with the same weights. 'lesioncam\n"
        "train' does it on held-out images; do it again for images that differ from them.",
        "lesioncam calibrate --bundle model --scores scores --labels labels.csv \\\n"
        "      --output model-calibrated --sensitivity melanoma=0.9",
        _calibrate_flags,
        _calibrate,
    ),
    "quantize": Verb(
        "add to a model what int8 needs",
        "Measure the ranges of a model's activations on up to 300 images like those that\n"
        "will be scored, and write a model that has them, with the same weights. Scoring\n"
        "in int8 needs them. Models that 'lesioncam train' writes have them already.",
        "lesioncam quantize --bundle model --images images/ --output model-int8",
        _quantize_flags,
        _quantize,
    ),
    "download": Verb(
        "get public images with labels",
        "Download public images with labels into the layout that 'train' and 'score'\n"
        "read, and print the command to go on with. Run the same command again to\n"
        "continue after a failure, or to check the files that are there.",
        "lesioncam download sample isic-sample",
        _download_flags,
        _download,
    ),
}


def _print_points(points: list[dict[str, Any]]) -> None:
    for point in points:
        print_result(
            f"flag_{point['name']}: from p_{point['name']} {point['threshold']:.3g} on; "
            f"sensitivity {point['sensitivity']:.3f}, specificity {point['specificity']:.3f} on "
            f"the {point['source']}"
        )


def _shown(figure: float | None) -> str:
    return "undefined" if figure is None else f"{figure:.3f}"
