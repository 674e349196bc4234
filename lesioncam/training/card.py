"""Model card: a bundle's README.md, for people who come across the bundle."""

from collections.abc import Mapping
from typing import Any

from lesioncam.settings import ModelSettings, flat
from lesioncam.storage.bundle import Bundle
from lesioncam.vision.metrics import decision_table, markdown_table
from lesioncam.vision.overlap import overlap_table

_CITATION = """\
@article{jia2017skin,
  title   = {Skin Lesion Classification using Class Activation Map},
  author  = {Jia, Xi and Shen, Linlin},
  journal = {arXiv preprint arXiv:1703.01053},
  year    = {2017}
}"""


def model_card(bundle: Bundle) -> str:
    """Write the bundle's README.md from its settings, training facts and metrics."""
    settings, facts = bundle.settings, bundle.training
    parts = [
        [
            f"# lesioncam bundle: {settings.backbone}, {len(settings.classes)} classes",
            "",
            "Two-stage skin-lesion classifier after Jia & Shen, *Skin Lesion Classification using "
            "Class Activation Map* (arXiv 1703.01053). Stage 1 classifies the whole image. Its "
            "class activation map locates the lesion. Stage 2 classifies that region.",
            "",
            "**Not a medical device.** For research, not for diagnosis.",
        ],
        _data(bundle),
        _results(bundle),
        _limits(bundle),
        _recipe(bundle),
        ["## How to cite", "", "The method:", "", "```bibtex", _CITATION, "```"],
        [f"Trained {facts['trained_at']} by lesioncam {facts['lesioncam_version']}."],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _data(bundle: Bundle) -> list[str]:
    facts = bundle.training
    not_used = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in facts["not_used"].items()
    )
    lines = [
        "## Data",
        "",
        "| class | trained on | held out |",
        "|---|---:|---:|",
        *(
            f"| {name} | {facts['training_images'][name]:,} | {facts['held_out_images'][name]:,} |"
            for name in bundle.settings.classes
        ),
        "",
        f"Not used: {not_used}.",
    ]
    if _maps_trained(bundle):
        lines += [
            "",
            f"Maps were trained to cover the lesion, from {facts['masks_given']:,} given masks and "
            f"{facts['masks_estimated']:,} estimated from color.",
        ]
    return lines


def _maps_trained(bundle: Bundle) -> bool:
    """Whether maps were trained to cover the lesion."""
    return bool(bundle.training["masks_given"] + bundle.training["masks_estimated"])


def _results(bundle: Bundle) -> list[str]:
    lines = [
        "## Results",
        "",
        f"Each stage's epoch was chosen by mean AUC on {_chosen_on(bundle)}, so their figures are "
        "slightly optimistic. Nothing was chosen on validation images. `mean` is over "
        f"{', '.join(bundle.training['target_classes'])}.",
    ]
    for name, figures in bundle.metrics.items():
        lines += ["", f"### {name.replace('_', '-').capitalize()} images", ""]
        lines += [*markdown_table(figures), "", *decision_table(figures)]
        if "localization" in figures:
            lines += ["", *overlap_table(figures["localization"])]
    return [*lines, *_calibration(bundle.settings, bundle.training)]


def _calibration(settings: ModelSettings, facts: Mapping[str, Any]) -> list[str]:
    """Calibration and operating points, and how they were derived."""
    lines: list[str] = []
    if settings.calibration is not None:
        found = settings.calibration
        biases = ", ".join(
            f"{name} {bias:+.2f}" for name, bias in zip(settings.classes, found.biases, strict=True)
        )
        lines += [
            "",
            "### Calibration",
            "",
            f"Final probabilities are calibrated on {found.images:,} {found.source}: temperature "
            f"{found.temperature:.2f}, biases {biases}.",
            "The results above are those of the training, before it was calibrated anew."
            if "calibrated" in facts
            else "Calibration and thresholds were fitted to the held-out images: how they hold on "
            "others, results on validation images show.",
        ]
    if settings.operating_points:
        lines += [
            "",
            "### Operating points",
            "",
            "An image is flagged for a class from this final probability on.",
            "",
            "| class | threshold | chosen for | sensitivity | specificity | on |",
            "|---|---|---|---|---|---|",
        ]
    lines += [
        f"| {point.name} | {point.threshold:.3g} | {point.criterion} {point.wanted:g} "
        f"| {point.sensitivity:.3f} | {point.specificity:.3f} "
        f"| {point.positives:,} of {point.positives + point.negatives:,} {point.source} |"
        for point in settings.operating_points
    ]
    return lines


def _chosen_on(bundle: Bundle) -> str:
    """The images that the best epochs were chosen on."""
    if bundle.training["images_of_collections_without_a_class"]:
        return "held-out images, where possible of collections that have all classes"
    return "the held-out images"


def _limits(bundle: Bundle) -> list[str]:
    return [
        "## Limits",
        "",
        "- Calibration and thresholds hold for images like those that they were derived on. With "
        "more or fewer lesions of a class, or another camera, derive them on images of your own: "
        "`lesioncam calibrate`.",
        f"- It knows {', '.join(bundle.settings.classes)} and nothing else: any other finding, or "
        "a picture without a lesion, gets one of these names.",
        "- It was measured on images of the collections that it was trained on. Other cameras, "
        "skin types, ages and body sites can be much worse; collections of dermoscopic images "
        "have few dark skins.",
        "- Its maps were trained to cover the lesion. They do not show why a class was predicted."
        if _maps_trained(bundle)
        else "- Its maps show which region raised stage 1's scores, not why.",
    ]


def _recipe(bundle: Bundle) -> list[str]:
    settings, facts = bundle.settings, bundle.training
    crop = settings.crop
    rotation = (
        "Each stage averages over the image and the image rotated by 180 degrees. "
        if settings.test_time_rotation
        else ""
    )
    calibrated = "" if settings.calibration is None else "the calibrated mean, "
    return [
        "## Recipe",
        "",
        f"Backbone {settings.backbone} at {settings.input_size} x {settings.input_size} pixels, "
        f"crops from a canvas of {settings.canvas_size} x {settings.canvas_size}. Crop rule: "
        f"{crop.map} map, threshold {crop.threshold}, padding {crop.padding}, smallest side "
        f"{crop.smallest} of the canvas. Stage 2 sees the box with {crop.context} of the canvas "
        f"around it. Final probabilities: {calibrated}"
        f"{1 - settings.stage2_weight:g} x stage 1 + {settings.stage2_weight:g} x stage 2. "
        f"{rotation}Best epochs: "
        f"{facts['stage1']['best_epoch']} of {facts['settings']['stage1_epochs']} in stage 1, "
        f"{facts['stage2']['best_epoch']} of {facts['settings']['stage2_epochs']} in stage 2. "
        "Every epoch's metrics are in `metrics.csv` and `curves.png`. SGD with Nesterov momentum, "
        f"one-cycle learning rate. Ray Train workers: {facts['workers']}. All settings, documented "
        "in `lesioncam.settings.TrainSettings`:",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{name}` | {_value(value)} |" for name, value in flat(facts["settings"])),
    ]


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
