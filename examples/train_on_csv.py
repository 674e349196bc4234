"""Train on a CSV of your own, whose rows name an image and its diagnosis.

python examples/train_on_csv.py IMAGES CSV MODEL --image-column file --class-column diagnosis
"""

import argparse
from pathlib import Path

import pandas as pd

import lesioncam


def main() -> None:
    """Turn the CSV into the labels that lesioncam reads, one 0/1 column per class, and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="a folder or s3:// prefix")
    parser.add_argument("csv", type=Path)
    parser.add_argument("model", help="where the model goes")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--class-column", default="diagnosis")
    parser.add_argument("--settings", help="a TOML file of training settings")
    flags = parser.parse_args()

    table = pd.read_csv(flags.csv, dtype=str)
    table = table.dropna(subset=[flags.image_column, flags.class_column])
    labels = pd.get_dummies(table[flags.class_column].str.replace(" ", "_"), dtype=int)
    labels.insert(0, "image_id", table[flags.image_column].map(lambda name: Path(name).stem))
    path = flags.csv.with_suffix(".labels.csv")
    labels.to_csv(path, index=False)

    trained = lesioncam.train(flags.images, path, flags.model, settings=flags.settings)
    auc = trained["metrics"]["held_out"]["final"]["mean"]["auc"]
    print("mean AUC on held-out images:", "undefined" if auc is None else f"{auc:.3f}")


if __name__ == "__main__":
    main()
