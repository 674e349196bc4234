r"""ISIC-2017 laid out for training, so that the form of a file does not leak the class.

    python -m benchmarks.isic2017 --source isic2017 --output isic

The source has two forms of an image: the whole image squashed to 256 x 256, of all images, and a
center square of 512 x 512, of most. Nearly half of the seborrheic keratoses have the former only,
and few of the others. A network trained on the larger form wherever there is one could learn the
form instead of the lesion. Here every class has the same fraction of its training images in each
form. Copies of one picture have the same form, because they are recognized by their pixels.
Training images that show the same picture as a validation image are not used.

Writes `train/` and `masks/` (each image's in its own form), `train.csv`, `train-collections.csv`
(the same with a column `collection`, made from the images' numbers), `forms.csv` (the form of each
training image); `val/` and `val.csv`, all validation images in the first form, of which there are
no masks; and `val-512/` with `masks-512/`, those that have the second form.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lesioncam.storage.labels import read_labels
from lesioncam.vision.copies import SIZE, groups_of_copies, pairs_of_copies, thumbnail
from lesioncam.vision.decode import decode

FORMS = ("256", "512")
SEED = 2017
# By the number in an image's name: the first of each. All seborrheic keratoses are in the last two.
# Between these there is no gap in the numbers: they are to train on one and test on the other.
COLLECTIONS = {"to 999": 0, "to 11999": 1000, "to 13499": 12_000, "from 13500": 13_500}


def draw_forms(classes: np.ndarray, both: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n,) str: each image's form; the same fraction of every class, the smallest, has the first.

    Args:
        classes: (n,) int.
        both: (n,) bool, whether an image has both forms; the others have the first only.
        groups: (n,) int, for each image the index of the first one that shows the same picture.
    """
    random = np.random.default_rng(SEED)
    first = np.zeros(len(classes), bool)
    first[groups[~both]] = True  # if a copy has only the first form, so do all
    class_indices = np.unique(classes)
    fraction = max(first[groups][classes == index].mean() for index in class_indices)
    for index in class_indices:
        members = classes == index
        free = np.flatnonzero(members & ~first & (groups == np.arange(len(groups))))
        count = round(fraction * members.sum()) - first[groups][members].sum()
        first[random.permutation(free)[: max(0, count)]] = True  # copies may be of two classes
    return np.where(first[groups], *FORMS)


def collections_of(names: pd.Index) -> np.ndarray:
    """The collection of each image, by its name: (n,) str."""
    numbers = names.str.extract(r"(\d+)", expand=False).astype(int)
    starts = list(COLLECTIONS.values())
    return np.array(list(COLLECTIONS))[np.searchsorted(starts, numbers, side="right") - 1]


def lay_out(source: Path, output: Path) -> pd.Series:
    """Copy images, masks and labels to `output`; returns the form of each training image."""
    output.mkdir(parents=True)
    for split, official in (("train", "Training"), ("val", "Validation")):
        csv = source / f"ISIC-2017_{official}_Part3_GroundTruth.csv"
        shutil.copy(csv, output / f"{split}.csv")
    first, second = (source / f"images_{form}" / "val" for form in FORMS)
    validation = sorted(path.stem for path in first.iterdir())
    _copy(first, output / "val", validation, ".jpg")
    names = [path.stem for path in second.iterdir()]
    _copy(second, output / "val-512", names, ".jpg")
    _copy(source / "masks_512", output / "masks-512", names, ".png")

    labels = read_labels(f"{output}/train.csv", "nevus")
    both = np.array([_has(source, name) for name in labels.ids])
    thumbnails = _thumbnails(source, "train", labels.ids)
    forms = pd.Series(
        draw_forms(labels.class_indices, both, groups_of_copies(thumbnails)), labels.ids
    )
    copies = {i for i, _ in pairs_of_copies(thumbnails, _thumbnails(source, "val", validation))}
    forms = forms.drop([labels.ids[index] for index in copies])
    truth = pd.read_csv(output / "train.csv", dtype=str).set_index("image_id")
    truth = truth.loc[forms.index]
    truth.to_csv(output / "train.csv")
    truth.assign(collection=collections_of(truth.index)).to_csv(output / "train-collections.csv")
    for form in FORMS:
        names = list(forms.index[forms == form])
        _copy(source / f"images_{form}" / "train", output / "train", names, ".jpg")
        _copy(source / f"masks_{form}", output / "masks", names, ".png")
    forms.rename("form").rename_axis("image_id").to_csv(output / "forms.csv")
    return forms


def _thumbnails(source: Path, split: str, names: Sequence[str]) -> np.ndarray:
    """Thumbnails to find copies by, of the form that all images have."""
    paths = (source / f"images_{FORMS[0]}" / split / f"{name}.jpg" for name in names)
    return np.stack([thumbnail(decode(path.read_bytes(), 2 * SIZE).canvas) for path in paths])


def _has(source: Path, name: str) -> bool:
    image, mask = source / "images_512" / "train", source / "masks_512"
    return (image / f"{name}.jpg").exists() and (mask / f"{name}.png").exists()


def _copy(source: Path, target: Path, names: Sequence[str], ending: str) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(source / f"{name}{ending}", target)


def main() -> None:
    """Lay it out, and print how many images of each class have which form."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    if flags.output.exists():
        raise SystemExit(f"--output: {flags.output} exists; name another directory")
    forms = lay_out(flags.source, flags.output)
    labels = read_labels(f"{flags.output}/train.csv", "nevus")
    classes = pd.Series([labels.classes[index] for index in labels.class_indices], labels.ids)
    print(pd.crosstab(classes, forms))


if __name__ == "__main__":
    main()
