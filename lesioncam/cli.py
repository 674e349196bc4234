"""The verbs: flags in, one summary and an exit code out. One definition serves verbs and jobs.

Each verb imports what it needs when it runs, so that `--help` is quick and `evaluate` needs
neither torch nor Ray.
"""

import argparse
import logging
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lesioncam import __version__
from lesioncam.columns import DEFAULT_REST_CLASS
from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.logs import PLAIN, log_to_stderr
from lesioncam.settings import TrainSettings, parse

TOO_MANY_FAILED = 3

_RECIPE = TrainSettings()


def run() -> NoReturn:
    """Entry point of the `lesioncam` command."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def main(arguments: Sequence[str], layout: logging.Formatter = PLAIN) -> int:
    """Run one verb.

    Args:
        arguments: the verb and its flags.
        layout: of the log lines.

    Returns:
        0 done, 1 the run broke, 2 bad input or refused, 3 done but too many images failed.
    """
    try:
        flags = _parser().parse_args(arguments)
        log_to_stderr(layout)
        verb: Callable[[argparse.Namespace], int] = flags.verb
        return verb(flags)
    except LesioncamError as error:
        print(f"lesioncam: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lesioncam: interrupted; the same command goes on from here", file=sys.stderr)
        return RunFailedError.exit_code


class _Parser(argparse.ArgumentParser):
    """Reports bad flags like any other bad input: in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lesioncam",
        description="Scores skin-lesion images in bulk: where stage 1's class activation map "
        "leads, the image is cropped; stage 2 classifies the crop.",
        epilog="A URI is a local path or s3://bucket/prefix. Exit codes: 0 done, 1 the run broke "
        "(the same command goes on), 2 bad input or refused, 3 done but too many images failed.",
    )
    parser.add_argument("--version", action="version", version=f"lesioncam {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for add in (_add_demo, _add_train, _add_score, _add_evaluate):
        add(verbs)
    return parser


def _add_demo(verbs: Any) -> None:
    parser = verbs.add_parser("demo", help="the whole job on drawn lesions, no download, no server")
    parser.add_argument("--dir", default="lesioncam-demo", help="where it works (%(default)s)")
    parser.set_defaults(verb=_demo)


def _add_train(verbs: Any) -> None:
    parser = verbs.add_parser(
        "train", help="fine-tune both stages and write a bundle; goes on where it broke off"
    )
    _add_images(parser)
    _add_labels(parser)
    parser.add_argument("--bundle", required=True, metavar="URI", help="where the model goes")
    parser.add_argument(
        "--masks", metavar="URI", help="lesion masks, <image_id>.png, to pull the maps onto"
    )
    parser.add_argument("--val-images", metavar="URI", help="images that are only reported on")
    parser.add_argument("--val-labels", metavar="CSV", help="their labels")
    parser.add_argument(
        "--val-fraction",
        type=_inner_fraction,
        metavar="F",
        help=f"share of --images held out to choose the epoch by ({_RECIPE.val_fraction:g})",
    )
    parser.add_argument(
        "--weights",
        metavar="W",
        help="ImageNet weights: a torchvision name such as VGG16_Weights.IMAGENET1K_V1, or the "
        ".safetensors or .pth path of ones for images normalized as for these (random weights)",
    )
    parser.add_argument("--backbone", help=f"vgg16, vgg11 or tiny ({_RECIPE.backbone})")
    parser.add_argument(
        "--epochs",
        type=_epochs,
        metavar="N[,M]",
        help=f"of stage 1 and stage 2 ({_RECIPE.stage1_epochs},{_RECIPE.stage2_epochs})",
    )
    parser.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="Ray Train workers (%(default)s)"
    )
    parser.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        help="a GPU for each worker (where the cluster has them)",
    )
    parser.add_argument(
        "--storage", metavar="URI", help="under which checkpoints go (beside the bundle)"
    )
    parser.add_argument(
        "--config", metavar="TOML", help="the recipe: any field of lesioncam.settings.TrainSettings"
    )
    parser.set_defaults(verb=_train)


def _add_score(verbs: Any) -> None:
    parser = verbs.add_parser(
        "score", help="images -> Parquet; what is already there is not done again"
    )
    _add_images(parser)
    parser.add_argument("--bundle", required=True, metavar="URI", help="a trained model")
    parser.add_argument("--output", required=True, metavar="URI", help="where the Parquet goes")
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="do all failed images again, not only those whose store failed",
    )
    parser.add_argument(
        "--max-failed-fraction",
        type=_fraction,
        metavar="F",
        help="exit with 3 if more of the listed images failed (no limit)",
    )
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="only the first N images listed (all)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the convolutions; auto is what the hardware computes in natively (%(default)s)",
    )
    parser.add_argument(
        "--gpus",
        type=_natural,
        metavar="N",
        help="to use at most, also some that the cluster has to start first (those it has)",
    )
    parser.set_defaults(verb=_score)


