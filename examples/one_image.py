"""Classify one image: python examples/one_image.py MODEL IMAGE."""

import argparse

import lesioncam


def main() -> None:
    """Print the probability of each class, and where the lesion is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a trained model: the --bundle of 'lesioncam train'")
    parser.add_argument("image", help="a path or s3://bucket/key")
    flags = parser.parse_args()

    classifier = lesioncam.load(flags.model)
    row = classifier.predict(flags.image).iloc[0]
    if row["status"] == "failed":
        raise SystemExit(f"{flags.image}: {row['error_kind']}: {row['error']}")
    for name in classifier.classes:
        print(f"{row[f'p_{name}']:.3f}  {name}")
    x0, y0, x1, y1 = row[["box_x0", "box_y0", "box_x1", "box_y1"]]
    print(f"the lesion's box: x {x0} to {x1}, y {y0} to {y1} pixels")


if __name__ == "__main__":
    main()
