"""The results of one bundle, trained on the layout of `benchmarks.isic2017`.

    python -m benchmarks.headline --isic isic --bundle model --output headline

Scores, in float32, the images that its training held out and the validation images in both forms,
and separates small lesions from large ones. Each of these sets gets a folder in the output, with
the predictions and the output of `lesioncam evaluate`. Beside it go the training's metrics, curves
and model card, and `README.md` with tables of all of it. With `--test-time-rotation`, a copy of the
bundle with that setting is scored instead, and the training's files are not copied.
"""

import argparse
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from benchmarks.predictions import (
    by_form,
    by_size,
    localization_table,
    means_table,
    read_images,
    read_predictions,
)
from lesioncam.columns import STAGES
from lesioncam.errors import InputError
from lesioncam.evaluation.evaluate import EvaluateRequest, evaluate
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.settings import TrainSettings, flat, parse
from lesioncam.storage.bundle import Bundle, load_bundle, save_bundle
from lesioncam.storage.labels import Labels, read_labels
from lesioncam.training.dataset import hold_out
from lesioncam.training.progress import stage_name
from lesioncam.vision.metrics import Figures, with_interval

TRAINING_FILES = {
    "metrics.csv": "metrics.csv",
    "curves.png": "curves.png",
    "README.md": "model-card.md",
}
SAME_AUC = 0.01  # how far float32 may be from the precision of training
ROTATION_AUC = 0.03  # how far test-time rotation may be


@dataclass(frozen=True)
class ImageSet:
    """A set of images to score.

    Attributes:
        title: its name in tables.
        images: a directory, or a CSV of `uri`s.
        labels: the ground truth of at least these images.
        masks: their lesion masks, or None.
    """

    title: str
    images: Path
    labels: Path
    masks: Path | None


def image_sets(isic: Path, held_out: Path) -> dict[str, ImageSet]:
    """The sets by the name of their folder; `held_out` is the CSV of the first one."""
    truth = isic / "val.csv"
    return {
        "held-out": ImageSet("held out", held_out, isic / "train.csv", isic / "masks"),
        "validation": ImageSet("validation at 256", isic / "val", truth, None),
        "validation-512": ImageSet(
            "validation at 512", isic / "val-512", truth, isic / "masks-512"
        ),
    }


def held_out_images(
    images: str, labels: Labels, settings: TrainSettings, bundle: Bundle
) -> list[str]:
    """The `uri`s of the images that a bundle's training held out, drawn again as it did.

    Raises:
        InputError: these are not the images of its training.
    """
    rows, _ = read_images(images, labels, bundle.settings.canvas_size)
    class_indices, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    held_out = hold_out(class_indices, groups, settings.val_fraction, settings.seed)
    for part, members in (("training_images", ~held_out), ("held_out_images", held_out)):
        found = Counter(labels.classes[index] for index in class_indices[members])
        if found != Counter(bundle.training[part]):
            raise InputError(
                f"--bundle: its {part} were {bundle.training[part]}, those of {images} are "
                f"{dict(found)}; give the images that it was trained on as --isic"
            )
    return list(rows["uri"][held_out])


def check_held_out(figures: Figures, bundle: Bundle, margin: float = SAME_AUC) -> None:
    """Refuse held-out images on which a stage is not as good as in training.

    Args:
        figures: of scoring.
        bundle: has the figures of training.
        margin: the largest difference of a stage's two mean AUCs.

    Raises:
        InputError: these are other images.
    """
    for stage in STAGES:
        found, known = (of[stage]["mean"]["auc"] for of in (figures, bundle.metrics["held_out"]))
        if abs(found - known) > margin:
            raise InputError(
                f"--isic: {stage_name(stage)} has a mean AUC of {found:.4f} on the held-out images "
                f"and had {known:.4f} in training; give the images that --bundle was trained on"
            )


def classes_table(figures: Mapping[str, Figures], classes: Sequence[str]) -> list[str]:
    """Lines of Markdown: each class's AUCs on each set."""
    lines = ["| AUC of | images | stage 1 | stage 2 | final |", "|---|---|---|---|---|"]
    for name in classes:
        for title, content in figures.items():
            cells = [with_interval(content[stage][name]) for stage in STAGES]
            lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    return lines


def changed_settings(settings: TrainSettings) -> str:
    """The settings that differ from the default recipe's, as `name = value, ...`."""
    given, default = (dict(flat(asdict(each.resolved()))) for each in (settings, TrainSettings()))
    changed = {name: value for name, value in given.items() if value != default[name]}
    return ", ".join(f"`{name} = {value!r}`" for name, value in changed.items()) or "none"


