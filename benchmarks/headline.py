r"""What a bundle reaches that was trained on the layout of `benchmarks.isic2017`.

    python -m benchmarks.headline --isic isic --bundle model --output docs/headline

Scores, in float32, the images that its training held out and the validation images in both forms.
Of each of these sets the predictions go to `<set>.csv` in the output and the figures to
`<set>.json`; beside them go the run's own record (`metrics.csv`, `curves.png`, `model-card.md`),
and `README.md` with tables of all of it.
"""

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.predictions import (
    by_form,
    figures_of,
    means_table,
    read_images,
    read_predictions,
)
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.settings import TrainSettings, from_mapping
from lesioncam.storage.bundle import Bundle, load_bundle
from lesioncam.storage.labels import read_labels
from lesioncam.training.source import hold_out
from lesioncam.vision.metrics import STAGES, Figures, with_interval

SETS = {
    "held-out": "held out",
    "validation-512": "validation at 512",
    "validation": "validation at 256",
}
RECORD = {"metrics.csv": "metrics.csv", "curves.png": "curves.png", "README.md": "model-card.md"}


def write_held_out(isic: Path, bundle: Bundle, path: Path) -> None:
    """Write the `uri`s of the images that a bundle's training held out, drawn as it drew them."""
    settings = from_mapping(TrainSettings, bundle.training["settings"], "bundle.json: settings")
    labels = read_labels(f"{isic}/train.csv", settings.rest_class)
    images, _ = read_images(f"{isic}/train", labels)
    places, groups = images["label"].to_numpy(), images["group"].to_numpy()
    held_out = hold_out(places, groups, settings.val_fraction, settings.seed)
    images.loc[held_out, ["uri"]].to_csv(path, index=False)


def localisation_table(figures: dict[str, Figures]) -> list[str]:
    """Lines of Markdown: map and box against outlines, of those sets that have some."""
    lines = [
        "| images | CAM peak in the lesion | IoU of box and lesion's box | lesion kept "
        "| the centre in the lesion | IoU of a central box |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in figures.items():
        if "localisation" in found:
            means = {key: f"{value:.3f}" for key, value in found["localisation"].items()}
            lines.append(
                f"| {found['localisation']['masks']} {SETS[name]} | {means['peak_inside']} "
                f"| {means['box_iou']} | {means['lesion_kept']} | {means['centre_inside']} "
                f"| {means['central_box_iou']} |"
            )
    return lines


def classes_table(figures: dict[str, Figures], classes: Sequence[str]) -> list[str]:
    """Lines of Markdown: each class's AUC in each set."""
    lines = ["| AUC of | images | stage 1 | stage 2 | final |", "|---|---|---|---|---|"]
    for name, found in figures.items():
        for label in classes:
            cells = [with_interval(found[stage][label]) for stage in STAGES]
            lines.append(f"| {label} | {SETS[name]} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Score what is not scored yet, and write all figures anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isic", type=Path, required=True, help="benchmarks.isic2017's layout")
    parser.add_argument("--bundle", required=True, help="what train made of it")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("headline"), help="scores")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    isic, output = flags.isic, flags.output
    for place in (output, flags.work):
        place.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(flags.bundle)
    write_held_out(isic, bundle, flags.work / "held-out.csv")

    sets = {
        "held-out": (flags.work / "held-out.csv", isic / "train.csv", isic / "masks"),
        "validation-512": (isic / "val-512", isic / "val.csv", isic / "masks-512"),
        "validation": (isic / "val", isic / "val.csv", None),
    }
    rows, figures = {}, {}
    for name, (images, csv, masks) in sets.items():
        scores = f"{flags.work}/{bundle.digest[:8]}/{name}"
        score(ScoreRequest(str(images), flags.bundle, scores, precision="float32"))
        labels = read_labels(str(csv), bundle.settings.classes[-1])
        rows[name] = read_predictions(scores, labels, None if masks is None else str(masks))
        figures[name] = figures_of(rows[name], labels)
        rows[name].to_csv(output / f"{name}.csv", index=False)
        (output / f"{name}.json").write_text(json.dumps(figures[name], indent=2) + "\n")
    for name, kept in RECORD.items():
        shutil.copy(Path(flags.bundle, name), output / kept)

    forms = pd.read_csv(isic / "forms.csv", dtype=str).set_index("image_id")["form"]
    parts = {"held out": rows["held-out"]}
    parts |= {f"of these at {form}": r for form, r in by_form(rows["held-out"], forms).items()}
    parts |= {SETS[name]: rows[name] for name in ("validation", "validation-512")}
    markdown = "\n".join(
        [
            "# What one run reaches",
            "",
            f"Made by `benchmarks.headline` from the bundle {bundle.digest[:8]}, trained by "
            f"lesioncam {bundle.training['lesioncam_version']} with seed "
            f"{bundle.training['settings']['seed']}; scored in float32. The held-out images chose "
            "each stage's epoch, the validation images chose nothing. AUCs have 95 % bootstrap "
            "intervals; means are over the classes with a column of their own.",
            "",
            *means_table("mean AUC", parts, labels),
            "",
            *classes_table(figures, labels.classes),
            "",
            *localisation_table(figures),
            "",
        ]
    )
    (output / "README.md").write_text(markdown)
    print(markdown)


if __name__ == "__main__":
    main()
