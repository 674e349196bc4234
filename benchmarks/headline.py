"""What a bundle reaches that was trained on the layout of `benchmarks.isic2017`.

    python -m benchmarks.headline --isic isic --bundle model --output docs/headline

Scores, in float32, the images that its training held out and the validation images in both forms.
(Of the held-out ones lesions are told apart by their longer side, too, as a share of the image's.)
Each of these sets gets a folder in the output, with the predictions and what `lesioncam evaluate`
says of them; beside it go the run's own record and `README.md` with tables of all of it. With
`--half-turn` the bundle is scored as if it had been trained with `test_time_rotation = true`, and there are
no records.
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
from lesioncam.training.initial import resolve_recipe
from lesioncam.training.progress import stage_name
from lesioncam.training.source import hold_out
from lesioncam.vision.metrics import Figures, with_interval

RECORD = {"metrics.csv": "metrics.csv", "curves.png": "curves.png", "README.md": "model-card.md"}
SAME_AUC = 0.01  # as far as float32 may be from the precision of training
TWICE_AUC = 0.03  # as far as a second look may take it


@dataclass(frozen=True)
class Part:
    """A set of images to score.

    Attributes:
        title: what tables call it.
        images: a directory, or a CSV of `uri`s.
        labels: the ground truth of at least these images.
        masks: their outlines, or None.
    """

    title: str
    images: Path
    labels: Path
    masks: Path | None


def parts_of(isic: Path, held_out: Path) -> dict[str, Part]:
    """The sets by the name of their folder; `held_out` is the CSV of the first one."""
    truth = isic / "val.csv"
    return {
        "held-out": Part("held out", held_out, isic / "train.csv", isic / "masks"),
        "validation": Part("validation at 256", isic / "val", truth, None),
        "validation-512": Part("validation at 512", isic / "val-512", truth, isic / "masks-512"),
    }


def held_out_images(
    images: str, labels: Labels, settings: TrainSettings, bundle: Bundle
) -> list[str]:
    """The `uri`s of the images that a bundle's training held out, drawn as it drew them.

    Raises:
        InputError: these are not the images that it was trained on.
    """
    rows, _ = read_images(images, labels, bundle.settings.canvas_size)
    places, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    held_out = hold_out(places, groups, settings.val_fraction, settings.seed)
    for part, of_it in (("training_images", ~held_out), ("held_out_images", held_out)):
        found = Counter(labels.classes[place] for place in places[of_it])
        if found != Counter(bundle.training[part]):
            raise InputError(
                f"--bundle: its {part} were {bundle.training[part]}, those of {images} are "
                f"{dict(found)}; give the images that it was trained on as --isic"
            )
    return list(rows["uri"][held_out])


def check_held_out(figures: Figures, bundle: Bundle, margin: float = SAME_AUC) -> None:
    """Refuse held-out images on which a stage is not as good as it was in training.

    Args:
        figures: what scoring came to.
        bundle: it knows what training came to.
        margin: how far apart the mean AUCs of a stage may be.

    Raises:
        InputError: they are others.
    """
    for stage in STAGES:
        found, known = (of[stage]["mean"]["auc"] for of in (figures, bundle.metrics["held_out"]))
        if abs(found - known) > margin:
            raise InputError(
                f"--isic: {stage_name(stage)} has a mean AUC of {found:.4f} on what "
                f"should be the images held out, and had {known:.4f} in training; give the images "
                f"that --bundle was trained on"
            )


def classes_table(figures: Mapping[str, Figures], classes: Sequence[str]) -> list[str]:
    """Lines of Markdown: each class's AUCs on each set."""
    lines = ["| AUC of | images | stage 1 | stage 2 | final |", "|---|---|---|---|---|"]
    for name in classes:
        for title, content in figures.items():
            cells = [with_interval(content[stage][name]) for stage in STAGES]
            lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    return lines


def unlike_default(settings: TrainSettings) -> str:
    """The settings that differ from the default recipe's, as `name = value, ...`."""
    given, default = (
        dict(flat(asdict(resolve_recipe(each)))) for each in (settings, TrainSettings())
    )
    changed = {name: value for name, value in given.items() if value != default[name]}
    return ", ".join(f"`{name} = {value!r}`" for name, value in changed.items()) or "none"