def _add_evaluate(verbs: Any) -> None:
    parser = verbs.add_parser(
        "evaluate", help="scores + labels -> AUCs with intervals, as JSON and Markdown"
    )
    parser.add_argument("--scores", required=True, metavar="URI", help="what score wrote")
    _add_labels(parser)
    parser.add_argument(
        "--output", metavar="URI", help="where the evaluation goes (_evaluation in the scores)"
    )
    parser.add_argument(
        "--masks", metavar="URI", help="lesion masks, <image_id>.png, to check CAMs and boxes by"
    )
    parser.add_argument(
        "--overlays",
        type=_positive,
        default=0,
        metavar="N",
        help="draw N images with their CAM and box (none)",
    )
    parser.set_defaults(verb=_evaluate)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        required=True,
        metavar="URI",
        help="a directory or prefix (recursive), or a .csv or .parquet file with a uri column",
    )


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        required=True,
        metavar="CSV",
        help="ISIC ground truth: image_id or image, then a 0/1 column per class",
    )
    parser.add_argument(
        "--rest-class",
        metavar="NAME",
        help=f"the class of rows with no 1 ({DEFAULT_REST_CLASS})",
    )


def _train(flags: argparse.Namespace) -> int:
    settings = _settings(flags)
    from lesioncam.training.job import TrainRequest, train  # noqa: PLC0415

    trained = train(
        TrainRequest(
            images=flags.images,
            labels=flags.labels,
            bundle=flags.bundle,
            settings=settings,
            masks=flags.masks,
            val_images=flags.val_images,
            val_labels=flags.val_labels,
            workers=flags.workers,
            gpu=flags.gpu,
            checkpoint_dir=flags.storage,
        )
    )
    for name, figures in trained["metrics"].items():
        means = ", ".join(
            f"{stage} {_shown(figures[stage]['mean']['auc'])}"
            for stage in ("stage1", "stage2", "final")
        )
        print(f"{name.replace('_', '-')} images: mean AUC {means}")
    print(f"bundle {trained['bundle']} (model {trained['model'][:12]})")
    return 0


def _score(flags: argparse.Namespace) -> int:
    from lesioncam.scoring.pipeline import ScoreRequest, score  # noqa: PLC0415

    summary = score(
        ScoreRequest(
            images=flags.images,
            bundle=flags.bundle,
            output=flags.output,
            retry_failed=flags.retry_failed,
            max_failed_fraction=flags.max_failed_fraction,
            limit=flags.limit,
            precision=flags.precision,
            gpus=flags.gpus,
        )
    )
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary["failed_by_kind"].items())
    print(
        f"{summary['listed']:,} images listed: {summary['ok']:,} ok, {summary['failed']:,} failed"
        f"{f' ({kinds})' if kinds else ''}; {summary['scored_now']:,} scored now in "
        f"{summary['seconds']:.0f} s"
    )
    if summary["skipped"]:
        from lesioncam.storage.listing import describe_skipped  # noqa: PLC0415

        print(describe_skipped(summary["skipped"]))
    print(f"Parquet {summary['output']}")
    if summary["outcome"] == "too_many_failed":
        print("lesioncam: more images failed than --max-failed-fraction allows", file=sys.stderr)
        return TOO_MANY_FAILED
    return 0


def _evaluate(flags: argparse.Namespace) -> int:
    from lesioncam.evaluation.evaluate import EvaluateRequest, evaluate  # noqa: PLC0415

    _, markdown, where = evaluate(
        EvaluateRequest(
            scores=flags.scores,
            labels=flags.labels,
            output=flags.output,
            rest_class=flags.rest_class or DEFAULT_REST_CLASS,
            masks=flags.masks,
            overlays=flags.overlays,
        )
    )
    print(markdown)
    print(f"evaluation {where}")
    return 0


def _demo(flags: argparse.Namespace) -> int:
    from lesioncam.cluster import connected  # noqa: PLC0415
    from lesioncam.demo import run_demo  # noqa: PLC0415

    with connected():
        print(run_demo(Path(flags.dir)))
    return 0


def _settings(flags: argparse.Namespace) -> TrainSettings:
    """The recipe: `--config`, then the flags over it."""
    settings = _RECIPE if flags.config is None else read_config(flags.config)
    given: dict[str, Any] = {
        name: value
        for name in ("val_fraction", "weights", "backbone", "rest_class")
        if (value := getattr(flags, name)) is not None
    }
    if flags.epochs is not None:
        given["stage1_epochs"], given["stage2_epochs"] = flags.epochs
    return replace(settings, **given)


def read_config(path: str) -> TrainSettings:
    """Read a recipe from a TOML file.

    Raises:
        InputError: it cannot be read, is not TOML, or has an unknown field or a bad value.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config: {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config: {path} is not TOML: {error}") from error
    return parse(TrainSettings, content, f"--config: {path}")


def _epochs(text: str) -> tuple[int, int]:
    parts = [_positive(part) for part in text.split(",")]
    if len(parts) > 2:
        raise argparse.ArgumentTypeError(f"expected N or N,M, got {text!r}")
    return parts[0], parts[-1]


def _positive(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {least}, got {text!r}"
        )
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _inner_fraction(text: str) -> float:
    value = _fraction(text)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def _shown(figure: float | None) -> str:
    return "undefined" if figure is None else f"{figure:.3f}"
