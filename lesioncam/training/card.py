"""Model card: what a bundle is, in words, for whoever finds it later."""

from lesioncam.storage.bundle import Bundle
from lesioncam.vision.metrics import markdown_table


def model_card(bundle: Bundle) -> str:
    """Write the bundle's README.md from its settings, training facts and metrics."""
    settings, facts = bundle.settings, bundle.training
    crop = settings.crop
    lines = [
        f"# lesioncam bundle: {settings.backbone}, {len(settings.classes)} classes",
        "",
        "Two-stage skin-lesion classifier after Jia & Shen, *Skin Lesion Classification using "
        "Class Activation Map* (arXiv 1703.01053). **Not a medical device**: for research, not "
        "for diagnosis.",
        "",
        "## Data",
        "",
        "| class | trained on | held out |",
        "|---|---:|---:|",
        *(
            f"| {name} | {facts['training_images'][name]:,} | {facts['held_out_images'][name]:,} |"
            for name in settings.classes
        ),
        "",
        "The epoch of each stage was chosen by mean AUC on the held-out images, so their figures "
        "below are somewhat too good. Validation images, where given, chose nothing.",
        "",
        "## Results",
        "",
    ]
    for name, figures in bundle.metrics.items():
        lines += [
            f"### {name.replace('_', '-').capitalize()} images",
            "",
            *markdown_table(figures),
            "",
        ]
    lines += [
        "## Recipe",
        "",
        f"Backbone {settings.backbone} at {settings.input_side} x {settings.input_side} pixels, "
        f"crops from a canvas of {settings.canvas_side} x {settings.canvas_side}. Crop rule: "
        f"{crop.map} map, threshold {crop.threshold}, padding {crop.padding}, smallest side "
        f"{crop.smallest} of the canvas. Lesion masks that guided stage 1's maps: "
        f"{facts['masks']:,}. Final probabilities: {1 - settings.stage2_weight:g} x "
        f"stage 1 + {settings.stage2_weight:g} x stage 2. Stage 1 is from epoch "
        f"{facts['stage1']['best_epoch']}, stage 2 from epoch {facts['stage2']['best_epoch']}. "
        f"Everything else is in `bundle.json` under `training`.",
        "",
        f"Trained {facts['trained_at']} by lesioncam {facts['lesioncam_version']}.",
        "",
    ]
    return "\n".join(lines)
