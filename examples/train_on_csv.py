"""Train on a CSV of your own, whose rows name an image and its diagnosis.

python examples/train_on_csv.py IMAGES CSV MODEL --image-column file --class-column diagnosis
"""

import argparse

import lesioncam


def main() -> None:
    """Train, and print how well the model does on images that were held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="a folder or s3:// prefix")
    parser.add_argument("csv", help="one row an image")
    parser.add_argument("model", help="where the model goes")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--class-column", default="diagnosis")
    parser.add_argument("--settings", help="a TOML file of training settings")
    parser.add_argument("--workers", type=int, default=1, help="how many train at once")
    flags = parser.parse_args()

    trained = lesioncam.train(
        flags.images,
        flags.csv,
        flags.model,
        id_column=flags.image_column,
        class_column=flags.class_column,
        settings=flags.settings,
        workers=flags.workers,
    )
    auc = trained["metrics"]["held_out"]["final"]["mean"]["auc"]
    print("mean AUC on held-out images:", "undefined" if auc is None else f"{auc:.3f}")


if __name__ == "__main__":
    main()
