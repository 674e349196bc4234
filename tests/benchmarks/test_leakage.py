from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.leakage import table
from lesioncam.storage.labels import read_labels


def boxes(sides: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Square boxes of these sides, anywhere in the image."""
    corner = random.uniform(0, 1 - sides)
    return np.stack([corner, corner, corner + sides, corner + sides], axis=1)


def test_boxes_that_follow_the_label_tell_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "labels.csv").write_text("image_id,melanoma\nA,1\nB,0\n")
    labels = read_labels(f"{tmp_path}/labels.csv", "nevus")
    places = np.arange(400) % 2
    outlines = boxes(random.uniform(0.2, 0.6, 400), random)
    found = outlines.copy()
    learned_melanoma = (places == 0) & (np.arange(400) < 200)
    found[learned_melanoma, 2:] += 0.3
    rows = pd.DataFrame({"label": places, "held_out": np.arange(400) >= 200})
    rows["box"], rows["outline"] = list(found), list(outlines)
    cells = [line.strip("| ").split(" | ") for line in table(rows, labels)[2:]]
    parts = [f"200 {which}" for which in ("learned from", "held out")]
    assert [line[:2] for line in cells] == [[part, of] for part in parts for of in labels.classes]
    learned, _, held_out, _ = ([float(cell[:5]) for cell in line[2:]] for line in cells)
    assert learned[0] > 0.85
    assert max(learned[1], *held_out[:2]) < 0.65
    assert learned[2] < 0.7
    assert held_out[2] == 1
