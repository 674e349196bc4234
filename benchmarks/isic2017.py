r"""ISIC-2017 laid out for training, so that no class can be told by the form of its files.

    python -m benchmarks.isic2017 --source isic2017 --output isic

The copies at hand come in two forms: whole images squashed to 256 x 256, of all, and center squares
of 512 x 512, of most. Nearly half of the seborrheic keratoses have the former only, and few of the
others, so a network that is given the finer form wherever there is one can learn the form instead
of the lesion. Here each class has the same share of its training images in each form, and copies of
one picture have the same form, as they are not recognized by their pixels otherwise. A training
image that shows the same picture as a validation image is left out.

Writes `train/` and `masks/` (each image's in its own form), `train.csv`, `forms.csv` (of each
training image its form); `val/` and `val.csv`, all validation images in the first form, of which no
masks are at hand; and `val-512/` with `masks-512/`, those that have the second.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lesioncam.storage.labels import read_labels
from lesioncam.vision.copies import SIDE, groups_of_copies, pairs_of_copies, thumbnail
from lesioncam.vision.decode import decode

FORMS = ("256", "512")
SEED = 2017


def draw_forms(classes: np.ndarray, both: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n,): each image's form; of every class the same share is in the first, the smallest one.

    Args:
        classes: (n,) int.
        both: (n,) bool, whether an image has both forms; the others have the first only.
        groups: (n,) int, of each image the number of the first one that shows the same picture.
    """
    random = np.random.default_rng(SEED)
    first = np.zeros(len(classes), bool)
    first[groups[~both]] = True  # a copy that has the first form only decides for all
    places = np.unique(classes)
    share = max(first[groups][classes == place].mean() for place in places)
    for place in places:
        members = classes == place
        free = np.flatnonzero(members & ~first & (groups == np.arange(len(groups))))
        count = round(share * members.sum()) - first[groups][members].sum()
        first[random.permutation(free)[: max(0, count)]] = True  # copies may be of two classes
    return np.where(first[groups], *FORMS)


def lay_out(source: Path, output: Path) -> pd.Series:
    """Copy images, masks and labels to where training finds them; returns the training forms."""
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
    seen = _thumbnails(source, "train", labels.ids)
    forms = pd.Series(draw_forms(labels.class_indices, both, groups_of_copies(seen)), labels.ids)
    copies = {i for i, _ in pairs_of_copies(seen, _thumbnails(source, "val", validation))}
    forms = forms.drop([labels.ids[number] for number in copies])
    truth = pd.read_csv(output / "train.csv", dtype=str).set_index("image_id")
    truth.loc[forms.index].to_csv(output / "train.csv")
    for form in FORMS:
        names = list(forms.index[forms == form])
        _copy(source / f"images_{form}" / "train", output / "train", names, ".jpg")
        _copy(source / f"masks_{form}", output / "masks", names, ".png")
    forms.rename("form").rename_axis("image_id").to_csv(output / "forms.csv")
    return forms


def _thumbnails(source: Path, split: str, names: Sequence[str]) -> np.ndarray:
    """To find copies by, in the form that all images have."""
    paths = (source / f"images_{FORMS[0]}" / split / f"{name}.jpg" for name in names)
    return np.stack([thumbnail(decode(path.read_bytes(), 2 * SIDE).canvas) for path in paths])


def _has(source: Path, name: str) -> bool:
    image, mask = source / "images_512" / "train", source / "masks_512"
    return (image / f"{name}.jpg").exists() and (mask / f"{name}.png").exists()


def _copy(source: Path, target: Path, names: Sequence[str], ending: str) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(source / f"{name}{ending}", target)


def main() -> None:
    """Lay it out, and say how many images of each class have which form."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    if flags.output.exists():
        raise SystemExit(f"--output: {flags.output} is there already; name another place")
    forms = lay_out(flags.source, flags.output)
    labels = read_labels(f"{flags.output}/train.csv", "nevus")
    classes = pd.Series([labels.classes[place] for place in labels.class_indices], labels.ids)
    print(pd.crosstab(classes, forms))


if __name__ == "__main__":
    main()