def with_rotation(bundle: Bundle, uri: str) -> str:
    """Write a copy of a bundle with test-time rotation; returns its URI."""
    settings = replace(bundle.settings, test_time_rotation=True)
    save_bundle(replace(bundle, settings=settings), uri, "# A copy with test_time_rotation\n")
    return uri


def score_and_evaluate(
    images: ImageSet, bundle: str, rest_class: str, scores: Path, output: Path
) -> tuple[Figures, pd.DataFrame]:
    """Score a set, unless it is scored; returns `evaluation.json` and the predictions.

    Raises:
        InputError: an image failed, or the scores hold images of another set.
    """
    done = score(ScoreRequest(str(images.images), bundle, str(scores), precision="float32"))
    if done["failed"] or done["unlisted"]:
        raise InputError(
            f"--work: {scores} has {done['failed']} failed images and {done['unlisted']} of other "
            f"sets; name another directory, or fix the images"
        )
    masks = None if images.masks is None else str(images.masks)
    request = EvaluateRequest(str(scores), str(images.labels), str(output), rest_class, masks)
    content, _, _ = evaluate(request)
    labels = read_labels(str(images.labels), rest_class)
    return content, read_predictions(str(scores), labels, masks)


def main() -> None:
    """Score the sets that are not scored yet, and rewrite all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isic", type=Path, required=True, help="benchmarks.isic2017's layout")
    parser.add_argument("--bundle", required=True, help="trained on it; a directory")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--test-time-rotation", action="store_true", help="score with this setting")
    parser.add_argument("--work", type=Path, default=Path("headline"), help="scores")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bundle, scored, output = load_bundle(flags.bundle), flags.bundle, flags.output
    work = flags.work / (bundle.digest[:8] + "-rotation" * flags.test_time_rotation)
    for folder in (output, work):
        folder.mkdir(parents=True, exist_ok=True)
    if flags.test_time_rotation:
        scored = with_rotation(bundle, f"{work}/bundle")
    else:
        for name, target in TRAINING_FILES.items():
            shutil.copy(Path(flags.bundle, name), output / target)
    forms = pd.read_csv(flags.isic / "forms.csv", dtype=str).set_index("image_id")["form"]

    settings = parse(TrainSettings, bundle.training["settings"], "bundle.json: settings")
    labels = read_labels(f"{flags.isic}/train.csv", settings.rest_class)
    uris = held_out_images(f"{flags.isic}/train", labels, settings, bundle)
    pd.DataFrame({"uri": uris}).to_csv(work / "held-out.csv", index=False)

    figures: dict[str, Figures] = {}
    rows: dict[str, pd.DataFrame] = {}
    for name, images in image_sets(flags.isic, work / "held-out.csv").items():
        figures[images.title], found = score_and_evaluate(
            images, scored, settings.rest_class, work / name, output / name
        )
        rows[images.title] = found
        if name == "held-out":
            margin = ROTATION_AUC if flags.test_time_rotation else SAME_AUC
            check_held_out(figures[images.title], bundle, margin)
            found["form"] = found["image_id"].map(forms)
            rows |= {f"of these at {form}": part for form, part in by_form(found, forms).items()}
            sizes = by_size(found, str(images.masks))
            rows |= {f"of these, lesions of {size}": part for size, part in sizes.items()}
        found.to_csv(output / name / "predictions.csv", index=False)

    markdown = "\n".join(
        [
            "# Results of one run" + " with test-time rotation" * flags.test_time_rotation,
            "",
            f"Made by `benchmarks.headline` from the bundle {bundle.digest[:8]}, trained by "
            f"lesioncam {bundle.training['lesioncam_version']}, and scored in float32"
            f"{' with test-time rotation' * flags.test_time_rotation}. Settings that are not the "
            f"default: {changed_settings(settings)}. Each stage's epoch was chosen on the held-out "
            "images; nothing was chosen on the validation images. AUCs have 95 % bootstrap "
            f"intervals. The mean is over {', '.join(labels.target_classes)}.",
            "",
            *means_table("mean AUC", rows, labels),
            "",
            *classes_table(figures, labels.classes),
            "",
            *localization_table("images", rows),
            "",
        ]
    )
    (output / "README.md").write_text(markdown)
    print(markdown)


if __name__ == "__main__":
    main()
