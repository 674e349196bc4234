"""Agreement: whether two programs did the same work on the same images.

They decode differently (a JPEG at a reduced scale, or whole) and may compute in different
precisions, so their figures differ a little, and sometimes two regions merge and a box jumps.
Another crop rule, normalization or set of weights moves most boxes, or the mean difference, past
the limits here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lesioncam.columns import BOX_COLUMNS, probability_columns

TOLERANCE = 0.03  # mean difference of a final probability
OVERLAP = 0.95  # median IoU of an image's two boxes


@dataclass(frozen=True)
class Outcome:
    """A program's results for n images.

    Attributes:
        names: (n,) file names, sorted.
        probabilities: (n, K), final.
        boxes: (n, 4), in fractions of the image: x0, y0, x1, y1.
    """

    names: list[str]
    probabilities: np.ndarray
    boxes: np.ndarray

    def check_complete(self, images: Path) -> None:
        """Check that each image of a directory was scored once, and no other.

        Raises:
            ValueError: it is not so.
        """
        expected = sorted(path.name for path in images.iterdir())
        if self.names != expected:
            raise ValueError(
                f"expected {len(expected)} images of {images}, got {len(self.names)} rows"
            )


@dataclass(frozen=True)
class Agreement:
    """How much two outcomes differ.

    Attributes:
        images: how many both have.
        mean_difference: of a final probability.
        largest_difference: likewise.
        least_overlap: the smallest IoU of an image's two boxes.
        median_overlap: the median of these.
    """

    images: int
    mean_difference: float
    largest_difference: float
    least_overlap: float
    median_overlap: float

    @property
    def same_work(self) -> bool:
        """Whether both did the same."""
        return self.mean_difference <= TOLERANCE and self.median_overlap >= OVERLAP


def read_scores(folder: Path, classes: tuple[str, ...]) -> Outcome:
    """What `lesioncam score` wrote."""
    rows = pd.read_parquet(folder)
    sizes = rows[["width", "height", "width", "height"]].to_numpy(float)
    return _outcome(
        rows["uri"],
        rows[probability_columns(classes)].to_numpy(float),
        rows[list(BOX_COLUMNS)].to_numpy(float) / sizes,
    )


def read_peer(folder: Path, canvas_size: int) -> Outcome:
    """What a peer wrote."""
    rows = pd.read_parquet(folder)
    probabilities, boxes = (np.stack(rows[name].tolist()) for name in ("probabilities", "box"))
    return _outcome(rows["path"], probabilities, boxes / canvas_size)


def compare(ours: Outcome, theirs: Outcome) -> Agreement:
    """Compare on their images, all of which must be among ours.

    Raises:
        ValueError: one is not.
    """
    rows = {name: row for row, name in enumerate(ours.names)}
    missing = [name for name in theirs.names if name not in rows]
    if missing or not theirs.names:
        raise ValueError(f"expected images that both scored, got {missing or 'none'}")
    common = [rows[name] for name in theirs.names]
    difference = np.abs(ours.probabilities[common] - theirs.probabilities)
    overlaps = box_overlaps(ours.boxes[common], theirs.boxes)
    return Agreement(
        images=len(common),
        mean_difference=float(difference.mean()),
        largest_difference=float(difference.max()),
        least_overlap=float(overlaps.min()),
        median_overlap=float(np.median(overlaps)),
    )


def box_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,): the intersection over union of (n, 4) boxes, pair by pair."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    intersection = (high - low).clip(min=0).prod(axis=1)
    areas = sum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second))
    return np.asarray(intersection / (areas - intersection))


def _outcome(paths: pd.Series, probabilities: np.ndarray, boxes: np.ndarray) -> Outcome:
    names = paths.map(lambda path: Path(path).name).to_numpy()
    order = np.argsort(names)
    return Outcome(names[order].tolist(), probabilities[order], boxes[order])
