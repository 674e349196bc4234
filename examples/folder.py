"""Classify a folder into a DataFrame, and draw an overlay: python examples/folder.py MODEL FOLDER.

For more than a few thousand images use `lesioncam score`, which resumes and runs on a cluster.
"""

import argparse
from pathlib import Path

import lesioncam
from lesioncam.evaluation.overlays import overlay_pages


def main() -> None:
    """Write the scores as CSV, and some images with their box and class activation map as PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a trained model: the --bundle of 'lesioncam train'")
    parser.add_argument("folder", type=Path, help="a folder of .jpg files")
    parser.add_argument("--scores", default="scores.csv", help="(%(default)s)")
    parser.add_argument("--overlay", type=Path, default="overlay.png", help="(%(default)s)")
    flags = parser.parse_args()

    paths = sorted(flags.folder.glob("*.jpg"))
    if not paths:
        raise SystemExit(f"{flags.folder}: no .jpg files there")
    classifier = lesioncam.load(flags.model)
    scores = classifier.predict(paths)
    scores.drop(columns="cam").to_csv(flags.scores, index=False)
    print(scores["status"].value_counts().to_string(header=False))

    good = scores[scores["status"] == "ok"]
    if len(good):
        flags.overlay.write_bytes(next(overlay_pages(good, 6, classifier.classes)))


if __name__ == "__main__":
    main()
