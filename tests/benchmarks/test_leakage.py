from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.leakage import table, told_by
from lesioncam.storage.labels import read_labels


def boxes(sides: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Square boxes of these sides, anywhere in the image."""
    corner = random.uniform(0, 1 - sides)
    return np.stack([corner, corner, corner + sides, corner + sides], axis=1)


def test_boxes_that_follow_the_label_tell_it_where_they_do(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "labels.csv").write_text("image_id,melanoma\nA,1\nB,0\n")
    labels = read_labels(f"{tmp_path}/labels.csv", "nevus")
    places, held_out = np.arange(400) % 2, np.arange(400) >= 200
    outlines = boxes(random.uniform(0.2, 0.6, 400), random)
    found = outlines.copy()
    found[(places == 0) & ~held_out, 2:] += 0.3
    rows = pd.DataFrame({"label": places, "held_out": held_out})
    rows["box"], rows["outline"] = list(found), list(outlines)
    cells = [line.strip("| ").split(" | ") for line in table(rows, labels)[2:]]
    assert [line[:2] for line in cells] == [
        [f"200 {which}", of]
        for which in ("learned from", "held out")
        for of in ("melanoma", "mean")
    ]
    learned, held = (cells[place] for place in (1, 3))
    assert float(learned[2][:5]) > 0.85
    assert float(learned[4][:5]) > 0.2
    for cell in (learned[3], held[2], held[3]):
        assert abs(float(cell[:5]) - 0.5) < 0.15


def test_no_label_of_the_images_asked_of_is_learned() -> None:
    random = np.random.default_rng(1)
    places, held_out, folds = np.arange(60) % 2, np.arange(60) >= 40, np.arange(60) % 5
    some = boxes(random.uniform(0.2, 0.8, 60), random)

    def told(changed: np.ndarray) -> np.ndarray:
        return told_by(some, np.where(changed, 1 - places, places), 2, held_out, folds)

    before, first = told(np.zeros(60, bool)), (folds == 0) & ~held_out
    np.testing.assert_array_equal(told(held_out), before)
    after = told(first)
    np.testing.assert_array_equal(after[first], before[first])
    assert (after != before)[~first].any(axis=1).all()