def looking_twice(bundle: Bundle, uri: str) -> str:
    """Write a copy of a bundle that takes each image's half turn, too; returns its place."""
    settings = replace(bundle.settings, test_time_rotation=True)
    save_bundle(replace(bundle, settings=settings), uri, "# A copy with test_time_rotation\n")
    return uri


def score_and_evaluate(
    part: Part, bundle: str, rest_class: str, scores: Path, output: Path
) -> tuple[Figures, pd.DataFrame]:
    """Score a set, as far as that is not done; returns `evaluation.json` and the predictions.

    Raises:
        InputError: an image failed, or the scores hold images that are not of the set.
    """
    done = score(ScoreRequest(str(part.images), bundle, str(scores), precision="float32"))
    if done["failed"] or done["unlisted"]:
        raise InputError(
            f"--work: {scores} has {done['failed']} failed images and {done['unlisted']} of other "
            f"sets; name another place, or mend the images"
        )
    masks = None if part.masks is None else str(part.masks)
    request = EvaluateRequest(str(scores), str(part.labels), str(output), rest_class, masks)
    content, _, _ = evaluate(request)
    labels = read_labels(str(part.labels), rest_class)
    return content, read_predictions(str(scores), labels, masks)


def main() -> None:
    """Score what is not scored yet, and write all figures anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isic", type=Path, required=True, help="benchmarks.isic2017's layout")
    parser.add_argument("--bundle", required=True, help="what train made of it; a directory")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--half-turn", action="store_true", help="look at each image twice")
    parser.add_argument("--work", type=Path, default=Path("headline"), help="scores")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bundle, scored, output = load_bundle(flags.bundle), flags.bundle, flags.output
    work = flags.work / (bundle.digest[:8] + "-half-turn" * flags.test_time_rotation)
    for place in (output, work):
        place.mkdir(parents=True, exist_ok=True)
    if flags.test_time_rotation:
        scored = looking_twice(bundle, f"{work}/bundle")
    else:
        for name, kept in RECORD.items():
            shutil.copy(Path(flags.bundle, name), output / kept)
    forms = pd.read_csv(flags.isic / "forms.csv", dtype=str).set_index("image_id")["form"]

    settings = parse(TrainSettings, bundle.training["settings"], "bundle.json: settings")
    labels = read_labels(f"{flags.isic}/train.csv", settings.rest_class)
    uris = held_out_images(f"{flags.isic}/train", labels, settings, bundle)
    pd.DataFrame({"uri": uris}).to_csv(work / "held-out.csv", index=False)

    figures: dict[str, Figures] = {}
    rows: dict[str, pd.DataFrame] = {}
    for name, part in parts_of(flags.isic, work / "held-out.csv").items():
        figures[part.title], found = score_and_evaluate(
            part, scored, settings.rest_class, work / name, output / name
        )
        rows[part.title] = found
        if name == "held-out":
            margin = TWICE_AUC if flags.test_time_rotation else SAME_AUC
            check_held_out(figures[part.title], bundle, margin)
            found["form"] = found["image_id"].map(forms)
            rows |= {f"of these at {form}": of_it for form, of_it in by_form(found, forms).items()}
            sizes = by_size(found, str(part.masks))
            rows |= {f"of these, lesions of {size}": of_it for size, of_it in sizes.items()}
        found.to_csv(output / name / "predictions.csv", index=False)

    markdown = "\n".join(
        [
            "# What one run reaches" + ", each image seen twice" * flags.test_time_rotation,
            "",
            f"Made by `benchmarks.headline` from the bundle {bundle.digest[:8]}, trained by "
            f"lesioncam {bundle.training['lesioncam_version']}, and scored in float32"
            f"{', each image also turned by half' * flags.test_time_rotation}. Settings "
            f"that are not the default: {unlike_default(settings)}. The held-out images chose each "
            "stage's epoch, the validation images chose nothing. AUCs have 95 % bootstrap "
            "intervals; the mean is over "
            f"{', '.join(labels.target_classes)}.",
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
