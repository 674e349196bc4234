"""Model card: what a bundle is, in words, for whoever finds it later."""

from typing import Any

from lesioncam.settings import flat
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
            "Class Activation Map* (arXiv 1703.01053): stage 1 classifies the whole image, its "
            "class activation map leads to the lesion, stage 2 classifies that region.",
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
    left_over = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in facts["left_over"].items()
    )
    drawn, guessed = facts["outlines_drawn"], facts["outlines_guessed"]
    maps = (
        f"Both stages' maps were taught to cover the lesion, by {drawn:,} drawn outlines and "
        f"{guessed:,} guessed from color."
    )
    return [
        "## Data",
        "",
        "| class | trained on | held out |",
        "|---|---:|---:|",
        *(
            f"| {name} | {facts['training_images'][name]:,} | {facts['held_out_images'][name]:,} |"
            for name in bundle.settings.classes
        ),
        "",
        f"Left over: {left_over}.",
        *(["", maps] if _taught(bundle) else []),
    ]


def _taught(bundle: Bundle) -> bool:
    """Whether maps were guided onto the lesion."""
    return bool(bundle.training["outlines_drawn"] + bundle.training["outlines_guessed"])


def _results(bundle: Bundle) -> list[str]:
    lines = [
        "## Results",
        "",
        "Each stage's epoch, of those at the full side, was chosen by mean AUC on the held-out "
        "images, so their figures are somewhat too good. Validation images, where given, chose "
        "nothing. `mean` is over "
        f"{', '.join(bundle.training['target_classes'])}.",
    ]
    for name, figures in bundle.metrics.items():
        lines += ["", f"### {name.replace('_', '-').capitalize()} images", ""]
        lines += [*markdown_table(figures), "", *decision_table(figures)]
        if "localization" in figures:
            lines += ["", *overlap_table(figures["localization"])]
    return lines


def _limits(bundle: Bundle) -> list[str]:
    balance = bundle.training["settings"]["balance"]
    return [
        "## Limits",
        "",
        "- It ranks images; its probabilities are not calibrated"
        + (", and were learned with classes weighted towards balance" * (balance > 0))
        + ": choose a threshold on images of your own.",
        f"- It knows {', '.join(bundle.settings.classes)} and nothing else: any other finding, or "
        "a picture without a lesion, gets one of these names.",
        "- It was measured on images of the same collection. Other cameras, skin types, ages and "
        "body sites can be much worse; collections of dermoscopic images have few dark skins.",
        "- Its maps were taught to cover the lesion: they are meant to find it, and are no "
        "evidence of what the class rests on."
        if _taught(bundle)
        else "- Its maps show where stage 1 looked, not why.",
    ]


def _recipe(bundle: Bundle) -> list[str]:
    settings, facts = bundle.settings, bundle.training
    crop = settings.crop
    return [
        "## Recipe",
        "",
        f"Backbone {settings.backbone} at {settings.input_size} x {settings.input_size} pixels, "
        f"crops from a canvas of {settings.canvas_size} x {settings.canvas_size}. Crop rule: "
        f"{crop.map} map, threshold {crop.threshold}, padding {crop.padding}, smallest side "
        f"{crop.smallest} of the canvas; stage 2 sees the box with {crop.context} of the canvas "
        f"more on each side. Final probabilities: {1 - settings.stage2_weight:g} x "
        f"stage 1 + {settings.stage2_weight:g} x stage 2"
        + (
            ", each the mean over the image and its half turn"
            if settings.test_time_rotation
            else ""
        )
        + f". Stage 1 is from epoch {facts['stage1']['best_epoch']} of "
        f"{facts['settings']['stage1_epochs']}, stage 2 from epoch "
        f"{facts['stage2']['best_epoch']} of {facts['settings']['stage2_epochs']}; every epoch's "
        "metrics are in `metrics.csv` and `curves.png`. SGD with Nesterov momentum, one cycle; "
        f"Ray Train workers: {facts['workers']}. All settings, as `lesioncam.settings` tells them:",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{name}` | {_value(value)} |" for name, value in flat(facts["settings"])),
    ]


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
