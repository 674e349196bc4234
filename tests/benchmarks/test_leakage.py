from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.leakage import predict_from, table
from lesioncam.storage.labels import read_labels


def boxes(sides: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Square boxes of these sides, anywhere in the image."""
    corner = random.uniform(0, 1 - sides)
    return np.stack([corner, corner, corner + sides, corner + sides], axis=1)


def test_boxes_that_follow_the_label_predict_it_where_they_do(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "labels.csv").write_text("image_id,melanoma\nA,1\nB,0\n")
    labels = read_labels(f"{tmp_path}/labels.csv", "nevus")
    class_indices, held_out = np.arange(400) % 2, np.arange(400) >= 200
    mask_boxes = boxes(random.uniform(0.2, 0.6, 400), random)
    found = mask_boxes.copy()
    found[(class_indices == 0) & ~held_out, 2:] += 0.3
    rows = pd.DataFrame({"label": class_indices, "held_out": held_out})
    rows["box"], rows["mask_box"] = list(found), list(mask_boxes)
    cells = [line.strip("| ").split(" | ") for line in table(rows, labels)[2:]]
    assert [line[:2] for line in cells] == [
        [f"200 {which}", of] for which in ("trained on", "held out") for of in ("melanoma", "mean")
    ]
    trained, held = (cells[row] for row in (1, 3))
    assert float(trained[2][:5]) > 0.85
    assert float(trained[4][:5]) > 0.2
    for cell in (trained[3], held[2], held[3]):
        assert abs(float(cell[:5]) - 0.5) < 0.15


def test_no_label_of_the_predicted_images_is_used() -> None:
    random = np.random.default_rng(1)
    class_indices, held_out, folds = np.arange(60) % 2, np.arange(60) >= 40, np.arange(60) % 5
    some = boxes(random.uniform(0.2, 0.8, 60), random)

    def predict(changed: np.ndarray) -> np.ndarray:
        return predict_from(
            some, np.where(changed, 1 - class_indices, class_indices), 2, held_out, folds
        )

    before, first = predict(np.zeros(60, bool)), (folds == 0) & ~held_out
    np.testing.assert_array_equal(predict(held_out), before)
    after = predict(first)
    np.testing.assert_array_equal(after[first], before[first])
    assert (after != before)[~first].any(axis=1).all()
